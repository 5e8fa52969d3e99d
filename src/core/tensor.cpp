#include "core/tensor.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace kinora {

std::shared_ptr<std::byte[]> allocate_bytes(size_t bytes) {
  constexpr std::align_val_t kAlign{64};
  size_t rounded = (bytes + 63) / 64 * 64 + 64;
  void* memory = ::operator new[](rounded, kAlign, std::nothrow);
  if (!memory) {
    fail(ErrorKind::resource, "out of memory: " + std::to_string(bytes >> 20) +
                                  " MiB were refused (use a smaller size, --tile or --dtype bfloat16)");
  }
  return {static_cast<std::byte*>(memory), [](std::byte* p) { ::operator delete[](p, kAlign); }};
}

std::shared_ptr<std::byte[]> Repacked::get(const std::string& layout, size_t bytes,
                                           const std::function<void(std::byte*)>& make) {
  std::lock_guard lock(mutex_);
  std::shared_ptr<std::byte[]>& entry = layouts_[layout];
  if (!entry) {
    auto memory = allocate_bytes(bytes);
    make(memory.get());
    entry = std::move(memory);
  }
  return entry;
}

Tensor::Tensor(Shape shape, DType dtype) : shape_(shape), dtype_(dtype) {
  auto buffer = allocate_bytes(bytes());
  data_ = buffer.get();
  owner_ = std::shared_ptr<void>(buffer, buffer.get());
}

Tensor Tensor::zeros(Shape shape, DType dtype) {
  Tensor tensor(shape, dtype);
  std::memset(tensor.raw(), 0, tensor.bytes());
  return tensor;
}

Tensor Tensor::mapped(Shape shape, DType dtype, std::shared_ptr<void> file, void* data) {
  Tensor tensor(shape, dtype, std::move(file), data);
  tensor.mapped_ = true;
  return tensor;
}

// On the whole pages that the bytes are in: what a neighbour loses with them it reads again.
static void advise(const std::byte* data, size_t bytes, int advice) {
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
  uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes + page - 1) / page * page;
  ::madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

void Tensor::release_pages() const {
  if (mapped_ && bytes()) advise(data_, bytes(), MADV_DONTNEED);
}

void Tensor::ask_for_pages() const {
  if (mapped_ && bytes()) advise(data_, bytes(), MADV_WILLNEED);
}

Tensor Tensor::reshaped(Shape shape) const {
  if (shape.numel() != numel()) {
    fail(ErrorKind::internal, "cannot reshape " + shape_.str() + " to " + shape.str());
  }
  Tensor view = *this;
  view.shape_ = shape;
  return view;
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  check(shape_.rank() > 0 && 0 <= begin && begin <= end && end <= shape_[0], "Tensor::rows: out of range");
  Tensor view = *this;
  view.shape_ = shape_.with(0, end - begin);
  view.repacked_ = nullptr;
  view.data_ += static_cast<size_t>(begin * shape_.product(1, shape_.rank())) * dtype_size(dtype_);
  return view;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  check(!on_device(), "Tensor::to: the bytes are on a device");
  Tensor result(shape_, dtype);
  size_t count = static_cast<size_t>(numel());
  constexpr size_t kBlock = 4096;
  std::vector<float> block(std::min(count, kBlock));
  for (size_t i = 0; i < count; i += kBlock) {
    size_t n = std::min(kBlock, count - i);
    to_float(dtype_, data_ + i * dtype_size(dtype_), block.data(), n);
    from_float(dtype, block.data(), result.data_ + i * dtype_size(dtype), n);
  }
  return result;
}

Tensor Tensor::clone() const {
  check(!on_device(), "Tensor::clone: the bytes are on a device");
  Tensor result(shape_, dtype_);
  if (bytes()) std::memcpy(result.raw(), raw(), bytes());
  return result;
}

Tensor Tensor::permuted(std::initializer_list<int> order) const {
  check(static_cast<int>(order.size()) == shape_.rank(), "Tensor::permuted: one entry per axis");
  check(!on_device(), "Tensor::permuted: the bytes are on a device");
  std::array<int64_t, Shape::kMaxRank> dims{}, strides{}, step{}, index{};
  int64_t stride = 1;
  for (int i = shape_.rank() - 1; i >= 0; --i) {
    strides[static_cast<size_t>(i)] = stride;
    stride *= shape_[i];
  }
  size_t axis = 0;
  for (int source : order) {
    dims[axis] = shape_[source];
    step[axis++] = strides[static_cast<size_t>(source)];
  }
  Tensor result(Shape(std::span<const int64_t>(dims.data(), order.size())), dtype_);
  size_t size = dtype_size(dtype_);
  int64_t offset = 0;
  for (int64_t i = 0; i < numel(); ++i) {
    std::memcpy(result.data_ + static_cast<size_t>(i) * size, data_ + static_cast<size_t>(offset) * size, size);
    for (int a = shape_.rank() - 1; a >= 0; --a) {
      size_t at = static_cast<size_t>(a);
      offset += step[at];
      if (++index[at] < dims[at]) break;
      offset -= step[at] * dims[at];
      index[at] = 0;
    }
  }
  return result;
}

Shape concat_rows_shape(std::span<const Tensor> parts) {
  check(!parts.empty(), "concat_rows: nothing to join");
  int64_t rows = 0;
  for (const Tensor& part : parts) {
    check(part.dtype() == parts[0].dtype() && part.shape().with(0, 1) == parts[0].shape().with(0, 1),
          "concat_rows: parts differ in shape or type");
    rows += part.shape()[0];
  }
  return parts[0].shape().with(0, rows);
}

Tensor concat_rows(std::span<const Tensor> parts) {
  Shape shape = concat_rows_shape(parts);
  Tensor result(shape, parts[0].dtype());
  auto* out = static_cast<std::byte*>(result.raw());
  for (const Tensor& part : parts) {
    check(!part.on_device(), "concat_rows: the bytes are on a device");
    if (part.bytes()) std::memcpy(out, part.raw(), part.bytes());
    out += part.bytes();
  }
  return result;
}

}  // namespace kinora
