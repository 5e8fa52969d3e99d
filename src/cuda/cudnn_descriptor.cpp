#include "cuda/cudnn_descriptor.h"

#include <algorithm>
#include <map>

#include "cuda/library.h"

namespace kinora::cuda::cudnn {

constexpr int64_t kMostChoices = 64;  // engines to look at, of one heuristic

const Api& api() {
  static const Api table = [] {
    const Library& library = cudnn_library();
    Api a;
    auto find = [&](auto& pointer, const char* name) {
      pointer = library.function<std::remove_pointer_t<std::remove_reference_t<decltype(pointer)>>>(name);
    };
    find(a.error_string, "cudnnGetErrorString");
    find(a.create, "cudnnCreate");
    find(a.set_stream, "cudnnSetStream");
    find(a.create_descriptor, "cudnnBackendCreateDescriptor");
    find(a.destroy_descriptor, "cudnnBackendDestroyDescriptor");
    find(a.finalize, "cudnnBackendFinalize");
    find(a.set, "cudnnBackendSetAttribute");
    find(a.get, "cudnnBackendGetAttribute");
    find(a.execute, "cudnnBackendExecute");
    return a;
  }();
  return table;
}

void check_cudnn(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  bool memory = status == CUDNN_STATUS_ALLOC_FAILED;
  fail(memory ? ErrorKind::resource : ErrorKind::internal,
       std::string("cuDNN: ") + what + ": " + api().error_string(status));
}

cudnnDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f16: return CUDNN_DATA_HALF;
    case DType::bf16: return CUDNN_DATA_BFLOAT16;
    default: return CUDNN_DATA_FLOAT;
  }
}

cudnnStatus_t execute_plan(cudnnHandle_t handle, cudaStream_t stream, const Descriptor& plan, const Ints& ids,
                           const std::vector<const void*>& data, void* workspace) {
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, ids);
  pack.set_all(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, static_cast<int64_t>(data.size()),
               data.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace).finalize();
  if (!pack.ok()) return pack.status();
  cudnnStatus_t status = api().set_stream(handle, stream);
  return status == CUDNN_STATUS_SUCCESS ? api().execute(handle, plan.raw(), pack.raw()) : status;
}

cudnnHandle_t handle_of(int device) {
  static std::map<int, cudnnHandle_t> handles;
  cudnnHandle_t& handle = handles[device];
  if (!handle) check_cudnn(api().create(&handle), "starting it failed");
  return handle;
}

std::mutex& lock() {
  static std::mutex mutex;
  return mutex;
}

std::vector<Descriptor> engine_configs(const Descriptor& graph, cudnnBackendHeurMode_t mode) {
  Descriptor heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode).finalize();
  int64_t count = heuristic.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, nullptr);
  std::vector<Descriptor> configs;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < std::min(count, kMostChoices); ++i) {
    raw.push_back(configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).raw());
  }
  if (raw.empty()) return configs;
  count = heuristic.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(raw.size()),
                        raw.data());
  while (configs.size() > static_cast<size_t>(count)) configs.pop_back();
  return configs;
}

}  // namespace kinora::cuda::cudnn
