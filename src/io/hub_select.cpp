#include "io/hub_select.h"

#include <fnmatch.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "io/config.h"

namespace kinora::hub {
namespace {

using Json = nlohmann::json;

// Weights go by these names: transformers', diffusers'.
constexpr const char* kWeightBases[] = {"model", "diffusion_pytorch_model"};
constexpr const char* kVariants[] = {"", "bf16", "fp16"};  // by preference, when none is asked for

// Files at the root of a pipeline that go along with every component.
constexpr const char* kRootFiles[] = {"model_index.json", "kinora.json", "config.json", "scheduler_config.json"};

// What is not taken, and why, by the end of the name; the first row that fits counts.
struct Reason {
  const char* ending;
  const char* why;
  bool weights;  // the file is some form of a model's weights
};
constexpr Reason kReasons[] = {
    {".bin", "pickled weights, which are never read", true},
    {".pt", "pickled weights, which are never read", true},
    {".pth", "pickled weights, which are never read", true},
    {".ckpt", "pickled weights, which are never read", true},
    {".pkl", "pickled weights, which are never read", true},
    {".msgpack", "weights for another program", true},
    {".h5", "weights for another program", true},
    {".onnx", "weights for another program", true},
    {".onnx_data", "weights for another program", true},
    {".gguf", "weights for another program", true},
    {".flashpack", "weights for another program", true},
    {".safetensors", "another copy or variant of the weights", true},
    {".index.json", "index of weights that are not taken", true},
    {".fp16.json", "index of weights that are not taken", true},
    {".bf16.json", "index of weights that are not taken", true},
    {".py", "code, which is never run", false},
    {"", "not needed to run the model", false},
};

const Reason& reason_for(const std::string& name) {
  for (const Reason& reason : kReasons) {
    if (name.ends_with(reason.ending)) return reason;
  }
  return kReasons[std::size(kReasons) - 1];
}

std::string weight_name(const std::string& base, const std::string& variant, const std::string& ending) {
  return base + (variant.empty() ? "" : "." + variant) + ending;
}

std::string described(const std::string& variant) { return variant.empty() ? "plain" : variant; }

class Selector {
 public:
  Selector(const std::string& repository, const std::vector<std::string>& names, const SelectOptions& options,
           const ReadFile& read)
      : repository_(repository), names_(names.begin(), names.end()), options_(options), read_(read) {}

  Selection run() {
    if (!options_.patterns.empty()) {
      by_patterns();
    } else if (names_.count("model_index.json")) {
      pipeline();
    } else if (!film_transformer().empty()) {
      film();
    } else if (names_.count("config.json") && !variants_in("").empty()) {
      component("", "the model");
      demand_variant();
    } else {
      unknown();
    }
    Selection result;
    result.files.assign(taken_.begin(), taken_.end());
    result.missing = missing_;
    for (const std::string& name : names_) {
      if (!taken_.count(name))
        result.left_out.emplace_back(name, options_.patterns.empty() ? reason_for(name).why : "not asked for");
    }
    return result;
  }

 private:
  void by_patterns() {
    for (std::string pattern : options_.patterns) {
      if (pattern.ends_with('/')) pattern += "*";
      size_t before = taken_.size();
      bool found = false;
      for (const std::string& name : names_) {
        if (::fnmatch(pattern.c_str(), name.c_str(), 0) != 0) continue;
        taken_.insert(name);
        found = true;
      }
      if (!found && taken_.size() == before) missing_.push_back("a file '" + pattern + "'");
    }
  }

  void pipeline() {
    // By way of Config, which refuses what is nested too deeply or names a key twice.
    Json index = Json::parse(Config::parse(read_("model_index.json"), repository_ + "/model_index.json").dump());
    if (index.contains("_ignore_files") && index["_ignore_files"].is_array()) {
      for (const Json& file : index["_ignore_files"]) names_.erase(file.is_string() ? file.get<std::string>() : "");
    }
    for (const char* name : kRootFiles) {
      if (names_.count(name)) taken_.insert(name);
    }
    for (const auto& [key, value] : index.items()) {
      const auto& only = options_.components;
      bool wanted = only.empty() || std::find(only.begin(), only.end(), key) != only.end();
      // A component is a pair [library, class]; other keys are settings, and a component left out is [null, null].
      bool pair = value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string();
      if (wanted && pair && !key.empty() && key[0] != '_') component(key + "/", key);
    }
    demand_variant();
  }

  // The film models of Open-Sora 2.0 as they are published: single files by name, and folders of text encoders.
  std::string film_transformer() const {
    for (const char* name : {"Open_Sora_v2", "Open_Sora_v2_Video_DC_AE"}) {
      for (const char* ending : {".safetensors", ".safetensors.index.json"}) {
        if (names_.count(std::string(name) + ending)) return std::string(name) + ending;
      }
    }
    return "";
  }

  void film() {
    auto wanted = [&](const std::string& what) {
      const auto& only = options_.components;
      return only.empty() || std::find(only.begin(), only.end(), what) != only.end();
    };
    std::string transformer = film_transformer();
    for (const char* name : kRootFiles) {
      if (names_.count(name)) taken_.insert(name);
    }
    if (wanted("transformer")) single(transformer);
    if (wanted("vae"))
      any_of({"hunyuan_vae.safetensors", "F32T4C128_AE.safetensors"}, "the film autoencoder (hunyuan_vae.safetensors)");
    if (wanted("flux") && names_.count("flux1-dev.safetensors")) {  // draws first pictures
      single("flux1-dev.safetensors");
      any_of({"flux1-dev-ae.safetensors", "ae.safetensors"}, "Flux's autoencoder (flux1-dev-ae.safetensors)");
    }
    // The pair of the 4x32x32 kind is published without encoders: they are those of the other repository.
    bool encoders = holds("google/t5-v1_1-xxl/") || holds("openai/clip-vit-large-patch14/");
    for (const char* folder : {"google/t5-v1_1-xxl/", "openai/clip-vit-large-patch14/"}) {
      if (encoders && (wanted("text_encoder") || wanted("tokenizer"))) encoder(folder, wanted("text_encoder"));
    }
    demand_variant();
  }

  // A file of weights, or an index and its shards; and the config that may stand beside it.
  void single(const std::string& name) {
    taken_.insert(name);
    if (name.ends_with(".index.json")) take_shards("", name);
    std::string json = name.substr(0, name.find(".safetensors")) + ".json";
    if (names_.count(json)) taken_.insert(json);
  }

  void any_of(std::initializer_list<const char*> choices, const std::string& what) {
    for (const char* name : choices) {
      if (names_.count(name)) return single(name);
    }
    missing_.push_back(what);
  }

  bool holds(const std::string& folder) const {
    return std::any_of(names_.begin(), names_.end(), [&](const auto& name) { return name.starts_with(folder); });
  }

  // A text encoder's weights and config, and its tokenizer's small files.
  void encoder(const std::string& folder, bool weights) {
    if (!holds(folder)) {
      missing_.push_back(folder);
      return;
    }
    if (weights) component(folder, folder);
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "spiece.model", "special_tokens_map.json",
                             "vocab.json", "merges.txt", "added_tokens.json"}) {
      if (names_.count(folder + name)) taken_.insert(folder + name);
    }
  }

  // One folder of a pipeline: its weights in one variant and its config; or, without weights, all of it.
  void component(const std::string& folder, const std::string& what) {
    std::vector<std::string> order{options_.variant, ""};
    if (options_.variant.empty()) order.assign(std::begin(kVariants), std::end(kVariants));
    for (const std::string& variant : order) {
      if (!weights(folder, variant)) continue;
      variants_.insert(variant);
      if (names_.count(folder + "config.json")) {
        taken_.insert(folder + "config.json");
      } else {
        missing_.push_back(folder + "config.json");
      }
      return;
    }
    bool any = false, weights_of_others = false;
    for (const std::string& name : names_) {
      if (!name.starts_with(folder)) continue;
      any = true;
      weights_of_others = weights_of_others || reason_for(name).weights;
    }
    if (!any) {
      missing_.push_back(what);
    } else if (weights_of_others) {
      std::string have;
      for (const std::string& variant : variants_in(folder)) have += (have.empty() ? "" : ", ") + described(variant);
      missing_.push_back("weights of " + what + " in safetensors" + (have.empty() ? "" : " other than " + have));
    } else {
      for (const std::string& name : names_) {
        if (name.starts_with(folder) && !name.ends_with(".py")) taken_.insert(name);
      }
    }
  }

  // Takes the single file, or the index and the shards that it names.
  bool weights(const std::string& folder, const std::string& variant) {
    for (const char* base : kWeightBases) {
      std::string single = folder + weight_name(base, variant, ".safetensors");
      if (names_.count(single)) return taken_.insert(single), true;
      std::string index = std::string(base) + ".safetensors.index";
      for (const std::string& name : {folder + weight_name(index, variant, ".json"),
                                      folder + weight_name(base, variant, ".safetensors.index.json")}) {
        if (!names_.count(name)) continue;
        taken_.insert(name);
        take_shards(folder, name);
        return true;
      }
    }
    return false;
  }

  void take_shards(const std::string& folder, const std::string& index) {
    for (const std::string& shard : shards_of(index)) {
      if (names_.count(folder + shard)) {
        taken_.insert(folder + shard);
      } else {
        missing_.push_back(folder + shard);
      }
    }
  }

  std::set<std::string> shards_of(const std::string& index) {
    Config map = Config::parse(read_(index), repository_ + "/" + index).child("weight_map");
    std::set<std::string> shards;
    for (const std::string& tensor : map.keys()) {
      std::string name = map.text(tensor, "");
      if (name.empty() || name[0] == '.' || name.find_first_of("/\\") != std::string::npos ||
          !name.ends_with(".safetensors"))
        fail(ErrorKind::model, map.name() + " names something that is no safetensors file beside it");
      shards.insert(name);
    }
    if (shards.empty()) fail(ErrorKind::model, map.name() + " names no file");
    return shards;
  }

  std::set<std::string> variants_in(const std::string& folder) const {
    std::set<std::string> found;
    for (const std::string& name : names_) {
      if (!name.starts_with(folder) || name.find(".safetensors") == std::string::npos) continue;
      for (const char* base : kWeightBases) {
        std::string start = folder + base;
        if (!name.starts_with(start)) continue;
        std::string rest = name.substr(start.size());
        bool marked = rest.size() > 1 && rest[0] == '.' && !rest.starts_with(".safetensors");
        found.insert(marked ? rest.substr(1, rest.find_first_of(".-", 1) - 1) : "");
      }
    }
    return found;
  }

  // As in diffusers: a part without the variant may stand beside others with it, but not all of them.
  void demand_variant() {
    if (options_.variant.empty() || variants_.empty() || variants_.count(options_.variant)) return;
    fail(ErrorKind::input, repository_ + " has no weights of the variant '" + options_.variant +
                               "'; leave --variant out to take the plain ones");
  }

  [[noreturn]] void unknown() const {
    std::string example;
    for (const std::string& name : names_) {
      if (example.empty() && name.ends_with(".safetensors")) example = name;
    }
    fail(ErrorKind::input, repository_ + " holds no model in the diffusers layout (no model_index.json)" +
                               (example.empty() ? ""
                                                : "; name the files to take, such as: kinora pull " + repository_ +
                                                      " '" + example + "'"));
  }

  const std::string& repository_;
  std::set<std::string> names_, taken_, variants_;
  std::vector<std::string> missing_;
  const SelectOptions& options_;
  const ReadFile& read_;
};

}  // namespace

Selection select_files(const std::string& repository, const std::vector<std::string>& names,
                       const SelectOptions& options, const ReadFile& read) {
  return Selector(repository, names, options, read).run();
}

}  // namespace kinora::hub
