#include "diffusion/quantize_model.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "diffusion/video_denoiser.h"
#include "io/config.h"
#include "io/file.h"
#include "io/quantized.h"
#include "io/safetensors.h"

namespace kinora {
namespace {

namespace fs = std::filesystem;

constexpr int kDeepest = 6;  // folders within folders

// The component that a folder's config.json speaks of; empty for others.
QuantizablePart part_of_config(const fs::path& folder) {
  if (!fs::is_regular_file(folder / "config.json")) return {};
  Config config = Config::load((folder / "config.json").string());
  std::string type = config.text("model_type", "");
  if (config.text("_class_name", "") == "SanaTransformer2DModel")
    return {"transformer", folder.string(), "diffusion_pytorch_model"};
  if (type == "gemma2") return {"text_encoder", folder.string(), "model"};
  if (type == "t5" || type == "mt5") return {"t5", folder.string(), "model"};
  return {};
}

void find_parts(const fs::path& folder, int depth, std::vector<QuantizablePart>& parts) {
  if (QuantizablePart part = part_of_config(folder); !part.base.empty()) parts.push_back(part);
  for (MmditRole role : {MmditRole::film, MmditRole::picture}) {
    std::string base = mmdit_base(folder.string(), role);
    if (!base.empty()) parts.push_back({"transformer", folder.string(), base});
  }
  if (depth == 0) return;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory()) find_parts(entry.path(), depth - 1, parts);
  }
}

// Tensors of the new file in an order that keeps each of several bytes aligned: by element size, quantized weights with
// their scales between those of four and of two bytes, or last when their sizes are odd.
struct Planned {
  std::string name;
  std::optional<QuantFormat> format;
  int rank;
};

std::vector<Planned> plan_order(const Weights& weights, const std::string& component, const Quantization& q) {
  std::vector<Planned> order;
  for (const std::string& name : weights.names()) {
    const Tensor& tensor = *weights.find(name);
    Planned planned{name, format_for(q, component, name, tensor), 0};
    size_t size = dtype_size(tensor.dtype());
    if (planned.format) {
      bool odd = is_nvfp4(*planned.format) && tensor.numel() / kNvfp4Block % 4 != 0;
      planned.rank = odd ? 4 : 2;
    } else {
      planned.rank = size == 8 ? 0 : size == 4 ? 1 : size == 2 ? 3 : 5;
    }
    order.push_back(planned);
  }
  std::stable_sort(order.begin(), order.end(), [](const Planned& a, const Planned& b) { return a.rank < b.rank; });
  return order;
}

std::vector<std::string> quantized_names(const std::vector<Planned>& order) {
  std::vector<std::string> names;
  for (const Planned& planned : order) {
    if (planned.format) names.push_back(planned.name);
  }
  return names;
}

std::vector<SafetensorsSpec> specs_of(const Weights& weights, const std::vector<Planned>& order) {
  std::vector<SafetensorsSpec> specs;
  for (const auto& [name, format, rank] : order) {
    const Tensor& tensor = *weights.find(name);
    if (!format) {
      specs.push_back({name, tensor.dtype(), tensor.shape()});
      continue;
    }
    if (is_nvfp4(*format)) specs.push_back({scale_2_name(name), DType::f32, Shape{}});
    if (!is_nvfp4(*format))
      specs.push_back({scale_name(name), scale_type(*format), scale_shape(*format, tensor.shape())});
    specs.push_back({name, code_type(*format), code_shape(*format, tensor.shape())});
    if (is_nvfp4(*format))
      specs.push_back({scale_name(name), scale_type(*format), scale_shape(*format, tensor.shape())});
  }
  return specs;
}

size_t bytes_of(const std::vector<SafetensorsSpec>& specs) {
  size_t bytes = 0;
  for (const SafetensorsSpec& spec : specs) bytes += static_cast<size_t>(spec.shape.numel()) * dtype_size(spec.dtype);
  return bytes;
}

std::string layer_of(const std::string& weight) {
  return weight.substr(0, weight.size() - std::string(".weight").size());
}

QuantizedMatrix quantize_layer(const QuantizablePart& part, const Weights& weights, const std::string& name,
                               QuantFormat format, const QuantizeModelOptions& o, ThreadPool& pool) {
  std::shared_ptr<const InputMoments> inputs = o.statistics ? o.statistics->of(name) : nullptr;
  if (int64_t length = weights.shape_of(name)[1]; inputs && inputs->length() != length) {
    fail(ErrorKind::input, "statistics of '" + name + "' are those of " + std::to_string(inputs->length()) +
                               " inputs, but it has " + std::to_string(length) + "; they are of another model");
  }
  Quantizer calibrated;
  if (inputs) {
    calibrated = [&](const Tensor& tensor, QuantFormat to) { return quantize_matrix(tensor, to, *inputs, &pool); };
  }
  QuantizedMatrix q = quantize_weight(weights, name, format, pool, calibrated);
  if (!o.on_layer) return q;
  const Tensor& weight = *weights.find(name);
  LayerReport report{
      part.component, layer_of(name), weight.shape(), format, relative_error(weight, q, format, pool), {}, {}};
  if (inputs) {
    QuantizedMatrix plain = quantize_weight(weights, name, format, pool);
    report.product_error = product_error(weight, q, format, *inputs, &pool);
    report.product_error_before = product_error(weight, plain, format, *inputs, &pool);
  }
  o.on_layer(report);
  return q;
}

void write_part(const QuantizablePart& part, const Weights& weights, const fs::path& target,
                const QuantizeModelOptions& o, ThreadPool& pool) {
  std::vector<Planned> order = plan_order(weights, part.component, o.quantization);
  FileQuantization described{std::string(quant_format_name(*o.quantization.format)), {}};
  for (const Planned& planned : order) {
    if (planned.format) described.layers[layer_of(planned.name)] = *planned.format;
  }
  std::map<std::string, std::string> metadata{{"format", "pt"}};
  if (!described.layers.empty()) write_quantization(described, metadata);
  std::vector<SafetensorsSpec> specs = specs_of(weights, order);
  std::string file = (target / (part.base + ".safetensors")).string();
  if (o.statistics) o.statistics->begin(part, quantized_names(order));
  write_safetensors(file, specs, metadata, [&](const auto& write) {
    for (const auto& [name, format, rank] : order) {
      if (o.stop && o.stop->load()) fail(ErrorKind::cancelled, "stopped");
      const Tensor& tensor = *weights.find(name);
      if (!format) {
        write(tensor);
        tensor.release_pages();
        continue;
      }
      QuantizedMatrix q = quantize_layer(part, weights, name, *format, o, pool);
      tensor.release_pages();
      if (q.scale_2.defined()) write(q.scale_2);
      if (!q.scale_2.defined()) write(q.scale);
      write(q.codes);
      if (q.scale_2.defined()) write(q.scale);
    }
  });
  if (o.on_part) o.on_part({part.component, file, described.layers.size(), weights.bytes(), bytes_of(specs)});
}

// Files that hold a part's weights in one form or another.
bool holds_weights(const QuantizablePart& part, const std::string& name) {
  auto ends = [&](const char* suffix) { return name.ends_with(suffix); };
  if (name.starts_with(part.base + ".") || name.starts_with(part.base + "-"))
    return ends(".safetensors") || ends(".index.json") || name.find(".safetensors.index.") != std::string::npos;
  return part.base == "model" && (ends(".bin") || ends(".bin.index.json") || ends(".h5") || ends(".msgpack"));
}

void copy_rest(const fs::path& from, const fs::path& to, int depth, const std::vector<QuantizablePart>& parts,
               const std::string& format) {
  fs::create_directories(to);
  for (const fs::directory_entry& entry : fs::directory_iterator(from)) {
    std::string name = entry.path().filename().string();
    if (entry.is_directory()) {
      if (depth > 0) copy_rest(entry.path(), to / name, depth - 1, parts, format);
      continue;
    }
    bool weights = false, config = false;
    for (const QuantizablePart& part : parts) {
      if (fs::path(part.folder) != from) continue;
      weights = weights || holds_weights(part, name);
      config = config || (name == "config.json" && !part_of_config(from).base.empty());
    }
    if (weights || !entry.is_regular_file()) continue;
    if (config) {
      std::string text = read_file(entry.path().string(), size_t{16} << 20);
      write_atomically((to / name).string(), add_quantization_config(text, entry.path().string(), format));
    } else {
      fs::copy_file(entry.path(), to / name);
    }
  }
}

// A folder beside the one wanted, renamed when all is done and removed when it is not.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const fs::path& wanted) : wanted_(wanted) {
    std::string name = (wanted.parent_path() / (".kinora-quantize-XXXXXX")).string();
    if (!::mkdtemp(name.data())) fail(ErrorKind::io, "cannot make a folder in " + wanted.parent_path().string());
    path_ = name;
    fs::permissions(path_, fs::perms(0755));
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!done_) fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }
  void commit() {
    fs::rename(path_, wanted_);
    done_ = true;
  }

 private:
  fs::path wanted_, path_;
  bool done_ = false;
};

fs::path checked_output(const QuantizeModelOptions& o) {
  fs::path output = fs::absolute(o.output).lexically_normal();
  if (output.filename().empty()) output = output.parent_path();
  if (fs::exists(output)) fail(ErrorKind::usage, o.output + " exists already; -o takes the name of a new folder");
  if (!fs::is_directory(output.parent_path()))
    fail(ErrorKind::io, "the folder " + output.parent_path().string() + " does not exist; create it first");
  std::string inside = fs::relative(output, fs::weakly_canonical(o.model)).string();
  if (fs::is_directory(o.model) && !inside.starts_with(".."))
    fail(ErrorKind::usage, "-o " + o.output + " lies in the model's own folder; choose another place");
  return output;
}

void expect_space(const fs::path& where, size_t needed) {
  std::error_code error;
  fs::space_info space = fs::space(where, error);
  if (!error && space.available < needed) {
    fail(ErrorKind::io, "not enough space in " + where.string() + ": " + std::to_string(needed >> 20) +
                            " MiB are needed, " + std::to_string(space.available >> 20) + " MiB are free");
  }
}

// Returns the file's name.
std::string save_statistics(const QuantizeModelOptions& o, const std::vector<QuantizablePart>& parts,
                            const std::vector<Weights>& weights) {
  std::vector<std::pair<QuantizablePart, std::vector<std::string>>> wanted;
  for (size_t i = 0; i < parts.size(); ++i)
    wanted.emplace_back(parts[i], quantized_names(plan_order(weights[i], parts[i].component, o.quantization)));
  o.calibration->save(o.save_statistics, wanted);
  return o.save_statistics;
}

}  // namespace

std::vector<QuantizablePart> quantizable_parts(const std::string& path) {
  std::vector<QuantizablePart> parts;
  fs::path root(path);
  if (fs::is_regular_file(root) && root.extension() == ".safetensors") {
    parts.push_back({"transformer", root.has_parent_path() ? root.parent_path().string() : ".", root.stem().string()});
  } else if (fs::is_directory(root)) {
    find_parts(root, kDeepest, parts);
  }
  if (parts.empty()) {
    fail(ErrorKind::io, path +
                            " holds nothing that can be quantized: it is neither the folder of a Sana or Open-Sora "
                            "model nor that of a Gemma-2 or T5 text encoder");
  }
  return parts;
}

void quantize_model(const QuantizeModelOptions& options, ThreadPool& pool) {
  QuantizeModelOptions o = options;
  check(o.quantization.format.has_value(), "quantize_model: no format");
  check(!o.calibration || !o.statistics, "quantize_model: two kinds of statistics");
  fs::path output = checked_output(o), model(o.model);
  std::vector<QuantizablePart> parts = quantizable_parts(o.model);
  std::vector<Weights> weights;
  size_t needed = 0;
  for (const QuantizablePart& part : parts) {
    weights.push_back(open_weights(part.folder, part.base, o.variant));
    std::string already = describe_quantization(weights.back());
    if (!already.empty())
      fail(ErrorKind::usage,
           weights.back().source() + " is quantized already (" + already + "); it can be used as it is");
    needed += bytes_of(specs_of(weights.back(), plan_order(weights.back(), part.component, o.quantization)));
  }
  expect_space(output.parent_path(), needed);
  std::optional<SavedStatistics> saved;
  if (o.calibration) {
    o.calibration->draw();
    o.statistics = o.calibration;
    if (!o.save_statistics.empty()) o.statistics = &saved.emplace(save_statistics(o, parts, weights), &pool);
  }
  TemporaryFolder folder(output);
  try {
    if (fs::is_directory(model))
      copy_rest(model, folder.path(), kDeepest, parts, std::string(quant_format_name(*o.quantization.format)));
    for (size_t i = 0; i < parts.size(); ++i) {
      fs::path inside = fs::is_directory(model) ? fs::relative(parts[i].folder, model) : fs::path();
      write_part(parts[i], weights[i], folder.path() / inside, o, pool);
      weights[i] = Weights();
    }
    folder.commit();
  } catch (const fs::filesystem_error& error) {
    fail(ErrorKind::io, std::string("cannot write ") + o.output + ": " + error.what());
  }
}

}  // namespace kinora
