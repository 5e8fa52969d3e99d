#include "graph/device.h"

namespace kinora {

Tensor Device::to_device(const Tensor& host) {
  if (host.on_device()) return host;
  std::shared_ptr<void> memory = allocate(host.bytes());
  upload(memory.get(), host.raw(), host.bytes());
  return Tensor(host.shape(), host.dtype(), memory, memory.get(), Place::device);
}

Tensor Device::to_host(const Tensor& tensor) {
  if (!tensor.on_device()) return tensor;
  Tensor host(tensor.shape(), tensor.dtype());
  download(host.raw(), tensor.raw(), tensor.bytes());
  return host;
}

Tensor Device::to_host_after(Mark& mark, const Tensor& tensor) {
  if (!tensor.on_device()) return tensor;
  Tensor host(tensor.shape(), tensor.dtype());
  download_after(mark, host.raw(), tensor.raw(), tensor.bytes());
  return host;
}

}  // namespace kinora
