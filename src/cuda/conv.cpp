// Dense convolution through cuDNN. Each picture of a batch is its own run of one plan: an engine chosen for several
// could add in another order, and a picture's bits would depend on its company.
#include <numeric>

#include "cuda/cudnn.h"
#include "cuda/epilogue.h"
#include "cuda/kernels.h"

namespace kinora::cuda {
namespace {

Convolution describe(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &w = spec.inputs[1].shape;
  const Attrs& attrs = spec.node.attrs;
  bool last = attrs.text("weight_layout") == "ohwi";
  int64_t stride = attrs.integer("stride"), padding = attrs.integer("padding");
  Convolution c;
  c.dtype = spec.inputs[0].dtype;
  c.size = {x[1], x[2]};
  c.kernel = last ? Ints{w[1], w[2]} : Ints{w[2], w[3]};
  c.stride = {stride, stride};
  c.before = c.after = {padding, padding};
  c.dilation = {1, 1};
  c.in = x[3];
  c.out = w[0];
  c.bias = spec.inputs.size() == 3;
  c.act = attrs.text("act");
  if (x[0] > 1) {
    auto size = static_cast<int64_t>(dtype_size(c.dtype));
    c.alignment = std::gcd(std::gcd(x.product(1, 4), spec.output().shape.product(1, 4)) * size, c.alignment);
  }
  return c;
}

}  // namespace

bool supports_conv2d(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  const Shape& w = spec.inputs[1].shape;
  bool last = attrs.text("weight_layout") == "ohwi" || w[2] * w[3] == 1;  // of one position, both orders are the same
  if (!last || attrs.integer("groups") != 1 || !is_act(attrs.text("act"))) return false;
  if (spec.inputs[0].shape.numel() == 0 || spec.output().shape.numel() == 0) return false;
  for (const TensorSpec& input : spec.inputs) {
    if (input.dtype != spec.inputs[0].dtype) return false;
  }
  return convolution_plan(describe(spec)) != nullptr;
}

Step make_conv2d(const StepSpec& spec) {
  Convolution problem = describe(spec);
  std::shared_ptr<const ConvolutionPlan> plan = convolution_plan(problem);
  kinora::check(plan != nullptr, "conv2d: cuDNN has no plan for it");
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape;
  auto size = static_cast<int64_t>(dtype_size(problem.dtype));
  int64_t batch = x[0], x_bytes = x.product(1, 4) * size, y_bytes = y.product(1, 4) * size;
  bool bias_left = problem.bias && !plan->adds_bias();
  Epilogue rest{problem.dtype, y.product(0, 3), y[3], plan->activates() ? Act::none : act_of(problem.act)};
  Step step;
  step.scratch_bytes = plan->workspace_bytes();
  step.run = [=](const StepArgs& args) {
    const void* bias = problem.bias ? args.in[2] : nullptr;
    for (int64_t b = 0; b < batch; ++b) {
      plan->run(stream_of(args), static_cast<const std::byte*>(args.in[0]) + b * x_bytes, args.in[1], bias, nullptr,
                static_cast<std::byte*>(args.out) + b * y_bytes, args.scratch);
    }
    rest.enqueue(stream_of(args), args.out, bias_left ? bias : nullptr, nullptr);
  };
  return step;
}

}  // namespace kinora::cuda
