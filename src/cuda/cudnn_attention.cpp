// Two descriptions of one formula. cuDNN from 9.13.1 on has an operation for the whole of attention; before, it
// recognises the products, the softmax taken apart, and their order (the second one in Hopper's engines is the same).
#include "cuda/cudnn_attention.h"

#include <algorithm>
#include <limits>
#include <map>
#include <tuple>

#include "core/log.h"
#include "cuda/cudnn_operations.h"
#include "cuda/kernels.h"
#include "ops/attention.h"

namespace kinora::cuda {
using namespace cudnn;
namespace {

// Names of tensors in a graph.
enum : int64_t { kQ = 1, kK, kV, kOut, kScale, kQueries, kKeys };

enum class Form { whole, taken_apart };

// The operations of one form.
class GraphBuilder : public Operations {
 public:
  GraphBuilder(const AttentionProblem& problem, Form form) : p_(problem) {
    if (form == Form::whole) {
      whole();
    } else {
      taken_apart();
    }
  }

 private:
  // Axes are batch, heads, tokens, dim.
  const Descriptor& stored(int64_t id, int64_t tokens, int64_t heads, const HeadStrides& at, bool transposed = false) {
    int64_t all = std::max(tokens * at.token, heads * at.head);  // to the batch item that is not there
    Ints extents{1, heads, tokens, p_.dim}, strides{all, at.head, at.token, 1};
    if (transposed) {
      std::swap(extents[2], extents[3]);
      std::swap(strides[2], strides[3]);
    }
    return tensor(id, data_type(p_.dtype), extents, strides);
  }

  // How many queries or keys there are, at any number's address.
  const Descriptor& length(int64_t id) { return tensor(id, CUDNN_DATA_INT32, {1, 1, 1, 1}, {1, 1, 1, 1}, 4); }

  void whole() {
    const Descriptor &q = stored(kQ, p_.queries, p_.heads, p_.q), &k = stored(kK, p_.keys, p_.kv_heads, p_.k),
                     &v = stored(kV, p_.keys, p_.kv_heads, p_.v), &out = stored(kOut, p_.queries, p_.heads, p_.out);
    Descriptor op(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, q).set(CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, k);
    op.set(CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, v).set(CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, out);
    op.set(CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, number(kScale, true));
    if (p_.cut) {  // it takes both or neither
      op.set(CUDNN_ATTR_OPERATION_SDPA_FWD_SEQ_LEN_QDESC, length(kQueries));
      op.set(CUDNN_ATTR_OPERATION_SDPA_FWD_SEQ_LEN_KVDESC, length(kKeys));
    }
    op.finalize();
    add(std::move(op));
  }

  // A result that is not stored, of all scores or of one number a query.
  const Descriptor& between(bool all, cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return unstored({1, p_.heads, p_.queries, all ? p_.keys : 1}, type);
  }

  // The logarithm of the sum is part of the pattern that cuDNN knows, though nobody reads it.
  void taken_apart() {
    const Descriptor& products = between(true);
    product(stored(kQ, p_.queries, p_.heads, p_.q), stored(kK, p_.keys, p_.kv_heads, p_.k, true), products);
    const Descriptor& scores = pointwise(CUDNN_POINTWISE_MUL, products, &number(kScale, true), between(true));
    const Descriptor& top = reduction(CUDNN_REDUCE_TENSOR_MAX, scores, between(false));
    const Descriptor& below = pointwise(CUDNN_POINTWISE_SUB, scores, &top, between(true));
    const Descriptor& weights = pointwise(CUDNN_POINTWISE_EXP, below, nullptr, between(true));
    const Descriptor& sum = reduction(CUDNN_REDUCE_TENSOR_ADD, weights, between(false));
    const Descriptor& log_sum = pointwise(CUDNN_POINTWISE_LOG, sum, nullptr, between(false));
    pointwise(CUDNN_POINTWISE_ADD, top, &log_sum, between(false));
    const Descriptor& shares = pointwise(CUDNN_POINTWISE_DIV, weights, &sum, between(true, data_type(p_.dtype)));
    product(shares, stored(kV, p_.keys, p_.kv_heads, p_.v), stored(kOut, p_.queries, p_.heads, p_.out));
  }

  const AttentionProblem& p_;
};

// On the device; not by the default stream, which must not be used while another one records.
std::shared_ptr<const int32_t> numbers_there(const std::vector<int32_t>& numbers) {
  void* memory = nullptr;
  size_t bytes = numbers.size() * sizeof(int32_t);
  check(cudaMalloc(&memory, bytes));
  std::shared_ptr<const int32_t> result(static_cast<const int32_t*>(memory),
                                        [](const int32_t* p) { cudaFree(const_cast<int32_t*>(p)); });
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaError_t copied = cudaMemcpyAsync(memory, numbers.data(), bytes, cudaMemcpyHostToDevice, stream);
  cudaError_t done = cudaStreamSynchronize(stream);
  check(cudaStreamDestroy(stream));
  check(copied);
  check(done);
  return result;
}

class Plan final : public FusedAttentionPlan {
 public:
  // `counts`: of queries and of keys, when the problem is cut.
  Plan(Descriptor plan, cudnnHandle_t handle, size_t workspace, std::shared_ptr<const int32_t> counts)
      : plan_(std::move(plan)), handle_(handle), workspace_(workspace), counts_(std::move(counts)) {}

  size_t workspace_bytes() const override { return workspace_; }

  void run(cudaStream_t stream, const void* q, const void* k, const void* v, void* out, float scale, void* workspace,
           const int32_t* keys) const override {
    std::lock_guard guard(lock());
    check_cudnn(execute(stream, q, k, v, out, scale, workspace, keys), "attention failed");
  }

  // `keys` null: all of them.
  cudnnStatus_t execute(cudaStream_t stream, const void* q, const void* k, const void* v, void* out, float scale,
                        void* workspace, const int32_t* keys) const {
    Ints ids{kQ, kK, kV, kOut, kScale};
    std::vector<const void*> data{q, k, v, out, &scale};
    if (counts_) {
      ids.insert(ids.end(), {kQueries, kKeys});
      data.insert(data.end(), {counts_.get(), keys ? keys : counts_.get() + 1});
    }
    return execute_plan(handle_, stream, plan_, ids, data, workspace);
  }

 private:
  Descriptor plan_;
  cudnnHandle_t handle_;
  size_t workspace_;
  std::shared_ptr<const int32_t> counts_;
};

// From the first element to behind the last one.
int64_t span(const HeadStrides& at, int64_t tokens, int64_t heads, int64_t dim) {
  return (tokens - 1) * at.token + (heads - 1) * at.head + dim;
}

// Runs a plan once, as in cudnn.cpp, with one piece of memory as all four tensors.
bool runs(const Plan& plan, const AttentionProblem& p) {
  int64_t most = std::max({span(p.q, p.queries, p.heads, p.dim), span(p.out, p.queries, p.heads, p.dim),
                           span(p.k, p.keys, p.kv_heads, p.dim), span(p.v, p.keys, p.kv_heads, p.dim)});
  Trial trial;
  void* data = trial.take(most * static_cast<int64_t>(dtype_size(p.dtype)));
  void* workspace = trial.take(static_cast<int64_t>(plan.workspace_bytes()));
  if (!trial.enough()) return true;
  return try_run([&](cudaStream_t stream) {
           return plan.execute(stream, data, data, data, data, 1.0f, workspace, nullptr);
         }) == CUDNN_STATUS_SUCCESS;
}

// The plan of one engine configuration; null when it does not do.
std::shared_ptr<const Plan> try_engine(const Descriptor& config, cudnnHandle_t handle,
                                       const AttentionProblem& problem) {
  std::optional<EnginePlan> plan = steady_plan(config, handle);
  if (!plan) return nullptr;
  std::shared_ptr<const int32_t> counts;
  if (problem.cut) counts = numbers_there({static_cast<int32_t>(problem.queries), static_cast<int32_t>(problem.keys)});
  auto made = std::make_shared<Plan>(std::move(plan->plan), handle, plan->workspace, std::move(counts));
  return runs(*made, problem) ? made : nullptr;
}

std::shared_ptr<const Plan> find_plan(const AttentionProblem& problem, cudnnHandle_t handle) {
  for (Form form : {Form::whole, Form::taken_apart}) {
    if (problem.cut && form != Form::whole) continue;
    GraphBuilder builder(problem, form);
    Descriptor graph = builder.finish(handle);
    for (cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
      for (const Descriptor& config : engine_configs(graph, mode)) {
        if (auto plan = try_engine(config, handle, problem)) return plan;
      }
    }
  }
  log(LogLevel::debug, "cuDNN has no attention for " + std::to_string(problem.queries) + " queries, " +
                           std::to_string(problem.keys) + " keys, " + std::to_string(problem.heads) + " heads of " +
                           std::to_string(problem.dim));
  return nullptr;
}

}  // namespace

bool AttentionProblem::operator<(const AttentionProblem& o) const {
  auto all = [](const AttentionProblem& p) {
    return std::tie(p.dtype, p.queries, p.keys, p.heads, p.kv_heads, p.dim, p.q.token, p.q.head, p.k.token, p.k.head,
                    p.v.token, p.v.head, p.out.token, p.out.head, p.cut);
  };
  return all(*this) < all(o);
}

std::shared_ptr<const FusedAttentionPlan> fused_attention_plan(const AttentionProblem& problem) {
  return kept_plan<FusedAttentionPlan>(problem, find_plan, "cuDNN");
}

namespace {

// Each batch item is its own run of one plan, as in conv.cpp: its bits do not depend on its company.
AttentionProblem describe(const StepSpec& spec) {
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  AttentionProblem p;
  p.dtype = spec.output().dtype;
  p.queries = q[1], p.keys = k[1], p.heads = q[2], p.kv_heads = k[2], p.dim = q[3];
  // An axis of one element has no stride of its own; a neat one is easier on the engines.
  auto neat = [](HeadStrides at, const Shape& shape) {
    if (shape[2] == 1) at.head = shape[3];
    if (shape[1] == 1) at.token = shape[2] * at.head;
    at.batch = 0;
    return at;
  };
  AttentionStrides all(spec);
  p.q = neat(all.q, q), p.k = neat(all.k, k), p.v = neat(all.v, k), p.out = neat(all.out, q);
  p.cut = attention_extras(spec.inputs).lengths > 0;
  return p;
}

}  // namespace

// Long sequences, where its wgmma kernels are ahead of ours by far; a short one is over before it starts. Captions with
// lengths are short, but a picture's every token looks at them: attention_wgmma.cu is for these, where it runs.
bool prefers_cudnn_attention(const StepSpec& spec) {
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  if (supports_few_keys_attention(spec)) return false;
  // To a caption: with fewer queries, or when most of it is padding, the kernel here is the faster one.
  if (attention_extras(spec.inputs).lengths) return q[1] >= 4096 && k[1] >= 256 && q[3] >= 64;
  return q[1] >= 1024 && k[1] >= 1024 && q[3] >= 64;
}

bool supports_cudnn_attention(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  const Shape& q = spec.inputs[0].shape;
  bool plain = !attention_extras(spec.inputs).bias && !attrs.integer("causal") && attrs.real("softcap") <= 0;
  if (!plain || spec.output().dtype == DType::f32 || q[3] % 8 != 0 || q[3] > 128 || device_limits().major < 8) {
    return false;
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const Shape& k = spec.inputs[1].shape;
  if (q.numel() == 0 || k.numel() == 0 || q[1] > kMost || k[1] > kMost) return false;
  if (!AttentionStrides(spec).all_multiples(8)) return false;
  return !spec.placed || fused_attention_plan(describe(spec)) != nullptr;  // a plan takes a second to make
}

Step make_cudnn_attention(const StepSpec& spec) {
  std::shared_ptr<const FusedAttentionPlan> plan = fused_attention_plan(describe(spec));
  kinora::check(plan != nullptr, "attention: cuDNN has no plan for it");
  int64_t batch = spec.inputs[0].shape[0];
  AttentionStrides at(spec);
  auto size = static_cast<int64_t>(dtype_size(spec.output().dtype));
  auto scale = static_cast<float>(spec.node.attrs.real("scale"));
  size_t lengths = attention_extras(spec.inputs).lengths;
  Step step;
  step.scratch_bytes = plan->workspace_bytes();
  step.run = [=](const StepArgs& args) {
    for (int64_t b = 0; b < batch; ++b) {
      auto item = [&](size_t i, const HeadStrides& s) {
        return static_cast<const std::byte*>(args.in[i]) + b * s.batch * size;
      };
      plan->run(stream_of(args), item(0, at.q), item(1, at.k), item(2, at.v),
                static_cast<std::byte*>(args.out) + b * at.out.batch * size, scale, args.scratch,
                lengths ? static_cast<const int32_t*>(args.in[lengths]) + b : nullptr);
    }
  };
  return or_own_attention(spec, std::move(step));
}

Step or_own_attention(const StepSpec& spec, Step step) {
  Step own = supports_attention(spec) ? make_attention(spec) : Step{};
  step.run = [run = std::move(step.run), own = std::move(own.run)](const StepArgs& args) {
    bool aligned = is_aligned(args.in[0], 16) && is_aligned(args.in[1], 16) && is_aligned(args.in[2], 16);
    if (aligned && is_aligned(args.out, 16)) return run(args);
    kinora::check(static_cast<bool>(own), "attention: a slice lies where it cannot be read");
    own(args);
  };
  return step;
}

}  // namespace kinora::cuda
