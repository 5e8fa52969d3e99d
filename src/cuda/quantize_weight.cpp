#include <bit>
#include <cmath>

#include "core/log.h"
#include "cuda/nvfp4.h"
#include "cuda/quantize.h"

namespace kinora::cuda {
namespace {

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

class WeightQuantizer {
 public:
  WeightQuantizer(std::shared_ptr<Device> device, std::shared_ptr<ThreadPool> pool)
      : device_(std::move(device)), pool_(std::move(pool)) {}

  QuantizedMatrix quantize(const Tensor& weight, QuantFormat format) {
    QuantizedMatrix out = allocate_quantized(weight.shape(), format);
    size_t codes_at = aligned(weight.bytes()), scales_at = codes_at + aligned(out.codes.bytes());
    size_t peak_at = scales_at + aligned(out.scale.bytes());
    if (!reserve(peak_at + sizeof(uint32_t))) return quantize_matrix(weight, format, pool_.get());
    std::byte *x = static_cast<std::byte*>(memory_.get()), *codes = x + codes_at, *scales = x + scales_at;
    auto stream = static_cast<cudaStream_t>(device_->queue());
    int64_t n = weight.shape()[0], k = weight.shape()[1];
    device_->upload(x, weight.raw(), weight.bytes(), pool_.get());
    if (is_nvfp4(format)) {
      uint32_t peak = 0;
      find_peak(stream, weight.dtype(), x, n * k, reinterpret_cast<uint32_t*>(x + peak_at));
      device_->download(&peak, x + peak_at, sizeof peak);
      float scale_2 = weight_scale_2(std::bit_cast<float>(peak));
      out.scale_2.data<float>()[0] = scale_2;
      quantize_nvfp4_weight(stream, weight.dtype(), x, n * k, scale_2, codes, scales);
    } else {
      quantize_rows(stream, weight.dtype(), x, n, k, code_type(format) != DType::i8, codes,
                    reinterpret_cast<float*>(scales));
    }
    device_->download(out.scale.raw(), scales, out.scale.bytes(), pool_.get());
    if (!is_nvfp4(format)) {  // the scale of a row that is not finite is no number
      for (float scale : out.scale.values<float>()) expect_finite_weight(scale);
    }
    device_->download(out.codes.raw(), codes, out.codes.bytes(), pool_.get());
    return out;
  }

 private:
  bool reserve(size_t bytes) {
    if (bytes <= size_) return true;
    memory_.reset();
    size_ = 0;
    try {
      memory_ = device_->allocate(bytes);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::resource) throw;
      log(LogLevel::debug, std::string("a weight is quantized on the CPU: ") + error.what());
      return false;
    }
    size_ = bytes;
    return true;
  }

  std::shared_ptr<Device> device_;
  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<void> memory_;
  size_t size_ = 0;
};

}  // namespace

Quantizer weight_quantizer(std::shared_ptr<Device> device, std::shared_ptr<ThreadPool> pool) {
  auto quantizer = std::make_shared<WeightQuantizer>(std::move(device), std::move(pool));
  return [quantizer](const Tensor& weight, QuantFormat format) { return quantizer->quantize(weight, format); };
}

}  // namespace kinora::cuda
