#include <gtest/gtest.h>

#include <map>

#include "core/error.h"
#include "io/hub_select.h"

namespace kinora::test {
namespace {

using Files = std::map<std::string, std::string>;  // those that are read have their text

const char* kIndex = R"({"_class_name": "SanaPipeline", "_diffusers_version": "0.32", "requires_safety_checker": true,
  "name": "x", "sizes": [1, 2], "feature_extractor": [null, null],
  "scheduler": ["diffusers", "S"], "text_encoder": ["transformers", "Gemma2Model"],
  "tokenizer": ["transformers", "T"], "transformer": ["diffusers", "SanaTransformer2DModel"],
  "vae": ["diffusers", "AutoencoderDC"]})";

// As the published Sana folders are: some parts in two variants, shards, pickles beside.
Files published() {
  return {{".gitattributes", ""},
          {"README.md", ""},
          {"model_index.json", kIndex},
          {"pipeline.py", ""},
          {"asset/logo.png", ""},
          {"scheduler/scheduler_config.json", ""},
          {"tokenizer/tokenizer.json", ""},
          {"tokenizer/tokenizer.model", ""},
          {"tokenizer/special_tokens_map.json", ""},
          {"text_encoder/config.json", ""},
          {"text_encoder/generation_config.json", ""},
          {"text_encoder/model.safetensors.index.json",
           R"({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})"},
          {"text_encoder/model-00001-of-00002.safetensors", ""},
          {"text_encoder/model-00002-of-00002.safetensors", ""},
          {"text_encoder/model-00001-of-00003.safetensors", ""},  // of an earlier upload
          {"text_encoder/model.safetensors.index.bf16.json",
           R"({"weight_map": {"a": "model.bf16-00001-of-00001.safetensors"}})"},
          {"text_encoder/model.bf16-00001-of-00001.safetensors", ""},
          {"text_encoder/pytorch_model.bin", ""},
          {"transformer/config.json", ""},
          {"transformer/diffusion_pytorch_model.safetensors", ""},
          {"transformer/diffusion_pytorch_model.fp16.safetensors", ""},
          {"transformer/diffusion_pytorch_model.bin", ""},
          {"vae/config.json", ""},
          {"vae/diffusion_pytorch_model.safetensors", ""}};
}

hub::Selection choose(const Files& files, const hub::SelectOptions& options = {}) {
  std::vector<std::string> names;
  for (const auto& [name, text] : files) names.push_back(name);
  return hub::select_files("org/model", names, options, [&](const std::string& path) { return files.at(path); });
}

const std::vector<std::string> kSmall{"model_index.json",         "scheduler/scheduler_config.json",
                                      "text_encoder/config.json", "tokenizer/special_tokens_map.json",
                                      "tokenizer/tokenizer.json", "tokenizer/tokenizer.model",
                                      "transformer/config.json",  "vae/config.json"};

std::vector<std::string> plus(std::vector<std::string> more) {
  more.insert(more.end(), kSmall.begin(), kSmall.end());
  std::sort(more.begin(), more.end());
  return more;
}

TEST(HubSelect, OneCopyOfEachWeight) {
  hub::Selection s = choose(published());
  EXPECT_EQ(s.files,
            plus({"text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors",
                  "text_encoder/model.safetensors.index.json", "transformer/diffusion_pytorch_model.safetensors",
                  "vae/diffusion_pytorch_model.safetensors"}));
  EXPECT_TRUE(s.missing.empty());
  std::map<std::string, std::string> why(s.left_out.begin(), s.left_out.end());
  EXPECT_EQ(why.size() + s.files.size(), published().size());
  EXPECT_EQ(why["text_encoder/pytorch_model.bin"], "pickled weights, which are never read");
  EXPECT_EQ(why["transformer/diffusion_pytorch_model.fp16.safetensors"], "another copy or variant of the weights");
  EXPECT_EQ(why["pipeline.py"], "code, which is never run");
  EXPECT_EQ(why["asset/logo.png"], "not needed to run the model");
}

TEST(HubSelect, AVariantWherePublishedAndElsePlain) {
  EXPECT_EQ(choose(published(), {"fp16", {}, {}}).files,
            plus({"text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors",
                  "text_encoder/model.safetensors.index.json", "transformer/diffusion_pytorch_model.fp16.safetensors",
                  "vae/diffusion_pytorch_model.safetensors"}));
  EXPECT_EQ(
      choose(published(), {"bf16", {}, {}}).files,
      plus({"text_encoder/model.bf16-00001-of-00001.safetensors", "text_encoder/model.safetensors.index.bf16.json",
            "transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"}));
  EXPECT_THROW(choose(published(), {"int4", {}, {}}), Error);
  Files only = published();
  only.erase("vae/diffusion_pytorch_model.safetensors");
  only["vae/diffusion_pytorch_model.bf16.safetensors"] = "";
  std::vector<std::string> files = choose(only).files;  // no plain copy: the one that there is
  EXPECT_EQ(std::count(files.begin(), files.end(), "vae/diffusion_pytorch_model.bf16.safetensors"), 1);
  ASSERT_EQ(choose(only, {"fp16", {}, {}}).missing.size(), 1u);
  EXPECT_EQ(choose(only, {"fp16", {}, {}}).missing[0], "weights of vae in safetensors other than bf16");
}

TEST(HubSelect, TheOlderNameOfAVariantsIndex) {
  Files files = published();
  files["text_encoder/model.fp16.safetensors.index.json"] =
      R"({"weight_map": {"a": "model-00001-of-00001.fp16.safetensors"}})";
  files["text_encoder/model-00001-of-00001.fp16.safetensors"] = "";
  hub::Selection s = choose(files, {"fp16", {}, {}});
  EXPECT_EQ(std::count(s.files.begin(), s.files.end(), "text_encoder/model-00001-of-00001.fp16.safetensors"), 1);
  EXPECT_EQ(std::count(s.files.begin(), s.files.end(), "text_encoder/model-00001-of-00002.safetensors"), 0);
}

TEST(HubSelect, WhatIsMissingIsNamed) {
  Files files = published();
  files.erase("text_encoder/model-00002-of-00002.safetensors");
  files.erase("vae/config.json");
  files.erase("scheduler/scheduler_config.json");
  files.erase("transformer/diffusion_pytorch_model.safetensors");
  files.erase("transformer/diffusion_pytorch_model.fp16.safetensors");
  EXPECT_EQ(choose(files).missing,
            (std::vector<std::string>{"scheduler", "text_encoder/model-00002-of-00002.safetensors",
                                      "weights of transformer in safetensors", "vae/config.json"}));
}

TEST(HubSelect, OtherLayouts) {
  EXPECT_EQ(choose({{"config.json", ""}, {"model.safetensors", ""}, {"README.md", ""}}).files,
            (std::vector<std::string>{"config.json", "model.safetensors"}));
  Files single{{"Some_film.safetensors", ""},
               {"hunyuan_vae.safetensors", ""},
               {"google/t5/config.json", ""},
               {"google/t5/a.bin", ""}};
  EXPECT_THROW(choose(single), Error);
  EXPECT_EQ(choose(single, {"", {"Some_film.safetensors", "google/"}, {}}).files,
            (std::vector<std::string>{"Some_film.safetensors", "google/t5/a.bin", "google/t5/config.json"}));
  EXPECT_EQ(choose(single, {"", {"nothing*"}, {}}).missing.size(), 1u);
  EXPECT_EQ(choose(published(), {"", {}, {"tokenizer"}}).files,
            (std::vector<std::string>{"model_index.json", "tokenizer/special_tokens_map.json",
                                      "tokenizer/tokenizer.json", "tokenizer/tokenizer.model"}));
}

TEST(HubSelect, IgnoresWhatTheModelSaysToIgnore) {
  Files files = published();
  files["model_index.json"] =
      std::string(kIndex, 1) + R"("_ignore_files": ["tokenizer/tokenizer.model", 5],)" + (kIndex + 1);
  std::vector<std::string> taken = choose(files).files;
  EXPECT_EQ(std::count(taken.begin(), taken.end(), "tokenizer/tokenizer.model"), 0);
}

TEST(HubSelect, HostileFilesAreRefused) {
  for (const char* index : {"", "[]", "{", "{\"a\": 1, \"a\": 2}"}) {
    Files files = published();
    files["model_index.json"] = index;
    EXPECT_THROW(choose(files), Error) << index;
  }
  for (const char* map :
       {"{}", R"({"weight_map": {}})", R"({"weight_map": {"a": 1}})", R"({"weight_map": {"a": "../x.safetensors"}})",
        R"({"weight_map": {"a": "/etc/x.safetensors"}})", R"({"weight_map": {"a": "x.bin"}})",
        R"({"weight_map": {"a": ""}})"}) {
    Files files = published();
    files["text_encoder/model.safetensors.index.json"] = map;
    EXPECT_THROW(choose(files), Error) << map;
  }
}

// As hpcai-tech/Open-Sora-v2 is: single files at the root, the encoders in folders with pickles beside.
Files open_sora() {
  return {{"README.md", ""},
          {"Open_Sora_v2.safetensors", ""},
          {"hunyuan_vae.safetensors", ""},
          {"flux1-dev.safetensors", ""},
          {"flux1-dev-ae.safetensors", ""},
          {"google/t5-v1_1-xxl/config.json", ""},
          {"google/t5-v1_1-xxl/generation_config.json", ""},
          {"google/t5-v1_1-xxl/model.safetensors.index.json",
           R"({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})"},
          {"google/t5-v1_1-xxl/model-00001-of-00002.safetensors", ""},
          {"google/t5-v1_1-xxl/model-00002-of-00002.safetensors", ""},
          {"google/t5-v1_1-xxl/pytorch_model.bin", ""},
          {"google/t5-v1_1-xxl/spiece.model", ""},
          {"openai/clip-vit-large-patch14/config.json", ""},
          {"openai/clip-vit-large-patch14/model.safetensors", ""},
          {"openai/clip-vit-large-patch14/pytorch_model.bin", ""},
          {"openai/clip-vit-large-patch14/tf_model.h5", ""},
          {"openai/clip-vit-large-patch14/merges.txt", ""},
          {"openai/clip-vit-large-patch14/vocab.json", ""}};
}

TEST(HubSelect, FilmModelsAsTheyArePublished) {
  Files files = open_sora();
  hub::Selection s = choose(files);
  std::vector<std::string> expected;
  for (const auto& [name, text] : files) {
    bool extra = name == "README.md" || name.ends_with(".bin") || name.ends_with(".h5") ||
                 name.ends_with("generation_config.json");
    if (!extra) expected.push_back(name);
  }
  EXPECT_EQ(s.files, expected);
  EXPECT_TRUE(s.missing.empty());
  EXPECT_EQ(s.left_out.size() + s.files.size(), files.size());

  s = choose(files, {.components = {"tokenizer"}});
  EXPECT_EQ(s.files,
            (std::vector<std::string>{"google/t5-v1_1-xxl/spiece.model", "openai/clip-vit-large-patch14/merges.txt",
                                      "openai/clip-vit-large-patch14/vocab.json"}));
  s = choose(files, {.components = {"transformer", "vae"}});
  EXPECT_EQ(s.files, (std::vector<std::string>{"Open_Sora_v2.safetensors", "hunyuan_vae.safetensors"}));

  // The other pair comes without encoders.
  s = choose({{"Open_Sora_v2_Video_DC_AE.safetensors", ""}, {"F32T4C128_AE.safetensors", ""}, {"README.md", ""}});
  EXPECT_EQ(s.files, (std::vector<std::string>{"F32T4C128_AE.safetensors", "Open_Sora_v2_Video_DC_AE.safetensors"}));
  EXPECT_TRUE(s.missing.empty());

  files.erase("hunyuan_vae.safetensors");
  files.erase("flux1-dev-ae.safetensors");
  files.erase("openai/clip-vit-large-patch14/model.safetensors");
  files.erase("google/t5-v1_1-xxl/model-00002-of-00002.safetensors");
  EXPECT_EQ(choose(files).missing.size(), 4u);
}

}  // namespace
}  // namespace kinora::test
