// Group norm for few groups of very many positions, in three kernels: each block takes mean and squared deviations of
// each channel over a stretch of positions, a second kernel joins those of a group in a fixed tree (Chan, Golub &
// LeVeque), a third normalises, perhaps into a film whose edges are repeated. The stretches depend on the shape of one
// batch item alone.
#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDeep = 4;                     // positions that a thread reads at once
constexpr int64_t kMostStretches = 1024;     // of a batch item
constexpr int64_t kLeastElements = 1 << 16;  // of a stretch

// How the [positions, channels] of a batch item are shared out: `lanes` threads side by side read one position's
// channels, `rows` positions at a time.
struct Sharing {
  int64_t positions, channels, stretch, stretches;  // stretch: positions of one block of the first kernel
  int lanes, rows, tiles;                           // tiles: blocks beside each other, for many channels
};

// Film with repeated edges: axes frames, height, width.
struct Edges {
  int out[3], in[3], before[3];
};

struct Moments {
  float count, mean, squares;  // squares: sum of (x - mean)²

  __device__ void join(const Moments& other) {
    if (other.count == 0) return;
    float total = count + other.count, part = other.count / total, delta = other.mean - mean;
    squares += other.squares + delta * delta * count * part;
    mean += delta * part;
    count = total;
  }
};

template <class T, int V>
__device__ inline void load_channels(const T* from, T (&to)[V]) {
  if constexpr (V == 1) {
    to[0] = *from;
  } else {
    static_assert(V == Pack<T>::kSize);
    *reinterpret_cast<Pack<T>*>(to) = load_pack(from);
  }
}

// out [batch, stretches, channels]: mean and squares of each channel; the count is the stretch's.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 4) moments_kernel(const T* x, float2* out, const Sharing s) {
  __shared__ float means[V][kThreads], squares[V][kThreads], counts[kThreads];
  begin_kernel();
  int thread = static_cast<int>(threadIdx.x), lane = thread % s.lanes, row = thread / s.lanes;
  int64_t column = (int64_t{blockIdx.y} * s.lanes + lane) * V;
  bool active = row < s.rows && column < s.channels;
  int64_t first = int64_t{blockIdx.x} * s.stretch, turn = s.rows * s.channels;
  int length = static_cast<int>(min(s.stretch, s.positions - first));
  const T* from = x + (int64_t{blockIdx.z} * s.positions + first + row) * s.channels + column;
  float count = 0, mean[V], square[V];
#pragma unroll
  for (int v = 0; v < V; ++v) mean[v] = square[v] = 0;
  for (int p = row; active && p < length; p += kDeep * s.rows) {
    alignas(16) T values[kDeep][V];
    int there = 0;
#pragma unroll
    for (int i = 0; i < kDeep; ++i) {
      if (p + i * s.rows >= length) continue;
      load_channels<T, V>(from, values[i]);
      from += turn;
      ++there;
    }
    auto here = static_cast<float>(there);
    float share = 1.0f / here, part = here / (count + here);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float total = 0, spread = 0;
#pragma unroll
      for (int i = 0; i < kDeep; ++i) total += i < there ? to_float(values[i][v]) : 0.0f;
      float centre = total * share;
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
        float off = i < there ? to_float(values[i][v]) - centre : 0.0f;
        spread += off * off;
      }
      float delta = centre - mean[v];
      square[v] += spread + delta * delta * count * part;
      mean[v] += delta * part;
    }
    count += here;
  }
  counts[thread] = count;
#pragma unroll
  for (int v = 0; v < V; ++v) means[v][thread] = mean[v], squares[v][thread] = square[v];
  for (int step = 1; step < s.rows; step *= 2) {
    __syncthreads();
    int other = thread + step * s.lanes;
    if (row % (2 * step) != 0 || row + step >= s.rows) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      Moments joined{counts[thread], means[v][thread], squares[v][thread]};
      joined.join({counts[other], means[v][other], squares[v][other]});
      means[v][thread] = joined.mean, squares[v][thread] = joined.squares;
    }
    counts[thread] += counts[other];
  }
  if (row != 0 || !active) return;
  float2* to = out + (int64_t{blockIdx.z} * s.stretches + blockIdx.x) * s.channels + column;
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = {means[v][thread], squares[v][thread]};
}

struct Affine {
  const void *weight, *bias;
  DType weight_type, bias_type;
  float eps;
};

// One block a group: what each of its channels is multiplied by, after its mean is taken away, and what is added.
// coefficients [3, batch, channels]: mean, slope, bias.
__global__ void __launch_bounds__(kThreads)
    coefficients_kernel(const float2* moments, float* coefficients, const Sharing s, int groups, const Affine affine) {
  __shared__ Moments shared[kThreads];
  begin_kernel();
  int thread = static_cast<int>(threadIdx.x);
  int64_t width = s.channels / groups, batch = gridDim.y, item = blockIdx.y, channel = blockIdx.x * width;
  const float2* from = moments + item * s.stretches * s.channels + channel;
  Moments own{};
  for (int64_t i = thread; i < s.stretches * width; i += kThreads) {
    int64_t stretch = i / width;
    float2 one = from[stretch * s.channels + i % width];
    own.join({static_cast<float>(min(s.stretch, s.positions - stretch * s.stretch)), one.x, one.y});
  }
  shared[thread] = own;
  for (int step = 1; step < kThreads; step *= 2) {
    __syncthreads();
    if (thread % (2 * step) == 0) {
      own.join(shared[thread + step]);
      shared[thread] = own;
    }
  }
  __syncthreads();
  Moments whole = shared[0];
  float factor = 1.0f / sqrtf(whole.squares / whole.count + affine.eps);
  for (int64_t c = channel + thread; c < channel + width; c += kThreads) {
    float* to = coefficients + item * s.channels + c;
    to[0] = whole.mean;
    to[batch * s.channels] = factor * load_float(affine.weight, affine.weight_type, c);
    to[2 * batch * s.channels] = load_float(affine.bias, affine.bias_type, c);
  }
}

// Walks through the positions of a film with repeated edges, and says which position of the film within each shows.
struct Walk {
  const Edges& e;
  int frame, row, column;

  __device__ Walk(const Edges& edges, int position) : e(edges) {
    row = position / e.out[2];
    column = position - row * e.out[2];
    frame = row / e.out[1];
    row -= frame * e.out[1];
  }
  __device__ void advance(int positions) {
    column += positions;
    while (column >= e.out[2]) {
      column -= e.out[2];
      if (++row == e.out[1]) row = 0, ++frame;
    }
  }
  __device__ int shown() const {
    auto inside = [&](int at, int axis) { return min(max(at - e.before[axis], 0), e.in[axis] - 1); };
    return (inside(frame, 0) * e.in[1] + inside(row, 1)) * e.in[2] + inside(column, 2);
  }
};

constexpr int kTurns = 8;  // groups of kDeep positions of a thread of the last kernel

// The activation is known in advance, or `other` and then found in the argument.
enum class Kind { none, silu, other };

template <class T, Kind kKind>
__device__ inline float finish(float y, Act act) {
  if constexpr (kKind == Kind::silu) return silu_for<T>(y);
  if constexpr (kKind == Kind::other) return activate<T>(y, act);
  return y;
}

// out [batch, `positions`, channels]; without edges it may be x.
template <class T, int V, bool kEdges, Kind kKind>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(const T* x, const float* coefficients, T* out, const Sharing s, int positions, const Edges edges,
                     Act act) {
  begin_kernel();
  int thread = static_cast<int>(threadIdx.x), lane = thread % s.lanes, row = thread / s.lanes;
  int64_t column = (int64_t{blockIdx.y} * s.lanes + lane) * V, item = blockIdx.z, batch = gridDim.z;
  int first = static_cast<int>(blockIdx.x) * kTurns * kDeep * s.rows + row;
  int end = min(first - row + kTurns * kDeep * s.rows, positions);
  if (row >= s.rows || column >= s.channels || first >= end) return;
  float mean[V], slope[V], bias[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const float* of_channel = coefficients + item * s.channels + column + v;
    mean[v] = of_channel[0];
    slope[v] = of_channel[batch * s.channels];
    bias[v] = of_channel[2 * batch * s.channels];
  }
  const T* from = x + item * s.positions * s.channels + column;
  T* to = out + (item * positions + first) * s.channels + column;
  Walk walk(edges, kEdges ? first : 0);
  for (int p = first; p < end; p += kDeep * s.rows) {
    alignas(16) T values[kDeep][V];
#pragma unroll
    for (int i = 0; i < kDeep; ++i) {
      int at = p + i * s.rows;
      if (at >= end) continue;
      if constexpr (kEdges) {
        at = walk.shown();
        walk.advance(s.rows);
      }
      load_channels<T, V>(from + at * s.channels, values[i]);
    }
#pragma unroll
    for (int i = 0; i < kDeep; ++i) {
      if (p + i * s.rows >= end) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float y = fmaf(to_float(values[i][v]) - mean[v], slope[v], bias[v]);
        values[i][v] = from_float<T>(finish<T, kKind>(y, act));
      }
      if constexpr (V == 1) {
        *to = values[i][0];
      } else {
        store_pack(to, *reinterpret_cast<const Pack<T>*>(values[i]));
      }
      to += s.rows * s.channels;
    }
  }
}

template <class T, int V>
auto normalise_for(bool edges, Act act) {
  if (act == Act::silu)
    return edges ? normalise_kernel<T, V, true, Kind::silu> : normalise_kernel<T, V, false, Kind::silu>;
  if (act == Act::none)
    return edges ? normalise_kernel<T, V, true, Kind::none> : normalise_kernel<T, V, false, Kind::none>;
  return edges ? normalise_kernel<T, V, true, Kind::other> : normalise_kernel<T, V, false, Kind::other>;
}

Sharing share(int64_t positions, int64_t channels, int group) {
  Sharing s{};
  s.positions = positions;
  s.channels = channels;
  s.stretch = std::max({ceil_div(positions, kMostStretches), ceil_div(kLeastElements, channels), int64_t{1}});
  s.stretches = ceil_div(positions, s.stretch);
  int64_t packs = channels / group;
  s.lanes = static_cast<int>(std::min<int64_t>(packs, kThreads));
  s.rows = kThreads / s.lanes;
  s.tiles = static_cast<int>(ceil_div(packs, s.lanes));
  return s;
}

struct GroupNorm {
  DType dtype, weight_type, bias_type;
  int64_t batch, positions, out_positions, channels, stretches;
  int groups;
  float eps;
  Act act;
  bool padded;
  Edges edges;

  size_t moments_bytes() const { return static_cast<size_t>(ceil_div(batch * stretches * channels * 8, 256) * 256); }
  size_t scratch_bytes() const { return moments_bytes() + static_cast<size_t>(3 * batch * channels * 4); }

  template <class T, int V>
  void enqueue(const StepArgs& args) const {
    Sharing s = share(positions, channels, V);
    cudaStream_t stream = stream_of(args);
    auto* moments = reinterpret_cast<float2*>(args.scratch);
    auto* coefficients = reinterpret_cast<float*>(args.scratch + moments_bytes());
    const auto* x = static_cast<const T*>(args.in[0]);
    auto* out = static_cast<T*>(args.out);
    auto items = static_cast<unsigned>(batch), tiles = static_cast<unsigned>(s.tiles);
    start_kernel(moments_kernel<T, V>, dim3(static_cast<unsigned>(s.stretches), tiles, items), kThreads, 0, stream, x,
                 moments, s);
    start_kernel(coefficients_kernel, dim3(static_cast<unsigned>(groups), items), kThreads, 0, stream, moments,
                 coefficients, s, groups, Affine{args.in[1], args.in[2], weight_type, bias_type, eps});
    dim3 grid(static_cast<unsigned>(ceil_div(out_positions, int64_t{kTurns} * kDeep * s.rows)), tiles, items);
    start_kernel(normalise_for<T, V>(padded, act), grid, kThreads, 0, stream, x, coefficients, out, s,
                 static_cast<int>(out_positions), edges, act);
  }
};

}  // namespace

bool supports_group_norm(const StepSpec& spec) {
  constexpr int64_t kMostBlocks = 65535;
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape;
  bool padded = spec.node.attrs.has("before");
  return y.numel() > 0 && x.numel() > 0 && is_act(spec.node.attrs.text("act")) && x[0] <= kMostBlocks &&
         x[-1] <= kMostBlocks * kThreads && (!padded || x.rank() <= 5) &&
         y.product(1, y.rank() - 1) < (int64_t{1} << 30);
}

// Also group_norm_pad.
Step make_group_norm(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape;
  const Attrs& attrs = spec.node.attrs;
  GroupNorm n{};
  n.dtype = spec.output().dtype;
  n.weight_type = spec.inputs[1].dtype, n.bias_type = spec.inputs[2].dtype;
  n.batch = x[0], n.channels = x[-1];
  n.positions = x.product(1, x.rank() - 1), n.out_positions = y.product(1, y.rank() - 1);
  n.stretches = share(n.positions, n.channels, 1).stretches;
  n.groups = static_cast<int>(attrs.integer("groups"));
  n.eps = static_cast<float>(attrs.real("eps"));
  n.act = act_of(attrs.text("act"));
  n.padded = attrs.has("before");
  for (int i = 0; i < 3; ++i) {
    int axis = x.rank() - 4 + i;  // the last three before the channels
    bool there = n.padded && axis >= 1;
    n.edges.in[i] = there ? static_cast<int>(x[axis]) : 1;
    n.edges.out[i] = there ? static_cast<int>(y[axis]) : 1;
    n.edges.before[i] = there ? static_cast<int>(attrs.ints("before")[static_cast<size_t>(axis)]) : 0;
  }
  Step step;
  step.in_place = !n.padded;
  step.scratch_bytes = n.scratch_bytes();
  step.run = [n](const StepArgs& args) {
    with_float(n.dtype, [&]<class T>(T) {
      constexpr int kPack = Pack<T>::kSize;
      auto address = reinterpret_cast<uintptr_t>(args.in[0]) | reinterpret_cast<uintptr_t>(args.out);
      if (n.channels % kPack == 0 && address % 16 == 0) {
        n.enqueue<T, kPack>(args);
      } else {
        n.enqueue<T, 1>(args);
      }
    });
  };
  return step;
}

}  // namespace kinora::cuda
