// What a hub may send: lists of files, headers, and the small files that say which others a model needs.
#include "io/hub.h"

#include "core/error.h"
#include "io/hub_answers.h"
#include "io/hub_http.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  std::string text(reinterpret_cast<const char*>(data), size);
  auto guarded = [](auto&& body) {
    try {
      body();
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::internal) throw;
    }
  };
  guarded([&] { hub::parse_commit(text, "fuzz"); });
  guarded([&] {
    for (const hub::TreeEntry& entry : hub::parse_tree(text, "fuzz"))
      check(hub::valid_file_path(entry.path), "a path was not checked");
  });
  std::vector<std::string> names{"model_index.json", "a/config.json", "a/model.safetensors.index.json",
                                 "a/b.safetensors",  "c/config.json", "c/model.fp16.safetensors"};
  for (const char* variant : {"", "fp16"}) {
    guarded([&] {
      hub::select_files("fuzz", names, {variant, {}, {}}, [&](const std::string& path) {
        return path == "model_index.json" ? R"({"a": ["x", "y"], "c": ["x", "y"]})" : text;
      });
    });
    guarded([&] { hub::select_files("fuzz", names, {variant, {}, {}}, [&](const std::string&) { return text; }); });
  }
  hub::next_page(text);
  hub::valid_etag(hub::normalized_etag(text));
  hub::same_authority("https://huggingface.co/a", text);
  if (auto name = hub::parse_model_name(text)) check(hub::valid_revision(name->revision), "a revision was not checked");
  hub::name_of_folder(text);
  hub::encode_path(text);
  return 0;
}
