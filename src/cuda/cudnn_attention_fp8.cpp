// cuDNN's operation for the whole of attention has no place for the scales of codes, so that its engines look for the
// operations themselves, in the order and with the scales that they know: taking one away that changes nothing, as the
// largest result's, gets the graph refused. On Hopper the result is E4M3 as well: there is no engine for wider ones.
#include "cuda/cudnn_attention_fp8.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "core/log.h"
#include "cuda/cudnn_operations.h"

namespace kinora::cuda {
using namespace cudnn;
namespace {

enum : int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kStats,
  kScale,
  kQValue,
  kKValue,
  kVValue,
  kWeight,
  kWeightValue,
  kOutCode,
  kPeak
};

class GraphBuilder : public Operations {
 public:
  explicit GraphBuilder(const Fp8AttentionProblem& problem) : p_(problem) {
    const Descriptor& products = scores();
    product(codes(kQ, p_.queries), codes(kK, p_.keys, true), products);
    const Descriptor& scaled = times(products, number(kScale, true), scores());
    const Descriptor& by_q = times(scaled, number(kQValue), scores());
    const Descriptor& all = times(by_q, number(kKValue), scores());
    const Descriptor& top = reduction(CUDNN_REDUCE_TENSOR_MAX, all, row());
    const Descriptor& below = pointwise(CUDNN_POINTWISE_SUB, all, &top, scores());
    const Descriptor& weights = pointwise(CUDNN_POINTWISE_EXP, below, nullptr, scores());
    const Descriptor& sum = reduction(CUDNN_REDUCE_TENSOR_ADD, weights, row());
    const Descriptor& log_sum = pointwise(CUDNN_POINTWISE_LOG, sum, nullptr, row());
    pointwise(CUDNN_POINTWISE_ADD, top, &log_sum, stats());
    const Descriptor& shares = pointwise(CUDNN_POINTWISE_DIV, weights, &sum, scores());
    const Descriptor& share_codes = times(shares, number(kWeight), scores(CUDNN_DATA_FP8_E4M3));
    const Descriptor& sums = results();
    product(share_codes, codes(kV, p_.keys), sums);
    const Descriptor& by_weight = times(sums, number(kWeightValue), results());
    const Descriptor& by_v = times(by_weight, number(kVValue), results());
    times(by_v, number(kOutCode), codes(kOut, p_.queries));
    reduction(CUDNN_REDUCE_TENSOR_AMAX, by_v, number(kPeak));
  }

 private:
  const Descriptor& codes(int64_t id, int64_t tokens, bool transposed = false) {
    int64_t row = p_.heads * kFp8HeadDim;
    Ints extents{1, p_.heads, tokens, kFp8HeadDim}, strides{tokens * row, kFp8HeadDim, row, 1};
    if (transposed) {
      std::swap(extents[2], extents[3]);
      std::swap(strides[2], strides[3]);
    }
    return tensor(id, CUDNN_DATA_FP8_E4M3, extents, strides);
  }

  const Descriptor& scores(cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return unstored({1, p_.heads, p_.queries, p_.keys}, type);
  }
  const Descriptor& row() { return unstored({1, p_.heads, p_.queries, 1}); }
  const Descriptor& results() { return unstored({1, p_.heads, p_.queries, kFp8HeadDim}); }
  const Descriptor& stats() {
    return tensor(kStats, CUDNN_DATA_FLOAT, {1, p_.heads, p_.queries, 1}, {p_.heads * p_.queries, p_.queries, 1, 1});
  }
  const Descriptor& times(const Descriptor& x, const Descriptor& factor, const Descriptor& y) {
    return pointwise(CUDNN_POINTWISE_MUL, x, &factor, y);
  }

  const Fp8AttentionProblem& p_;
};

class Plan final : public Fp8AttentionPlan {
 public:
  Plan(EnginePlan engine, cudnnHandle_t handle) : engine_(std::move(engine)), handle_(handle) {}

  size_t workspace_bytes() const override { return engine_.workspace; }

  void run(cudaStream_t stream, const Fp8AttentionArgs& args) const override {
    std::lock_guard guard(lock());
    check_cudnn(execute(stream, args), "attention of 8-bit codes failed");
  }

  cudnnStatus_t execute(cudaStream_t stream, const Fp8AttentionArgs& a) const {
    const Fp8Numbers& n = *a.numbers;  // addresses alone
    const std::pair<int64_t, const void*> tensors[] = {{kQ, a.q},
                                                       {kK, a.k},
                                                       {kV, a.v},
                                                       {kOut, a.out},
                                                       {kStats, a.stats},
                                                       {kScale, &a.scale},
                                                       {kQValue, &n.q},
                                                       {kKValue, &n.k},
                                                       {kVValue, &n.v},
                                                       {kWeight, &n.weight},
                                                       {kWeightValue, &n.weight_inverse},
                                                       {kOutCode, &n.out},
                                                       {kPeak, &n.peak}};
    Ints ids;
    std::vector<const void*> data;
    for (auto [id, pointer] : tensors) {
      ids.push_back(id);
      data.push_back(pointer);
    }
    return execute_plan(handle_, stream, engine_.plan, ids, data, a.workspace);
  }

 private:
  EnginePlan engine_;
  cudnnHandle_t handle_;
};

// Runs a plan once, as in cudnn.cpp, on memory of no meaning.
cudnnStatus_t try_plan(const Plan& plan, const Fp8AttentionProblem& p) {
  int64_t row = p.heads * kFp8HeadDim;
  Trial trial;
  Fp8AttentionArgs args;
  args.q = trial.take(p.queries * row);
  args.k = trial.take(p.keys * row);
  args.v = trial.take(p.keys * row);
  args.out = trial.take(p.queries * row);
  args.stats = static_cast<float*>(trial.take(p.queries * p.heads * int64_t{sizeof(float)}));
  args.numbers = static_cast<Fp8Numbers*>(trial.take(sizeof(Fp8Numbers)));
  args.workspace = trial.take(static_cast<int64_t>(plan.workspace_bytes()));
  if (!trial.enough()) return CUDNN_STATUS_SUCCESS;
  return try_run([&](cudaStream_t stream) { return plan.execute(stream, args); });
}

std::shared_ptr<const Plan> find_plan(const Fp8AttentionProblem& problem, cudnnHandle_t handle) {
  std::string what = "8-bit attention of " + std::to_string(problem.queries) + " queries, " +
                     std::to_string(problem.keys) + " keys, " + std::to_string(problem.heads) + " heads";
  GraphBuilder builder(problem);
  Descriptor graph = builder.finish(handle);
  if (!graph.ok()) log(LogLevel::debug, what + ": cuDNN refuses the graph: " + api().error_string(graph.status()));
  for (cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    for (const Descriptor& config : engine_configs(graph, mode)) {
      std::optional<EnginePlan> engine = steady_plan(config, handle);
      if (!engine) continue;
      auto plan = std::make_shared<Plan>(std::move(*engine), handle);
      cudnnStatus_t status = try_plan(*plan, problem);
      if (status == CUDNN_STATUS_SUCCESS) return plan;
      log(LogLevel::debug, what + ": an engine does not run: " + api().error_string(status));
    }
  }
  log(LogLevel::debug, "cuDNN has no " + what);
  return nullptr;
}

}  // namespace

bool Fp8AttentionProblem::operator<(const Fp8AttentionProblem& o) const {
  return std::tie(queries, keys, heads) < std::tie(o.queries, o.keys, o.heads);
}

std::shared_ptr<const Fp8AttentionPlan> fp8_attention_plan(const Fp8AttentionProblem& problem) {
  return kept_plan<Fp8AttentionPlan>(problem, find_plan, "8-bit codes");
}

}  // namespace kinora::cuda
