#include "diffusion/statistics.h"

namespace kinora {
namespace {

constexpr const char kMark[] = "kinora_statistics", kVersion[] = "1";
constexpr size_t kMostHeld = size_t{1} << 30;

}  // namespace

std::shared_ptr<const InputMoments> moments_of_layer(Tensor moments, ThreadPool* pool, const std::string& component,
                                                     const std::string& weight) {
  try {
    return std::make_shared<InputMoments>(std::move(moments), pool);
  } catch (const Error& error) {
    fail(error.kind(), "'" + weight + "' of the " + component + " cannot be calibrated: " + error.what());
  }
}

std::string SavedStatistics::name(const QuantizablePart& part, const std::string& weight) {
  return part.component + "/" + part.base + "/" + weight;
}

std::map<std::string, std::string> SavedStatistics::mark() { return {{kMark, kVersion}}; }

SavedStatistics::SavedStatistics(const std::string& file, ThreadPool* pool)
    : file_(SafetensorsFile::open(file)), pool_(pool) {
  const auto& metadata = file_.header().metadata;
  auto found = metadata.find(kMark);
  if (found == metadata.end() || found->second != kVersion)
    fail(ErrorKind::input, file + " holds no statistics that `kinora quantize --save-statistics` writes");
  for (const SafetensorsEntry& entry : file_.header().entries) {
    const Shape& s = entry.shape;
    bool fits = s.rank() == 1 || (s.rank() == 2 && s[0] == s[1]);
    if (!fits || entry.dtype != DType::f32 || s[0] == 0 || s[0] % kQuantizedRowMultiple != 0)
      fail(ErrorKind::input, file + " is damaged: tensor '" + entry.name + "' " + s.str() + " is no moments");
  }
}

void SavedStatistics::begin(const QuantizablePart& part, std::vector<std::string>) { part_ = part; }

std::shared_ptr<const InputMoments> SavedStatistics::of(const std::string& weight) {
  const auto& metadata = file_.header().metadata;
  auto found = metadata.find(name(part_, weight));
  if (found == metadata.end()) {
    fail(ErrorKind::input, file_.path() + " has nothing about '" + weight + "' of the " + part_.component +
                               "; it is of another model or of fewer layers");
  }
  if (found->second.empty()) return nullptr;
  if (auto known = known_.find(found->second); known != known_.end()) return known->second;
  if (held_ > kMostHeld) {
    known_.clear();
    held_ = 0;
  }
  Tensor tensor = file_.tensor(found->second);
  held_ += 2 * tensor.bytes();
  return known_[found->second] = moments_of_layer(tensor, pool_, part_.component, weight);
}

}  // namespace kinora
