#include "cuda/cudnn_operations.h"

#include <algorithm>

namespace kinora::cuda::cudnn {

constexpr int64_t kWorkspaceLimit = int64_t{1} << 30;
constexpr int64_t kFirstUnstored = 1000;  // names of tensors from here on are given out by unstored()

Descriptor Operations::finish(cudnnHandle_t handle) const {
  std::vector<cudnnBackendDescriptor_t> raw;
  bool sound = true;
  for (const Descriptor& op : operations_) {
    raw.push_back(op.raw());
    sound = sound && op.ok();
  }
  if (!sound) raw.clear();
  Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (handle) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  graph.set_all(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(raw.size()),
                raw.data());
  graph.finalize();
  return graph;
}

const Descriptor& Operations::finished(Descriptor d, int64_t id, cudnnDataType_t type, const Ints& extents,
                                       const Ints& strides, int64_t alignment) {
  d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id);
  d.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
  d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, extents).set(CUDNN_ATTR_TENSOR_STRIDES, strides);
  d.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, alignment);
  d.finalize();
  return keep(std::move(d));
}

const Descriptor& Operations::tensor(int64_t id, cudnnDataType_t type, const Ints& extents, const Ints& strides,
                                     int64_t alignment) {
  return finished(Descriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR), id, type, extents, strides, alignment);
}

const Descriptor& Operations::number(int64_t id, bool on_host) {
  Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  if (on_host) d.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, true);
  return finished(std::move(d), id, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, 16);
}

const Descriptor& Operations::unstored(const Ints& extents, cudnnDataType_t type) {
  Ints strides(extents.size(), 1);
  for (size_t i = extents.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * extents[i];
  Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  d.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, true);
  return finished(std::move(d), kFirstUnstored + unstored_++, type, extents, strides, 16);
}

void Operations::product(const Descriptor& a, const Descriptor& b, const Descriptor& c) {
  Descriptor kind(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  kind.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT).finalize();
  Descriptor op(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a).set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
  op.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
  op.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, keep(std::move(kind))).finalize();
  add(std::move(op));
}

const Descriptor& Operations::pointwise(cudnnPointwiseMode_t mode, const Descriptor& x, const Descriptor* b,
                                        const Descriptor& y) {
  Descriptor kind(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  kind.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
  kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT).finalize();
  Descriptor op(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, keep(std::move(kind)));
  op.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x).set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
  if (b) op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b);
  op.finalize();
  add(std::move(op));
  return y;
}

const Descriptor& Operations::reduction(cudnnReduceTensorOp_t mode, const Descriptor& x, const Descriptor& y) {
  Descriptor kind(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  kind.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  kind.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, mode).finalize();
  Descriptor op(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, keep(std::move(kind)));
  op.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x).set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y).finalize();
  add(std::move(op));
  return y;
}

std::optional<EnginePlan> steady_plan(const Descriptor& config, cudnnHandle_t handle) {
  Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.raw();
  if (config.get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw) != 1) return std::nullopt;
  cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
  int64_t count =
      engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT, notes);
  for (int64_t i = 0; i < std::min<int64_t>(count, CUDNN_NUMERICAL_NOTE_TYPE_COUNT); ++i) {
    if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return std::nullopt;
  }
  Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config).finalize();
  int64_t workspace = 0;
  if (plan.get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &workspace) != 1) return std::nullopt;
  if (workspace > kWorkspaceLimit) return std::nullopt;
  return EnginePlan{std::move(plan), static_cast<size_t>(workspace)};
}

}  // namespace kinora::cuda::cudnn
