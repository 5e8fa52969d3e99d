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

Tensor Device::concat_rows(std::span<const Tensor> parts) {
  check(!parts.empty(), "concat_rows: nothing to join");
  int64_t rows = 0;
  for (const Tensor& part : parts) {
    check(part.dtype() == parts[0].dtype() && part.shape().with(0, 1) == parts[0].shape().with(0, 1),
          "concat_rows: parts differ in shape or type");
    rows += part.shape()[0];
  }
  Shape shape = parts[0].shape().with(0, rows);
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
