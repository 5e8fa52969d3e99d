// Tensor = shape + dtype + shared buffer. Copying a Tensor shares its bytes.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"
#include "core/shape.h"

namespace kinora {

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<bf16>() {
  return DType::bf16;
}
template <>
constexpr DType dtype_of<f16>() {
  return DType::f16;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::f64;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::i32;
}
template <>
constexpr DType dtype_of<int64_t>() {
  return DType::i64;
}
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::u8;
}
template <>
constexpr DType dtype_of<int8_t>() {
  return DType::i8;
}
template <>
constexpr DType dtype_of<f8_e4m3>() {
  return DType::f8_e4m3;
}

// 64-byte aligned, uninitialised bytes; throws Error(resource) when the system has no more.
std::shared_ptr<std::byte[]> allocate_bytes(size_t bytes);

enum class Place : uint8_t { host, device };

// The numbers of a weight in layouts of a backend's own, kept beside it: each made once, on first use, and shared by
// everything that reads the weight.
class Repacked {
 public:
  std::shared_ptr<std::byte[]> get(const std::string& layout, size_t bytes,
                                   const std::function<void(std::byte*)>& make);

 private:
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<std::byte[]>> layouts_;
};

class Tensor {
 public:
  Tensor() = default;                // empty: no buffer
  Tensor(Shape shape, DType dtype);  // allocates on the host, uninitialised
  // Borrows bytes kept alive by `owner` (a mapped file, an arena, a device's memory).
  Tensor(Shape shape, DType dtype, std::shared_ptr<void> owner, void* data, Place place = Place::host)
      : shape_(shape), dtype_(dtype), place_(place), owner_(std::move(owner)), data_(static_cast<std::byte*>(data)) {}

  // Borrows bytes of a mapped file.
  static Tensor mapped(Shape shape, DType dtype, std::shared_ptr<void> file, void* data);

  template <class T>
  static Tensor from(Shape shape, const std::vector<T>& values) {
    Tensor tensor(shape, dtype_of<T>());
    if (static_cast<int64_t>(values.size()) != shape.numel()) {
      fail(ErrorKind::internal, "Tensor::from: " + std::to_string(values.size()) + " values for shape " + shape.str());
    }
    std::copy(values.begin(), values.end(), tensor.data<T>());
    return tensor;
  }
  static Tensor zeros(Shape shape, DType dtype = DType::f32);

  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  int64_t numel() const { return shape_.numel(); }
  size_t bytes() const { return static_cast<size_t>(numel()) * dtype_size(dtype_); }
  bool defined() const { return data_ != nullptr; }
  bool on_device() const { return place_ == Place::device; }  // then only raw(), reshaped() and rows() are of use here

  void* raw() { return data_; }
  const void* raw() const { return data_; }
  template <class T>
  T* data() {
    check(dtype_of<T>() == dtype_, "Tensor::data: wrong element type");
    check(!on_device(), "Tensor::data: the bytes are on a device");
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* data() const {
    return const_cast<Tensor*>(this)->data<T>();
  }
  template <class T>
  std::span<const T> values() const {
    return {data<T>(), static_cast<size_t>(numel())};
  }

  Tensor reshaped(Shape shape) const;             // shares the bytes; same number of elements
  Tensor rows(int64_t begin, int64_t end) const;  // shares the bytes; a range of the first axis
  Tensor to(DType dtype) const;                   // a converted copy (itself when the type is the same)
  Tensor clone() const;
  // Gives the memory of a mapped file's bytes back to the system, which reads them again when they are used; does
  // nothing for other bytes.
  void release_pages() const;
  void ask_for_pages() const;  // that the system may read them now, to have them when they are used
  bool is_mapped() const { return mapped_; }
  // Lets backends keep the tensor in layouts of their own, for a weight that is read many times.
  void keep_repacked() { repacked_ = std::make_shared<Repacked>(); }
  void drop_repacked() { repacked_ = nullptr; }
  Repacked* repacked() const { return repacked_.get(); }  // null unless kept
  // A copy with axes reordered: result axis i is this tensor's axis order[i].
  Tensor permuted(std::initializer_list<int> order) const;

 private:
  Shape shape_;
  DType dtype_ = DType::f32;
  Place place_ = Place::host;
  std::shared_ptr<void> owner_;
  std::shared_ptr<Repacked> repacked_;
  std::byte* data_ = nullptr;
  bool mapped_ = false;
};

// Joins along the first axis; all other extents and types equal, or Error(internal). Of tensors on the host.
Tensor concat_rows(std::span<const Tensor> parts);
Shape concat_rows_shape(std::span<const Tensor> parts);  // of the result, after these checks

}  // namespace kinora
