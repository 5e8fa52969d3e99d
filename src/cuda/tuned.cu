#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/tuned.h"

namespace kinora::cuda {
namespace {

constexpr int kSuggestions = 8, kRounds = 3, kLeastRuns = 2, kMostRuns = 8;
constexpr double kLeastWork = 4e9, kRunsWork = 8e12;  // operations worth measuring; of a round, at most
constexpr size_t kMostBytes = size_t{8} << 30, kPastCache = 100 << 20;  // of operands; of weights read in turn
constexpr float kGain = 0.98f;                                          // what a plan must better

__global__ void fill_kernel(uint16_t* out, size_t count, uint32_t seed, DType dtype) {
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  uint32_t h = (static_cast<uint32_t>(i) ^ seed) * 2654435769u;
  h = (h ^ h >> 15) * 2246822519u;
  float value = static_cast<float>(h >> 8) / (1 << 23) - 1;
  out[i] = dtype == DType::f16 ? __half_as_ushort(__float2half(value)) : __bfloat16_as_ushort(__float2bfloat16(value));
}

// Pairs of random codes of 8 bits, none of them an E4M3 NaN.
__global__ void fill_codes_kernel(uint16_t* out, size_t count, uint32_t seed) {
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  uint32_t h = (static_cast<uint32_t>(i) ^ seed) * 2654435769u;
  out[i] = static_cast<uint16_t>((h ^ h >> 15) * 2246822519u >> 16 & 0xf7f7u);
}

__global__ void differ_kernel(const uint32_t* a, const uint32_t* b, size_t words, int* differ) {
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < words && a[i] != b[i]) *differ = 1;
}

struct Memory {
  void* at = nullptr;
  explicit Memory(size_t bytes) {
    if (cudaMalloc(&at, std::max<size_t>(bytes, 16)) != cudaSuccess) {
      cudaGetLastError();
      at = nullptr;
    }
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cudaFree(at); }
};

// The operands of one product, and the results of its favourite plan and of another.
class Trial {
 public:
  explicit Trial(const ProductShape& s)
      : shape_(s),
        weight_count_(size_t(s.n * s.k) * (s.shared_b ? 1 : size_t(s.batch))),
        element_(s.operands ? dtype_size(*s.operands) : 2),
        runs_(std::clamp<size_t>(static_cast<size_t>(kRunsWork / work(s)), kLeastRuns, kMostRuns)),
        copies_(std::clamp<size_t>(kPastCache / (element_ * weight_count_), 1, 8)),
        out_bytes_(size_t(s.batch * s.m * (s.row ? s.row : s.n)) * (s.wide ? 4 : dtype_size(s.dtype))),
        x_(size_t(s.batch * s.m * s.k) * element_),
        w_(copies_ * weight_count_ * element_),
        bias_(size_t(s.n) * 4),
        residual_(s.residual ? out_bytes_ : 0),
        scales_(s.scales ? size_t(std::max(s.m, s.n)) * 4 : 0),
        first_(out_bytes_),
        other_(out_bytes_),
        workspace_(size_t{32} << 20),
        differ_(sizeof(int)) {}

  static double work(const ProductShape& s) {
    return 2.0 * static_cast<double>(s.batch * s.m) * static_cast<double>(s.n) * static_cast<double>(s.k);
  }
  static size_t bytes(const ProductShape& s) {
    return size_t(s.batch) * 2 * size_t(s.m * s.k + s.n * s.k + 4 * s.m * s.n);
  }
  bool ready() const {
    for (const Memory* m : {&x_, &w_, &bias_, &residual_, &scales_, &first_, &other_, &workspace_, &differ_}) {
      if (!m->at) return false;
    }
    return true;
  }

  int best() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    fill_operand(x_, size_t(shape_.batch * shape_.m * shape_.k), 1);
    fill_operand(w_, copies_ * weight_count_, 2);
    if (shape_.scales) check(cudaMemsetAsync(scales_.at, 0x3c, size_t(std::max(shape_.m, shape_.n)) * 4, stream_));
    fill(bias_, size_t(shape_.n), 3);
    if (shape_.residual) fill(residual_, out_bytes_ / 2, 4);
    for (const Memory* m : {&first_, &other_}) check(cudaMemsetAsync(m->at, 0, out_bytes_, stream_));
    int best = 0;
    float least = 0;
    for (int i = 0; i < kSuggestions; ++i) {
      Product product(shape_, i);
      if (!product.available()) break;
      run(product, 0, i == 0 ? first_ : other_);
      if (i > 0 && differs()) continue;
      float time = measure(product);
      if (i == 0 || time < least * (best == 0 ? kGain : 1.0f)) {
        least = time;
        best = i;
      }
    }
    cudaStreamDestroy(stream_);
    return best;
  }

 private:
  void fill_operand(const Memory& memory, size_t count, uint32_t seed) {
    if (element_ != 1) return fill(memory, count, seed);
    fill_codes_kernel<<<static_cast<unsigned>(ceil_div(count / 2, size_t{256})), 256, 0, stream_>>>(
        static_cast<uint16_t*>(memory.at), count / 2, seed);
    check(cudaGetLastError());
  }

  void fill(const Memory& memory, size_t count, uint32_t seed) {
    fill_kernel<<<static_cast<unsigned>(ceil_div(count, size_t{256})), 256, 0, stream_>>>(
        static_cast<uint16_t*>(memory.at), count, seed, shape_.dtype);
    check(cudaGetLastError());
  }

  void run(const Product& product, size_t copy, const Memory& out) {
    const auto* w = static_cast<const std::byte*>(w_.at) + copy * weight_count_ * element_;
    product.run(x_.at, w, bias_.at, residual_.at, out.at, workspace_.at, stream_, {scales_.at, scales_.at});
  }

  bool differs() {
    size_t words = out_bytes_ / 4;
    int host = 0;
    check(cudaMemsetAsync(differ_.at, 0, sizeof host, stream_));
    differ_kernel<<<static_cast<unsigned>(ceil_div(words, size_t{256})), 256, 0, stream_>>>(
        static_cast<const uint32_t*>(first_.at), static_cast<const uint32_t*>(other_.at), words,
        static_cast<int*>(differ_.at));
    check(cudaGetLastError());
    check(cudaMemcpyAsync(&host, differ_.at, sizeof host, cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
    return host != 0;
  }

  // Milliseconds of some products, the least of some rounds.
  float measure(const Product& product) {
    cudaEvent_t start, stop;
    check(cudaEventCreate(&start));
    check(cudaEventCreate(&stop));
    float least = 0;
    for (int round = 0; round < kRounds; ++round) {
      check(cudaEventRecord(start, stream_));
      for (size_t i = 0; i < runs_; ++i) run(product, i % copies_, other_);
      check(cudaEventRecord(stop, stream_));
      check(cudaEventSynchronize(stop));
      float time = 0;
      check(cudaEventElapsedTime(&time, start, stop));
      if (round == 0 || time < least) least = time;
    }
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    return least;
  }

  ProductShape shape_;
  size_t weight_count_, element_, runs_, copies_, out_bytes_;
  Memory x_, w_, bias_, residual_, scales_, first_, other_, workspace_, differ_;
  cudaStream_t stream_ = nullptr;
};

// What was measured, one line each: the GPU and the library, the shape, the suggestion.
class Known {
 public:
  Known() : file_(tuning_file()) {
    std::ifstream in(file_);
    std::string line;
    for (int i = 0; i < 10000 && std::getline(in, line); ++i) {
      size_t tab = line.rfind('\t');
      if (tab == std::string::npos) continue;
      int suggestion = std::atoi(line.c_str() + tab + 1);
      if (suggestion >= 0 && suggestion < kSuggestions) found_[line.substr(0, tab)] = suggestion;
    }
  }

  const int* find(const std::string& key) const {
    auto at = found_.find(key);
    return at == found_.end() ? nullptr : &at->second;
  }

  // Several processes may add at once: a line is written whole. A folder that cannot be written is no error.
  void add(const std::string& key, int suggestion) {
    found_[key] = suggestion;
    if (file_.empty()) return;
    std::error_code ignored;
    std::filesystem::create_directories(std::filesystem::path(file_).parent_path(), ignored);
    std::ofstream(file_, std::ios::app) << key + "\t" + std::to_string(suggestion) + "\n" << std::flush;
  }

 private:
  std::string file_;
  std::map<std::string, int> found_;
};

std::string key_of(const ProductShape& s) {
  static const std::string machine = [] {
    int device = 0;
    cudaDeviceProp properties{};
    check(cudaGetDevice(&device));
    check(cudaGetDeviceProperties(&properties, device));
    return std::string(properties.name) + "\tcuBLASLt " + std::to_string(cublaslt_version());
  }();
  std::string key = machine + "\t";
  for (int64_t v : {s.m, s.n, s.k, s.batch, s.row}) key += std::to_string(v) + " ";
  for (bool flag : {s.transpose_a, s.transpose_b, s.shared_b, s.bias, s.gelu, s.residual, s.wide})
    key += flag ? '1' : '0';
  key += s.dtype == DType::f16 ? " f16" : s.dtype == DType::i32 ? " i32" : " bf16";
  return s.operands ? key + " of " + std::string(dtype_name(*s.operands)) + (s.scales ? " scaled" : "") : key;
}

}  // namespace

std::string tuning_file() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache)
    return std::string(cache) + "/kinora/products";
  if (const char* home = std::getenv("HOME"); home && *home) return std::string(home) + "/.cache/kinora/products";
  return "";
}

static std::atomic<size_t> tuning_limit{0};

void limit_tuning(size_t bytes) { tuning_limit = bytes; }

static size_t tuning_memory() {
  if (tuning_limit) return tuning_limit;
  size_t left = 0, total = 0;
  check(cudaMemGetInfo(&left, &total));
  return left / 2;
}

int tuned_suggestion(const ProductShape& s) {
  static const bool off = [] {
    const char* value = std::getenv("KINORA_CUDA_TUNE");
    return value && *value == '0';
  }();
  if (off || s.dtype == DType::f32 || Trial::work(s) < kLeastWork || Trial::bytes(s) > kMostBytes) return 0;
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  static Known known;
  std::string key = key_of(s);
  if (const int* found = known.find(key)) return *found;
  check(cudaDeviceSynchronize());  // nothing else should run meanwhile
  if (Trial::bytes(s) > tuning_memory()) return 0;
  Trial trial(s);
  if (!trial.ready()) return 0;
  int best = trial.best();
  known.add(key, best);
  return best;
}

}  // namespace kinora::cuda
