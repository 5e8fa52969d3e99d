#include "cuda/cudnn.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/cudnn_descriptor.h"

namespace kinora::cuda {
using namespace cudnn;
namespace {

constexpr int64_t kWorkspaceLimit = int64_t{256} << 20;

// Names of tensors in a graph; from kBetween on, those that are never stored.
enum : int64_t { kX = 1, kWeight, kBias, kResidual, kY, kBetween };

// cuDNN orders the axes batch, channels, space; strides say that channels lie last.
Descriptor tensor(int64_t id, DType dtype, int64_t first, int64_t channels, const Ints& space) {
  size_t rank = space.size() + 2;
  Ints extents{first, channels}, strides(rank, 1);
  extents.insert(extents.end(), space.begin(), space.end());
  int64_t stride = channels;
  for (size_t axis = rank; axis-- > 2;) {
    strides[axis] = stride;
    stride *= extents[axis];
  }
  strides[0] = stride;
  Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id);
  d.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, data_type(dtype));
  d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, extents).set(CUDNN_ATTR_TENSOR_STRIDES, strides);
  d.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, int64_t{16});
  if (id >= kBetween) d.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, true);
  d.finalize();
  return d;
}

// What a plan takes on beside the convolution.
struct Parts {
  bool bias = false, act = false, residual = false;
  bool operator==(const Parts&) const = default;
};

// The graph of a problem's parts, from tensors to the list of operations.
class GraphBuilder {
 public:
  GraphBuilder(const Convolution& problem, const Parts& parts) : p_(problem), out_(problem.out_size()) {
    left_ = 1 + parts.bias + parts.act + parts.residual;
    convolution();
    if (parts.bias) pointwise(CUDNN_POINTWISE_ADD, kBias, Ints(out_.size(), 1));
    if (parts.act) pointwise(act_mode(), 0, {});
    if (parts.residual) pointwise(CUDNN_POINTWISE_ADD, kResidual, out_);
  }

  Descriptor finish(cudnnHandle_t handle) {
    std::vector<cudnnBackendDescriptor_t> raw;
    bool sound = true;
    for (const Descriptor& op : operations_) {
      raw.push_back(op.raw());
      sound = sound && op.ok();
    }
    Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    if (!sound) raw.clear();  // refused below
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
    graph.set_all(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(raw.size()),
                  raw.data());
    graph.finalize();
    return graph;
  }

 private:
  // Keeps a descriptor for as long as the builder lives.
  const Descriptor& keep(Descriptor d) { return *kept_.emplace_back(std::make_unique<Descriptor>(std::move(d))); }

  // The next operation's result: y itself when it is the last one.
  const Descriptor& result() {
    bool last = --left_ == 0;
    return keep(last ? tensor(kY, p_.dtype, 1, p_.out, out_) : tensor(kBetween + left_, DType::f32, 1, p_.out, out_));
  }

  cudnnPointwiseMode_t act_mode() const {
    if (p_.act == "relu") return CUDNN_POINTWISE_RELU_FWD;
    return p_.act == "silu" ? CUDNN_POINTWISE_SWISH_FWD : CUDNN_POINTWISE_GELU_APPROX_TANH_FWD;
  }

  void convolution() {
    const Descriptor& x = keep(tensor(kX, p_.dtype, 1, p_.in, p_.size));
    const Descriptor& w = keep(tensor(kWeight, p_.dtype, p_.out, p_.in / p_.groups, p_.kernel));
    Descriptor shape(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    shape.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, static_cast<int64_t>(p_.size.size()));
    shape.set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
    shape.set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, CUDNN_CROSS_CORRELATION);
    shape.set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, p_.before).set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, p_.after);
    shape.set(CUDNN_ATTR_CONVOLUTION_DILATIONS, p_.dilation).set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, p_.stride);
    shape.finalize();
    const Descriptor& kept_shape = keep(std::move(shape));
    last_ = &result();
    Descriptor op(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x).set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, *last_);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, kept_shape);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1.0f);
    op.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 0.0f);
    op.finalize();
    operations_.push_back(std::move(op));
  }

  // With a second operand of that name, or none.
  void pointwise(cudnnPointwiseMode_t mode, int64_t operand, const Ints& space) {
    Descriptor kind(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    kind.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
    kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT).finalize();
    const Descriptor& kept_kind = keep(std::move(kind));
    const Descriptor& x = *last_;
    last_ = &result();
    Descriptor op(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kept_kind);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (operand) {
      op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, keep(tensor(operand, p_.dtype, 1, p_.out, space)));
    }
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, *last_).finalize();
    operations_.push_back(std::move(op));
  }

  const Convolution& p_;
  Ints out_;
  int64_t left_ = 0;  // operations to come
  const Descriptor* last_ = nullptr;
  std::vector<std::unique_ptr<Descriptor>> kept_;
  std::vector<Descriptor> operations_;
};

bool acceptable(cudnnBackendNumericalNote_t note, DType dtype) {
  switch (note) {
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE: return dtype != DType::f32;  // there it computes in TF32
    case CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP: return true;
    default: return false;  // down-conversion, transforms, an order that timing decides
  }
}

class Plan final : public ConvolutionPlan {
 public:
  Plan(Descriptor plan, cudnnHandle_t handle, const Parts& parts, size_t workspace, int64_t engine)
      : plan_(std::move(plan)), handle_(handle), parts_(parts), workspace_(workspace), engine_(engine) {}

  int64_t engine() const override { return engine_; }
  size_t workspace_bytes() const override { return workspace_; }
  bool adds_bias() const override { return parts_.bias; }
  bool activates() const override { return parts_.act; }
  bool adds_residual() const override { return parts_.residual; }

  void run(cudaStream_t stream, const void* x, const void* weight, const void* bias, const void* residual, void* y,
           void* workspace) const override {
    std::lock_guard guard(lock());
    check_cudnn(execute(stream, x, weight, bias, residual, y, workspace), "a convolution failed");
  }

  cudnnStatus_t execute(cudaStream_t stream, const void* x, const void* weight, const void* bias, const void* residual,
                        void* y, void* workspace) const {
    Ints ids{kX, kWeight, kY};
    std::vector<const void*> data{x, weight, y};
    if (parts_.bias) {
      ids.push_back(kBias);
      data.push_back(bias);
    }
    if (parts_.residual) {
      ids.push_back(kResidual);
      data.push_back(residual);
    }
    return execute_plan(handle_, stream, plan_, ids, data, workspace);
  }

 private:
  Descriptor plan_;
  cudnnHandle_t handle_;
  Parts parts_;
  size_t workspace_;
  int64_t engine_;
};

int64_t product(const Ints& values) {
  int64_t total = 1;
  for (int64_t v : values) total *= v;
  return total;
}

// Runs a plan once, on memory of no meaning: its code is on the device afterwards, so that a recorded run finds it
// there, and an engine that fails only when it runs is found out. Says yes where memory is too short to try.
bool runs(const Plan& plan, const Convolution& p) {
  auto size = static_cast<int64_t>(dtype_size(p.dtype));
  int64_t results = product(p.out_size()) * p.out * size;
  Trial trial;
  void* x = trial.take(product(p.size) * p.in * size);
  void* weight = trial.take(product(p.kernel) * p.in / p.groups * p.out * size);
  void* bias = trial.take(plan.adds_bias() ? p.out * size : 0);
  void* residual = trial.take(plan.adds_residual() ? results : 0);
  void* y = trial.take(results);
  void* workspace = trial.take(static_cast<int64_t>(plan.workspace_bytes()));
  if (!trial.enough()) return true;
  return try_run([&](cudaStream_t stream) { return plan.execute(stream, x, weight, bias, residual, y, workspace); }) ==
         CUDNN_STATUS_SUCCESS;
}

// The plan of one engine configuration; null when it does not do.
std::shared_ptr<const Plan> try_engine(const Descriptor& config, cudnnHandle_t handle, const Convolution& problem,
                                       const Parts& parts) {
  Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.raw();
  if (config.get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw) != 1) return nullptr;
  cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
  int64_t count =
      engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT, notes);
  for (int64_t i = 0; i < std::min<int64_t>(count, CUDNN_NUMERICAL_NOTE_TYPE_COUNT); ++i) {
    if (!acceptable(notes[i], problem.dtype)) return nullptr;
  }
  Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config).finalize();
  int64_t workspace = 0;
  if (plan.get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &workspace) != 1) return nullptr;
  if (workspace > kWorkspaceLimit) return nullptr;
  int64_t index = -1;
  engine.get(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &index);
  auto made = std::make_shared<Plan>(std::move(plan), handle, parts, static_cast<size_t>(workspace), index);
  return runs(*made, problem) ? made : nullptr;
}

// The first plan that does after `skip` others that do.
std::shared_ptr<const Plan> find_plan(const Convolution& problem, const Parts& parts, cudnnHandle_t handle, int skip) {
  GraphBuilder builder(problem, parts);
  Descriptor graph = builder.finish(handle);
  for (cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_B, CUDNN_HEUR_MODE_FALLBACK}) {
    for (const Descriptor& config : engine_configs(graph, mode)) {
      if (auto plan = try_engine(config, handle, problem, parts); plan && skip-- == 0) return plan;
    }
  }
  return nullptr;
}

}  // namespace

Ints Convolution::out_size() const {
  Ints result;
  for (size_t i = 0; i < size.size(); ++i) {
    result.push_back((size[i] + before[i] + after[i] - dilation[i] * (kernel[i] - 1) - 1) / stride[i] + 1);
  }
  return result;
}

bool Convolution::operator<(const Convolution& o) const {
  auto all = [](const Convolution& c) {
    return std::tie(c.dtype, c.size, c.kernel, c.stride, c.before, c.after, c.dilation, c.in, c.out, c.groups, c.bias,
                    c.residual, c.act);
  };
  return all(*this) < all(o);
}

std::shared_ptr<const ConvolutionPlan> convolution_plan(const Convolution& problem, int suggestion) {
  // Never destroyed, as the handles.
  static auto& plans = *new std::map<std::tuple<int, int, Convolution>, std::shared_ptr<const ConvolutionPlan>>;
  int device = 0;
  check(cudaGetDevice(&device));
  std::lock_guard guard(lock());
  auto [entry, fresh] = plans.try_emplace({device, suggestion, problem});
  if (!fresh) return entry->second;
  try {
    cudnnHandle_t handle = handle_of(device);
    Parts all{problem.bias, problem.act != "none", problem.residual};
    // Everything at once, then with less and less beside the convolution.
    std::vector<Parts> tried;
    for (const Parts& parts : {all, Parts{all.bias, all.act}, Parts{all.bias}, Parts{}}) {
      if (entry->second || std::find(tried.begin(), tried.end(), parts) != tried.end()) continue;
      tried.push_back(parts);
      entry->second = find_plan(problem, parts, handle, suggestion);
    }
  } catch (...) {
    plans.erase(entry);
    throw;
  }
  return entry->second;
}

}  // namespace kinora::cuda
