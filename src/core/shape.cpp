#include "core/shape.h"

#include <algorithm>

#include "core/error.h"

namespace kinora {

Shape::Shape(std::span<const int64_t> dims) {
  if (dims.size() > kMaxRank) {
    fail(ErrorKind::input, "a tensor of rank " + std::to_string(dims.size()) + " (at most 8 axes are supported)");
  }
  rank_ = static_cast<int>(dims.size());
  int64_t total = 1;
  for (int i = 0; i < rank_; ++i) {
    int64_t extent = dims[static_cast<size_t>(i)];
    dims_[static_cast<size_t>(i)] = extent;
    if (extent < 0 || __builtin_mul_overflow(total, std::max<int64_t>(extent, 1), &total) ||
        total > (int64_t{1} << 60)) {
      fail(ErrorKind::input, "impossible tensor shape " + str());
    }
  }
}

int64_t Shape::numel() const { return product(0, rank_); }

int64_t Shape::product(int begin, int end) const {
  int64_t total = 1;
  for (int i = begin; i < end; ++i) total *= dims_[static_cast<size_t>(i)];
  return total;
}

Shape Shape::with(int axis, int64_t extent) const {
  Shape copy = *this;
  copy.dims_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)] = extent;
  return copy;
}

bool Shape::operator==(const Shape& other) const { return std::ranges::equal(dims(), other.dims()); }

std::string Shape::str() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) text += (i ? ", " : "") + std::to_string(dims_[static_cast<size_t>(i)]);
  return text + "]";
}

Shape broadcast(const Shape& a, const Shape& b) {
  int rank = std::max(a.rank(), b.rank());
  std::array<int64_t, Shape::kMaxRank> dims{};
  for (int i = 0; i < rank; ++i) {
    int64_t x = i < rank - a.rank() ? 1 : a[i - (rank - a.rank())];
    int64_t y = i < rank - b.rank() ? 1 : b[i - (rank - b.rank())];
    if (x != y && x != 1 && y != 1) {
      fail(ErrorKind::internal, "shapes " + a.str() + " and " + b.str() + " do not broadcast");
    }
    dims[static_cast<size_t>(i)] = x == 1 ? y : x;
  }
  return Shape(std::span<const int64_t>(dims.data(), static_cast<size_t>(rank)));
}

}  // namespace kinora
