// What the files that speak to cuDNN 9 share: its functions, descriptors of its graph interface, one handle a device.
#pragma once

#include <cudnn_graph.h>

#include <mutex>
#include <utility>
#include <vector>

#include "cuda/cuda.h"

namespace kinora::cuda::cudnn {

struct Api {
  decltype(&cudnnGetErrorString) error_string;
  decltype(&cudnnCreate) create;
  decltype(&cudnnSetStream) set_stream;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor;
  decltype(&cudnnBackendFinalize) finalize;
  decltype(&cudnnBackendSetAttribute) set;
  decltype(&cudnnBackendGetAttribute) get;
  decltype(&cudnnBackendExecute) execute;
};

const Api& api();  // opens the library at the first call; throws Error(resource) when it is absent

// Throws Error(resource) when memory ran out, Error(internal) for any other failure.
void check_cudnn(cudnnStatus_t status, const char* what);

// A descriptor under construction. What cuDNN refuses is remembered, not thrown: a refusal only means that another way
// is to be tried.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) { note(api().create_descriptor(type, &raw_)); }
  Descriptor(Descriptor&& other) noexcept
      : raw_(std::exchange(other.raw_, nullptr)), status_(std::exchange(other.status_, CUDNN_STATUS_NOT_INITIALIZED)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (raw_) api().destroy_descriptor(raw_);
  }

  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    return set_all(name, type, 1, &value);
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Ints& values) {
    return set_all(name, CUDNN_TYPE_INT64, static_cast<int64_t>(values.size()), values.data());
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    note(value.status_);
    return set_all(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value.raw_);
  }
  Descriptor& set_all(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                      const void* values) {
    if (ok()) note(api().set(raw_, name, type, count, values));
    return *this;
  }
  Descriptor& finalize() {
    if (ok()) note(api().finalize(raw_));
    return *this;
  }
  // The number of values read, 0 when refused.
  int64_t get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t most, void* values) const {
    int64_t count = 0;
    bool done = ok() && api().get(raw_, name, type, most, &count, values) == CUDNN_STATUS_SUCCESS;
    return done ? count : 0;
  }

  bool ok() const { return status_ == CUDNN_STATUS_SUCCESS; }
  cudnnStatus_t status() const { return status_; }
  cudnnBackendDescriptor_t raw() const { return raw_; }

 private:
  void note(cudnnStatus_t status) {
    if (ok()) status_ = status;
  }
  cudnnBackendDescriptor_t raw_ = nullptr;
  cudnnStatus_t status_ = CUDNN_STATUS_SUCCESS;
};

cudnnDataType_t data_type(DType dtype);

// Engine configurations for an operation graph, cuDNN's favourite first; empty when there are none.
std::vector<Descriptor> engine_configs(const Descriptor& graph, cudnnBackendHeurMode_t mode);

// Enqueues a plan on tensors by their ids; data[i] belongs to ids[i]. The caller holds lock().
cudnnStatus_t execute_plan(cudnnHandle_t handle, cudaStream_t stream, const Descriptor& plan, const Ints& ids,
                           const std::vector<const void*>& data, void* workspace);

// One per device and never destroyed: at the program's end the driver may be gone before it.
cudnnHandle_t handle_of(int device);

// Guards the handles, whose stream is set anew for each run, and the plans.
std::mutex& lock();

// What becomes of a plan that is run once by itself.
template <class Enqueue>
cudnnStatus_t try_run(const Enqueue& enqueue) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudnnStatus_t status = enqueue(stream);
  cudaError_t done = cudaStreamSynchronize(stream);
  check(cudaStreamDestroy(stream));
  check(done);
  return status;
}

// Memory for one run, given back at the end of the scope.
class Trial {
 public:
  ~Trial() {
    for (void* piece : pieces_) cudaFree(piece);
  }
  void* take(int64_t bytes) {
    void* piece = nullptr;
    if (bytes == 0 || cudaMalloc(&piece, static_cast<size_t>(bytes)) != cudaSuccess) {
      cudaGetLastError();
      enough_ = enough_ && bytes == 0;
      return nullptr;
    }
    pieces_.push_back(piece);
    return piece;
  }
  bool enough() const { return enough_; }

 private:
  std::vector<void*> pieces_;
  bool enough_ = true;
};

}  // namespace kinora::cuda::cudnn
