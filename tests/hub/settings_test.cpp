#include <gtest/gtest.h>

#include <map>

#include "core/error.h"
#include "io/hub.h"
#include "io/hub_http.h"
#include "io/hub_settings.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

using Variables = std::map<std::string, std::string>;

hub::Settings settings(Variables variables) {
  variables.try_emplace("HOME", "/home/u");
  return hub::read_settings([=](const char* name) {
    auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  });
}

TEST(HubSettings, TheCacheFollowsThePrecedenceOfHuggingFace) {
  Variables v;
  EXPECT_EQ(settings(v).cache, "/home/u/.cache/huggingface/hub");
  v["XDG_CACHE_HOME"] = "/xdg";
  EXPECT_EQ(settings(v).cache, "/xdg/huggingface/hub");
  v["HF_HOME"] = "~/hf";
  EXPECT_EQ(settings(v).cache, "/home/u/hf/hub");
  v["HUGGINGFACE_HUB_CACHE"] = "/legacy";
  EXPECT_EQ(settings(v).cache, "/legacy");
  v["HF_HUB_CACHE"] = "$DISK/${NAME}/$UNKNOWN";
  v["DISK"] = "/mnt";
  v["NAME"] = "models";
  EXPECT_EQ(settings(v).cache, "/mnt/models/$UNKNOWN");
  v["HF_HUB_CACHE"] = "";  // an empty variable is no variable
  EXPECT_EQ(settings(v).cache, "/legacy");
}

TEST(HubSettings, TheTokenFollowsThePrecedenceOfHuggingFace) {
  TempFolder temp;
  Variables v{{"HF_HOME", temp.path()}};
  EXPECT_EQ(settings(v).token, "");
  temp.write("token", "hf_home\n");
  EXPECT_EQ(settings(v).token, "hf_home");
  v["HF_TOKEN_PATH"] = temp.write("other", " hf_path\r\n");
  EXPECT_EQ(settings(v).token, "hf_path");
  v["HUGGING_FACE_HUB_TOKEN"] = "hf_legacy";
  EXPECT_EQ(settings(v).token, "hf_legacy");
  v["HF_TOKEN"] = " hf_variable ";
  EXPECT_EQ(settings(v).token, "hf_variable");
  v["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1";
  EXPECT_EQ(settings(v).token, "");
  EXPECT_THROW(settings({{"HF_TOKEN", "hf_\x01 x"}}), Error);
}

TEST(HubSettings, SwitchesAndTimes) {
  for (const char* yes : {"1", "on", "Yes", "TRUE"}) EXPECT_TRUE(settings({{"HF_HUB_OFFLINE", yes}}).offline) << yes;
  for (const char* no : {"0", "off", "2", ""}) EXPECT_FALSE(settings({{"HF_HUB_OFFLINE", no}}).offline) << no;
  EXPECT_TRUE(settings({{"TRANSFORMERS_OFFLINE", "1"}}).offline);
  EXPECT_FALSE(settings({{"HF_HUB_OFFLINE", "0"}, {"TRANSFORMERS_OFFLINE", "1"}}).offline);
  EXPECT_FALSE(settings({{"HF_HUB_DISABLE_SYMLINKS", "1"}}).symlinks);
  EXPECT_FALSE(settings({{"HF_HUB_DISABLE_XET", "1"}}).shared_blobs);
  EXPECT_EQ(settings({}).metadata_timeout, 10);
  EXPECT_EQ(settings({{"HF_HUB_ETAG_TIMEOUT", "3"}, {"HF_HUB_DOWNLOAD_TIMEOUT", "0"}}).metadata_timeout, 3);
  EXPECT_EQ(settings({{"HF_HUB_DOWNLOAD_TIMEOUT", "0"}}).download_timeout, 10);  // as huggingface_hub reads it
  EXPECT_THROW(settings({{"HF_HUB_ETAG_TIMEOUT", "soon"}}), Error);
  EXPECT_THROW(settings({{"HF_HUB_ETAG_TIMEOUT", "-1"}}), Error);
  EXPECT_EQ(settings({}).endpoint, "https://huggingface.co");
  EXPECT_EQ(settings({{"HF_ENDPOINT", "http://mirror:80/hf//"}}).endpoint, "http://mirror:80/hf");
  for (const char* bad : {"ftp://x", "huggingface.co", "file:///etc", "http://a b"})
    EXPECT_THROW(settings({{"HF_ENDPOINT", bad}}), Error) << bad;
}

TEST(HubNames, OnlyNamesBecomePaths) {
  EXPECT_EQ(hub::parse_model_name("org/model")->revision, "main");
  EXPECT_EQ(hub::parse_model_name("org/model@refs/pr/1")->revision, "refs/pr/1");
  EXPECT_EQ(hub::parse_model_name("Efficient-Large-Model/Sana_600M_1024px_diffusers")->text(),
            "Efficient-Large-Model/Sana_600M_1024px_diffusers");
  for (const char* bad : {"model",
                          "a/b/c",
                          "./model",
                          "../model",
                          "/org/model",
                          "org/",
                          "/x",
                          "org/model@",
                          "org/..",
                          "a--b/c",
                          "org/mo del",
                          "org/model.git",
                          "-org/model",
                          "org/model@../x",
                          "org/model@a//b",
                          "org/model@/a",
                          "org/model@a\\b",
                          "org/model@.hidden",
                          "org/model@x.lock",
                          "org\n/model",
                          ""})
    EXPECT_FALSE(hub::parse_model_name(bad)) << bad;
  EXPECT_FALSE(hub::parse_model_name("org/" + std::string(97, 'a')));
  std::string commit(40, 'a');
  EXPECT_EQ(hub::name_of_folder("/c/models--org--model/snapshots/" + commit + "/"), "org/model@" + commit);
  EXPECT_EQ(hub::name_of_folder("/c/models--org--model"), "/c/models--org--model");
  EXPECT_EQ(hub::name_of_folder("models/kinora-mini"), "models/kinora-mini");
  EXPECT_EQ(hub::encode_path("a b/ü%?#.json"), "a%20b/%C3%BC%25%3F%23.json");
}

TEST(HubNames, TheTokenIsForOneAuthority) {
  EXPECT_TRUE(hub::same_authority("https://mirror/a", "https://MIRROR:443/b?c"));
  EXPECT_TRUE(hub::same_authority("https://huggingface.co/a", "https://hf.co/b"));
  for (const char* other :
       {"http://mirror/a", "https://mirror:444/a", "https://mirror.evil/a", "https://evil/?x=https://mirror/",
        "https://mirror@evil/a", "https://huggingface.co/a", "//mirror/a", ""})
    EXPECT_FALSE(hub::same_authority("https://mirror/a", other)) << other;
}

}  // namespace
}  // namespace kinora::test
