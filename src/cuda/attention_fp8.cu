// Attention whose two products are of E4M3 codes. One pass over q, k and v finds their ranges, one writes codes, cuDNN
// attends to some of the keys at a time, and one pass joins what it found. Only exact steps are added around it:
// - a vector taken from all keys changes no softmax, and weights that sum to 1 carry a vector taken from all values
//   through to the result: codes are of what differs from the mean (as in SageAttention, arXiv 2410.02367);
// - each dimension of v has a scale of its own, which the result's dimension takes up;
// - Hopper adds products of 8-bit floats to sums of 13 bits behind the point, in which a long sum loses what comes
//   late: sums end after kMostKeys, and float32 takes over.
#include "cuda/attention.cuh"
#include "cuda/cudnn_attention.h"
#include "cuda/cudnn_attention_fp8.h"
#include "cuda/kernels.h"
#include "cuda/quantize.cuh"
#include "ops/attention.h"

namespace kinora::cuda {
namespace {

constexpr int64_t kMostKeys = 3072;
constexpr int64_t kKeyTile = 256, kQueryTile = 128;  // what cuDNN's kernel takes in at once
constexpr int64_t kMostResultBytes = int64_t{1} << 30;
constexpr int64_t kShort = 1024;  // tokens, below which codes are not worth while
constexpr float kWeightScale = 448.0f;

// A head's dimensions are 16 packs of 8; a block takes in 16 tokens at once.
constexpr int kDim = static_cast<int>(kFp8HeadDim), kPack = 8, kLanes = kDim / kPack, kRows = 16;
constexpr int kThreads = kLanes * kRows, kRangeTokens = 256, kCodeTokens = 64, kJoinRows = 128;

enum : int { kOfQ, kOfK, kOfV, kInputs };

struct Input {
  const void* base;
  HeadStrides at;
  int tokens;
};
struct Inputs {
  Input of[kInputs];
  int heads;
};

// Of one dimension over tokens.
struct Range {
  float sum, low, high;
};
__device__ inline Range join(const Range& a, const Range& b) {
  return {a.sum + b.sum, fminf(a.low, b.low), fmaxf(a.high, b.high)};
}
__device__ inline Range no_range() { return {0.0f, INFINITY, -INFINITY}; }

// Ranges of all tokens as bits that order as magnitudes do: of q, of k less its means.
struct Summary {
  float* means;     // [inputs, heads · 128]; not of q
  float* scales;    // [heads · 128], of v
  float* inverses;  // [heads · 128], of v
  uint32_t* peaks;  // [2, heads]
  Fp8Numbers* numbers;
};

// grid: heads, blocks of kRangeTokens, inputs. parts: [inputs, blocks, heads · 128]
template <class T>
__global__ void __launch_bounds__(kThreads) range_kernel(const __grid_constant__ Inputs in, Range* parts) {
  __shared__ Range shared[kRows][kDim];
  const Input& x = in.of[blockIdx.z];
  int lane = static_cast<int>(threadIdx.x) % kLanes, row = static_cast<int>(threadIdx.x) / kLanes;
  int begin = static_cast<int>(blockIdx.y) * kRangeTokens, end = min(begin + kRangeTokens, x.tokens);
  const T* base = static_cast<const T*>(x.base) + blockIdx.x * x.at.head + lane * kPack;
  Range range[kPack];
#pragma unroll
  for (int i = 0; i < kPack; ++i) range[i] = no_range();
#pragma unroll 4
  for (int t = begin + row; t < end; t += kRows) {
    Pack<T> pack = load_pack(base + t * x.at.token);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      float value = to_float(pack.values[i]);
      range[i] = join(range[i], {value, value, value});
    }
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) shared[row][lane * kPack + i] = range[i];
  __syncthreads();
  int column = static_cast<int>(threadIdx.x);
  if (column >= kDim) return;
  Range all = shared[0][column];
  for (int i = 1; i < kRows; ++i) all = join(all, shared[i][column]);
  parts[((int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * kDim + column] = all;
}

// grid: heads, inputs; a block of kDim · kSummaryRows
constexpr int kSummaryRows = 8;
__global__ void __launch_bounds__(kDim* kSummaryRows)
    summary_kernel(const __grid_constant__ Inputs in, const Range* parts, int blocks, Summary out) {
  __shared__ Range shared[kSummaryRows][kDim];
  __shared__ uint32_t peaks[kDim];
  int column = static_cast<int>(threadIdx.x) % kDim, row = static_cast<int>(threadIdx.x) / kDim;
  int head = static_cast<int>(blockIdx.x), heads = static_cast<int>(gridDim.x), input = static_cast<int>(blockIdx.y);
  Range range = no_range();
  for (int b = row; b < blocks; b += kSummaryRows) {
    range = join(range, parts[((int64_t{input} * blocks + b) * heads + head) * kDim + column]);
  }
  shared[row][column] = range;
  __syncthreads();
  if (row == 0) {
    for (int i = 1; i < kSummaryRows; ++i) range = join(range, shared[i][column]);
    float mean = input == kOfQ ? 0.0f : __fdiv_rn(range.sum, static_cast<float>(in.of[input].tokens));
    float peak = fmaxf(range.high - mean, mean - range.low);
    uint32_t bits = isfinite(range.sum) ? magnitude_bits(peak) : 0x7fc00000u;  // a NaN reaches the sum alone
    int at = head * kDim + column;
    out.means[input * heads * kDim + at] = mean;
    peaks[column] = bits;
    if (input == kOfV) {
      RowScaleOnDevice scale = row_scale_of(bits, true);
      out.scales[at] = scale.scale;
      out.inverses[at] = scale.inverse;
    }
  }
  __syncthreads();
  if (threadIdx.x != 0 || input == kOfV) return;
  uint32_t most = 0;
  for (int i = 0; i < kDim; ++i) most = max(most, peaks[i]);
  out.peaks[input * heads + head] = most;
}

// grid: heads, blocks of kCodeTokens, inputs. codes: [tokens, heads, 128] of each input
struct Codes {
  uint8_t* of[kInputs];
};
template <class T>
__global__ void __launch_bounds__(kThreads)
    codes_kernel(const __grid_constant__ Inputs in, Summary summary, const __grid_constant__ Codes codes) {
  int input = static_cast<int>(blockIdx.z), heads = static_cast<int>(gridDim.x), head = static_cast<int>(blockIdx.x);
  const Input& x = in.of[input];
  int lane = static_cast<int>(threadIdx.x) % kLanes, row = static_cast<int>(threadIdx.x) / kLanes;
  int begin = static_cast<int>(blockIdx.y) * kCodeTokens, end = min(begin + kCodeTokens, x.tokens);
  int at = head * kDim + lane * kPack;
  float mean[kPack], inverse[kPack];
  if (input == kOfV) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) inverse[i] = summary.inverses[at + i];
  } else {
    uint32_t peak = 0;
    for (int i = 0; i < heads; ++i) peak = max(peak, summary.peaks[input * heads + i]);
    RowScaleOnDevice scale = row_scale_of(peak, true);
#pragma unroll
    for (int i = 0; i < kPack; ++i) inverse[i] = scale.inverse;
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
      Fp8Numbers& n = *summary.numbers;
      (input == kOfQ ? n.q : n.k).value = scale.scale;
      if (input == kOfQ) {
        n.v.value = n.out.value = 1.0f;
        n.weight.value = kWeightScale;
        n.weight_inverse.value = 1.0f / kWeightScale;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) mean[i] = summary.means[input * heads * kDim + at + i];
  const T* base = static_cast<const T*>(x.base) + head * x.at.head + lane * kPack;
#pragma unroll
  for (int k = 0; k < kCodeTokens / kRows; ++k) {
    int t = begin + row + k * kRows;
    if (t >= end) break;
    Pack<T> pack = load_pack(base + t * x.at.token);
    float values[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) values[i] = __fmul_rn(to_float(pack.values[i]) - mean[i], inverse[i]);
    store_codes(codes.of[input] + int64_t{t} * heads * kDim + at, values, 1.0f, true);
  }
}

// What cuDNN found for some of the keys each, of `queries` queries: codes [parts, queries, heads, 128] and logarithms
// of sums [parts, heads, queries].
struct Found {
  const uint8_t* codes;
  const float* stats;
  int parts, queries, heads;
};
constexpr int kJoinPack = 16, kJoinLanes = kDim / kJoinPack;

// A thread joins 16 dimensions of one query and head. out: the first of these queries
template <class T>
__global__ void __launch_bounds__(kJoinRows* kJoinLanes)
    join_kernel(const __grid_constant__ Found found, const float* scales, const float* means, T* out, int64_t stride) {
  int row = static_cast<int>(blockIdx.x * kJoinRows + threadIdx.x / kJoinLanes);  // kMostResultBytes keeps it small
  int lane = static_cast<int>(threadIdx.x) % kJoinLanes, heads = found.heads;
  if (row >= found.queries * heads) return;
  int head = row % heads, query = row / heads;
  const float* stats = found.stats + int64_t{head} * found.queries + query;
  int64_t step = int64_t{found.queries} * heads;
  float top = stats[0];
  for (int p = 1; p < found.parts; ++p) top = fmaxf(top, stats[p * step]);
  float sum = 0, total[kJoinPack] = {};
  for (int p = 0; p < found.parts; ++p) {
    float weight = __expf(stats[p * step] - top);
    sum += weight;
    uint4 four = *reinterpret_cast<const uint4*>(found.codes + (p * step + row) * kDim + lane * kJoinPack);
    uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < kJoinPack; i += 2) {
      float2 pair = fp8_pair(words[i / 4] >> (i % 4 * 8));
      total[i] = fmaf(weight, pair.x, total[i]);
      total[i + 1] = fmaf(weight, pair.y, total[i + 1]);
    }
  }
  float share = __fdiv_rn(1.0f, sum);
  int at = head * kDim + lane * kJoinPack;
  T* to = out + query * stride + at;
#pragma unroll
  for (int i = 0; i < kJoinPack; i += kPack) {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      pack.values[k] = from_float<T>(fmaf(total[i + k] * share, scales[at + i + k], means[at + i + k]));
    }
    store_pack(to + i, pack);
  }
}

// How one batch item's work is cut: keys so that sums stay short, queries so that what is found for them stays small.
struct Cut {
  int64_t queries, keys, heads, key_part, key_parts, query_part, query_parts;

  explicit Cut(const StepSpec& spec) {
    const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
    queries = q[1], keys = k[1], heads = q[2];
    int64_t parts = ceil_div(keys, kMostKeys);
    key_part = parts == 1 ? keys : ceil_div(ceil_div(keys, parts), kKeyTile) * kKeyTile;
    key_parts = ceil_div(keys, key_part);
    int64_t calls = ceil_div(key_parts * queries * heads * kDim, kMostResultBytes);
    query_part = std::min(queries, ceil_div(ceil_div(queries, calls), kQueryTile) * kQueryTile);
    query_parts = ceil_div(queries, query_part);
  }
  int64_t last_keys() const { return keys - (key_parts - 1) * key_part; }
  // All parts of the queries are of one length: the last one begins early.
  int64_t first_query(int64_t part) const { return std::min(part * query_part, queries - query_part); }
  Fp8AttentionProblem problem(bool last) const { return {query_part, last ? last_keys() : key_part, heads}; }
};

struct Plans {
  std::shared_ptr<const Fp8AttentionPlan> most, last;
  explicit Plans(const Cut& cut)
      : most(fp8_attention_plan(cut.problem(false))), last(most ? fp8_attention_plan(cut.problem(true)) : nullptr) {}
};

// Offsets in scratch memory.
struct Scratch {
  size_t size = 0, parts, means, scales, inverses, peaks, numbers, codes[kInputs], found, stats, workspace;
  int blocks;

  size_t take(int64_t bytes) {
    size_t at = size;
    size += static_cast<size_t>(ceil_div(bytes, 256) * 256);
    return at;
  }
  Scratch(const Cut& c, const Plans& plans) {
    int64_t row = c.heads * kDim;
    blocks = static_cast<int>(ceil_div(std::max(c.queries, c.keys), kRangeTokens));
    parts = take(kInputs * blocks * row * int64_t{sizeof(Range)});
    means = take(kInputs * row * 4), scales = take(row * 4), inverses = take(row * 4);
    peaks = take(2 * c.heads * 4), numbers = take(sizeof(Fp8Numbers));
    codes[kOfQ] = take(c.queries * row), codes[kOfK] = take(c.keys * row), codes[kOfV] = take(c.keys * row);
    found = take(c.key_parts * c.query_part * row);
    stats = take(c.key_parts * c.query_part * c.heads * 4);
    workspace = take(static_cast<int64_t>(std::max(plans.most->workspace_bytes(), plans.last->workspace_bytes())));
  }
};

template <class T>
void enqueue_codes(const Inputs& in, const Scratch& at, std::byte* scratch, const Summary& summary,
                   cudaStream_t stream) {
  auto heads = static_cast<unsigned>(in.heads);
  auto* parts = reinterpret_cast<Range*>(scratch + at.parts);
  range_kernel<T><<<dim3(heads, static_cast<unsigned>(at.blocks), kInputs), kThreads, 0, stream>>>(in, parts);
  check(cudaGetLastError());
  summary_kernel<<<dim3(heads, kInputs), kDim * kSummaryRows, 0, stream>>>(in, parts, at.blocks, summary);
  check(cudaGetLastError());
  Codes codes{};
  for (int i = 0; i < kInputs; ++i) codes.of[i] = reinterpret_cast<uint8_t*>(scratch + at.codes[i]);
  auto blocks = static_cast<unsigned>(ceil_div(std::max(in.of[kOfQ].tokens, in.of[kOfK].tokens), kCodeTokens));
  codes_kernel<T><<<dim3(heads, blocks, kInputs), kThreads, 0, stream>>>(in, summary, codes);
  check(cudaGetLastError());
}

}  // namespace

bool supports_fp8_attention(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  AttentionExtras extras = attention_extras(spec.inputs);
  bool plain = !extras.bias && !extras.lengths && !attrs.integer("causal") && attrs.real("softcap") <= 0;
  if (!plain || spec.output().dtype == DType::f32 || device_limits().major != 9) return false;
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  constexpr int64_t kMost = int64_t{65535} * kCodeTokens;  // blocks of a grid's second axis
  if (q[0] == 0 || q[2] == 0 || q[2] != k[2] || q[3] != kDim) return false;
  if (q[1] < kShort || k[1] < kShort || q[1] > kMost || k[1] > kMost) return false;
  if (!AttentionStrides(spec).all_multiples(kPack)) return false;
  return !spec.placed || Plans(Cut(spec)).last != nullptr;  // a plan takes a second to make
}

Step make_fp8_attention(const StepSpec& spec) {
  Cut cut(spec);
  Plans plans(cut);
  kinora::check(plans.last != nullptr, "attention: cuDNN has no plan for 8-bit codes");
  Scratch at(cut, plans);
  DType dtype = spec.output().dtype;
  int64_t batch = spec.inputs[0].shape[0];
  AttentionStrides strides(spec);
  auto scale = static_cast<float>(spec.node.attrs.real("scale"));
  Step step;
  step.scratch_bytes = at.size;
  step.run = [=](const StepArgs& args) {
    cudaStream_t stream = stream_of(args);
    auto* scratch = static_cast<std::byte*>(args.scratch);
    auto floats = [&](size_t offset) { return reinterpret_cast<float*>(scratch + offset); };
    int64_t row = cut.heads * kDim;
    Summary summary{floats(at.means), floats(at.scales), floats(at.inverses),
                    reinterpret_cast<uint32_t*>(scratch + at.peaks),
                    reinterpret_cast<Fp8Numbers*>(scratch + at.numbers)};
    auto one = [&]<class T>(T, int64_t b) {
      const auto& [q, k, v, out] = strides;
      auto item = [&](size_t i, const HeadStrides& s) { return static_cast<const T*>(args.in[i]) + b * s.batch; };
      auto tokens = [](int64_t n) { return static_cast<int>(n); };
      Inputs in{
          {{item(0, q), q, tokens(cut.queries)}, {item(1, k), k, tokens(cut.keys)}, {item(2, v), v, tokens(cut.keys)}},
          static_cast<int>(cut.heads)};
      enqueue_codes<T>(in, at, scratch, summary, stream);
      for (int64_t i = 0; i < cut.query_parts; ++i) {
        int64_t first = cut.first_query(i);
        for (int64_t p = 0; p < cut.key_parts; ++p) {
          const Fp8AttentionPlan& plan = p + 1 < cut.key_parts ? *plans.most : *plans.last;
          int64_t key = p * cut.key_part * row;
          plan.run(stream, {.q = scratch + at.codes[kOfQ] + first * row,
                            .k = scratch + at.codes[kOfK] + key,
                            .v = scratch + at.codes[kOfV] + key,
                            .out = scratch + at.found + p * cut.query_part * row,
                            .stats = floats(at.stats) + p * cut.query_part * cut.heads,
                            .numbers = summary.numbers,
                            .scale = scale,
                            .workspace = scratch + at.workspace});
        }
        Found found{reinterpret_cast<const uint8_t*>(scratch + at.found), floats(at.stats),
                    static_cast<int>(cut.key_parts), static_cast<int>(cut.query_part), static_cast<int>(cut.heads)};
        auto blocks = static_cast<unsigned>(ceil_div(cut.query_part * cut.heads, kJoinRows));
        T* to = static_cast<T*>(args.out) + b * out.batch + first * out.token;
        join_kernel<<<blocks, kJoinRows * kJoinLanes, 0, stream>>>(found, summary.scales, summary.means + kOfV * row,
                                                                   to, out.token);
        check(cudaGetLastError());
      }
    };
    for (int64_t b = 0; b < batch; ++b) {
      if (dtype == DType::bf16) {
        one(__nv_bfloat16{}, b);
      } else {
        one(__half{}, b);
      }
    }
  };
  return or_own_attention(spec, std::move(step));
}

}  // namespace kinora::cuda
