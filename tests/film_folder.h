// Folders with the files of Open-Sora 2.0, tiny: the weights of the goldens, with random ones where parts must fit each
// other.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

#include "golden.h"
#include "support.h"
#include "temp_folder.h"
#include "text/tokenizer.h"

namespace kinora::test {

class FilmFolder {
 public:
  // Text encoders 32 wide; the transformer and the causal autoencoder, or the pair of the 4x32x32 kind (here 4x8x8).
  explicit FilmFolder(std::string path, bool causal = true) : path_(std::move(path)) {
    namespace fs = std::filesystem;
    fs::create_directories(path_ + "/google/t5-v1_1-xxl");
    fs::create_directories(path_ + "/openai/clip-vit-large-patch14");
    std::string golden = source_folder() + "/tests/golden/";
    fs::copy(golden + "t5_tokenizer/spiece.model", path_ + "/google/t5-v1_1-xxl/spiece.model");
    for (const char* file : {"vocab.json", "merges.txt"})
      fs::copy(golden + "clip_tokenizer/" + file, path_ + "/openai/clip-vit-large-patch14/" + file);
    write("kinora.json", R"({"width": 32, "height": 32, "frames": 5, "steps": 3, "max_sequence_length": 24})");
    encoders();
    transformer(causal ? "mmdit_opensora" : "mmdit_patch1", causal ? "Open_Sora_v2" : "Open_Sora_v2_Video_DC_AE");
    autoencoder(causal ? "vae3d" : "dcae_video", causal ? "hunyuan_vae" : "F32T4C128_AE");
  }

  // The published files of Flux beside it.
  void add_flux() const {
    transformer("mmdit_flux", "flux1-dev");
    autoencoder("flux_ae", "flux1-dev-ae");
  }

  const std::string& path() const { return path_; }
  void write(const std::string& name, const std::string& text) const { std::ofstream(path_ + "/" + name) << text; }

 private:
  using Changes = std::map<std::string, Shape>;

  void save(const Golden& golden, const std::string& name, const Changes& changes) const {
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const std::string& tensor : golden.weights.names()) {
      auto change = changes.find(tensor);
      tensors.emplace_back(tensor, change == changes.end() ? *golden.weights.find(tensor)
                                                           : random_tensor(change->second, tensor.size(), -0.5, 0.5));
    }
    write_safetensors(path_ + "/" + name + ".safetensors", tensors);
  }

  void encoders() const {
    for (bool t5 : {true, false}) {
      std::string folder = t5 ? "google/t5-v1_1-xxl" : "openai/clip-vit-large-patch14";
      Golden golden(t5 ? "t5_gated" : "clip_quick_gelu");
      std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(path_ + "/" + folder);
      auto vocabulary = static_cast<int64_t>(tokenizer->vocab_size());
      auto config = nlohmann::json::parse(golden.config.dump());
      config["model_type"] = t5 ? "t5" : "clip_text_model";
      config["vocab_size"] = vocabulary;
      if (!t5) config["eos_token_id"] = tokenizer->eos_id();
      write(folder + "/config.json", config.dump());
      std::string table = t5 ? "shared.weight" : "text_model.embeddings.token_embedding.weight";
      save(golden, folder + "/model", {{table, {vocabulary, 32}}});
    }
  }

  void transformer(const std::string& golden_name, const std::string& name) const {
    Golden golden(golden_name);
    auto config = nlohmann::json::parse(golden.config.dump());
    config["context_in_dim"] = config["vec_in_dim"] = 32;
    write(name + ".json", config.dump());
    save(golden, name, {{"txt_in.weight", {32, 32}}, {"vector_in.in_layer.weight", {32, 32}}});
  }

  void autoencoder(const std::string& golden_name, const std::string& name) const {
    Golden golden(golden_name);
    write(name + ".json", golden.config.dump());
    save(golden, name, {});
  }

  std::string path_;
};

}  // namespace kinora::test
