// Dense convolution of films through cuDNN, some frames at a time: no run's tensors grow beyond what engines index with
// 32 bits, and each film of a batch is its own, as pictures are in conv.cpp.
#include <algorithm>

#include "cuda/cudnn.h"
#include "cuda/epilogue.h"
#include "cuda/kernels.h"

namespace kinora::cuda {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 30;  // of one run's x and of its y

// One run: output frames [first, first + problem.out_size()[0]) from input frames [from, from + problem.size[0]).
struct Piece {
  Convolution problem;
  int64_t first = 0, from = 0;
};

Convolution whole_film(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &w = spec.inputs[1].shape;
  const Attrs& attrs = spec.node.attrs;
  int axis = attrs.text("weight_layout") == "othwi" ? 1 : 2;
  Convolution c;
  c.dtype = spec.inputs[0].dtype;
  c.size = {x[1], x[2], x[3]};
  c.kernel = {w[axis], w[axis + 1], w[axis + 2]};
  c.stride = attrs.ints("stride");
  c.before = c.after = attrs.ints("padding");
  c.dilation = {1, 1, 1};
  c.in = x[4];
  c.out = w[0];
  c.bias = spec.inputs.size() == 3;
  c.act = attrs.text("act");
  return c;
}

// Pieces of equal length, so that few plans do; the last one may make frames of the one before again.
std::vector<Piece> pieces_of(const StepSpec& spec) {
  Convolution film = whole_film(spec);
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape;
  int64_t frames = y[1], stride = film.stride[0], kernel = film.kernel[0];
  int64_t by_out = kMostElements / y.product(2, 5), by_in = (kMostElements / x.product(2, 5) - kernel) / stride + 1;
  int64_t most = std::clamp<int64_t>(std::min(by_out, by_in), 1, frames);
  int64_t count = ceil_div(frames, most), length = ceil_div(frames, count);
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < count; ++i) {
    Piece piece{film, std::min(i * length, frames - length), 0};
    int64_t begin = piece.first * stride - film.before[0], end = begin + (length - 1) * stride + kernel;
    piece.from = std::max<int64_t>(begin, 0);
    piece.problem.size[0] = std::min(end, x[1]) - piece.from;
    piece.problem.before[0] = piece.from - begin;
    piece.problem.after[0] = std::max<int64_t>(end - x[1], 0);
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

}  // namespace

bool supports_conv3d(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape, &w = spec.inputs[1].shape;
  bool last = attrs.text("weight_layout") == "othwi" || w.product(2, 5) == 1;  // of one position, both are the same
  if (!last || attrs.integer("groups") != 1 || !is_act(attrs.text("act"))) return false;
  if (x.numel() == 0 || y.numel() == 0) return false;
  for (const TensorSpec& input : spec.inputs) {
    if (input.dtype != spec.inputs[0].dtype) return false;
  }
  std::vector<Piece> pieces = pieces_of(spec);
  // Where there are several runs, each must begin where an engine can read packs.
  auto size = static_cast<int64_t>(dtype_size(spec.output().dtype));
  bool aligned = x.product(2, 5) * size % 16 == 0 && y.product(2, 5) * size % 16 == 0;
  if ((x[0] > 1 || pieces.size() > 1) && !aligned) return false;
  return std::all_of(pieces.begin(), pieces.end(),
                     [](const Piece& piece) { return convolution_plan(piece.problem) != nullptr; });
}

Step make_conv3d(const StepSpec& spec) {
  struct Run {
    std::shared_ptr<const ConvolutionPlan> plan;
    int64_t x_at, y_at;  // bytes from a film's start
    bool bias_left;
    Epilogue rest;
  };
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape;
  auto size = static_cast<int64_t>(dtype_size(spec.output().dtype));
  int64_t batch = x[0], x_bytes = x.product(1, 5) * size, y_bytes = y.product(1, 5) * size;
  Step step;
  std::vector<Run> runs;
  for (const Piece& piece : pieces_of(spec)) {
    const Convolution& c = piece.problem;
    std::shared_ptr<const ConvolutionPlan> plan = convolution_plan(c);
    kinora::check(plan != nullptr, "conv3d: cuDNN has no plan for it");
    step.scratch_bytes = std::max(step.scratch_bytes, plan->workspace_bytes());
    Epilogue rest{c.dtype, c.out_size()[0] * y.product(2, 4), c.out, plan->activates() ? Act::none : act_of(c.act)};
    runs.push_back({plan, piece.from * x.product(2, 5) * size, piece.first * y.product(2, 5) * size,
                    c.bias && !plan->adds_bias(), rest});
  }
  bool biased = spec.inputs.size() == 3;
  step.run = [=](const StepArgs& args) {
    const void* bias = biased ? args.in[2] : nullptr;
    for (int64_t b = 0; b < batch; ++b) {
      for (const Run& run : runs) {
        void* out = static_cast<std::byte*>(args.out) + b * y_bytes + run.y_at;
        run.plan->run(stream_of(args), static_cast<const std::byte*>(args.in[0]) + b * x_bytes + run.x_at, args.in[1],
                      bias, nullptr, out, args.scratch);
        run.rest.enqueue(stream_of(args), out, run.bias_left ? bias : nullptr, nullptr);
      }
    }
  };
  return step;
}

}  // namespace kinora::cuda
