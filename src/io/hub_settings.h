// Where the hub is, who asks, and where its files are kept: huggingface_hub's environment variables, with its
// precedence (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables).
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace kinora::hub {

struct Settings {
  std::string endpoint = "https://huggingface.co";  // HF_ENDPOINT, without a trailing slash
  // HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else HF_HOME/hub; HF_HOME is else XDG_CACHE_HOME/huggingface, else
  // ~/.cache/huggingface
  std::string cache;
  // HF_TOKEN, else HUGGING_FACE_HUB_TOKEN, else the file HF_TOKEN_PATH, else HF_HOME/token; empty when there is none or
  // HF_HUB_DISABLE_IMPLICIT_TOKEN is set
  std::string token;
  bool offline = false;          // HF_HUB_OFFLINE, else TRANSFORMERS_OFFLINE
  bool symlinks = true;          // not HF_HUB_DISABLE_SYMLINKS
  bool shared_blobs = true;      // neither HF_HUB_DISABLE_SHARED_BLOBS nor HF_HUB_DISABLE_XET
  bool progress_bars = true;     // not HF_HUB_DISABLE_PROGRESS_BARS
  double metadata_timeout = 10;  // HF_HUB_ETAG_TIMEOUT: seconds without an answer
  double download_timeout = 10;  // HF_HUB_DOWNLOAD_TIMEOUT: seconds without a byte
  double backoff = 1;            // seconds before the first retry; doubles up to eight times that
  int retries = 5;               // failures in a row without a new byte before giving up
};

// Reads the variables through `get`, the process's environment when empty. Throws Error(usage) naming the variable.
using GetVariable = std::function<std::optional<std::string>(const char* name)>;
Settings read_settings(const GetVariable& get = {});

}  // namespace kinora::hub
