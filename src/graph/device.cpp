#include "graph/device.h"

namespace kinora {

std::shared_ptr<void> Device::shared(const std::string& key, size_t bytes, const std::function<void(void*)>& make) {
  if (auto found = shared_[key].lock()) return found;
  std::shared_ptr<void> memory = allocate(bytes);
  make(memory.get());
  shared_[key] = memory;
  return memory;
}

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

Tensor Device::concat_rows(std::span<const Tensor> parts) {
  Shape shape = concat_rows_shape(parts);
  std::shared_ptr<void> memory = allocate(static_cast<size_t>(shape.numel()) * dtype_size(parts[0].dtype()));
  auto* to = static_cast<std::byte*>(memory.get());
  for (const Tensor& part : parts) {
    if (part.on_device()) {
      copy(to, part.raw(), part.bytes());
    } else {
      upload(to, part.raw(), part.bytes());
    }
    to += part.bytes();
  }
  return Tensor(shape, parts[0].dtype(), memory, memory.get(), Place::device);
}

Tensor Device::to_host_after(Mark& mark, const Tensor& tensor) {
  if (!tensor.on_device()) return tensor;
  Tensor host(tensor.shape(), tensor.dtype());
  download_after(mark, host.raw(), tensor.raw(), tensor.bytes());
  return host;
}

}  // namespace kinora
