#include "diffusion/tiling.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace kinora {
namespace {

// A window of x [batch, H, W, C], cut at its borders, padded with zeros to multiples of `multiple`.
Tensor crop(const Tensor& x, int64_t top, int64_t left, int64_t size, int64_t multiple) {
  const Shape& s = x.shape();
  int64_t h = std::min(size, s[1] - top), w = std::min(size, s[2] - left), c = s[3];
  auto round_up = [&](int64_t v) { return (v + multiple - 1) / multiple * multiple; };
  Tensor out = Tensor::zeros({s[0], round_up(h), round_up(w), c});
  for (int64_t b = 0; b < s[0]; ++b) {
    for (int64_t y = 0; y < h; ++y) {
      std::memcpy(out.data<float>() + (b * out.shape()[1] + y) * out.shape()[2] * c,
                  x.data<float>() + ((b * s[1] + top + y) * s[2] + left) * c, static_cast<size_t>(w * c) * 4);
    }
  }
  return out;
}

// Copies the first h rows and w columns of `tile` to (top, left) of `out`.
void place(const Tensor& tile, int64_t h, int64_t w, Tensor& out, int64_t top, int64_t left) {
  const Shape &from = tile.shape(), &to = out.shape();
  int64_t c = to[3];
  for (int64_t b = 0; b < to[0]; ++b) {
    for (int64_t y = 0; y < h; ++y) {
      std::memcpy(out.data<float>() + ((b * to[1] + top + y) * to[2] + left) * c,
                  tile.data<float>() + (b * from[1] + y) * from[2] * c, static_cast<size_t>(w * c) * 4);
    }
  }
}

}  // namespace

void cross_fade(const Tensor& a, Tensor& b, int axis, int64_t extent) {
  const Shape &from = a.shape(), &to = b.shape();
  check(from.with(axis, to[axis]) == to, "cross_fade: the tiles differ in more than one axis");
  extent = std::min({from[axis], to[axis], extent});
  int64_t outer = to.product(0, axis), inner = to.product(axis + 1, to.rank());
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < extent; ++i) {
      const float* x = a.data<float>() + (o * from[axis] + from[axis] - extent + i) * inner;
      float* y = b.data<float>() + (o * to[axis] + i) * inner;
      double part = static_cast<double>(i) / static_cast<double>(extent);
      auto keep = static_cast<float>(1 - part), take = static_cast<float>(part);
      for (int64_t k = 0; k < inner; ++k) y[k] = x[k] * keep + y[k] * take;
    }
  }
}

Tensor run_tiled(const Tensor& x, const TileGrid& grid, const std::function<Tensor(const Tensor&)>& run) {
  return run_tiled_ahead(x, grid, [&](const Tensor& tile) -> Pending { return [&run, tile] { return run(tile); }; });
}

Tensor run_tiled_ahead(const Tensor& x, const TileGrid& g, const std::function<Pending(const Tensor&)>& begin) {
  int64_t extent = g.out_size - g.out_stride, columns = (x.shape()[2] + g.stride - 1) / g.stride;
  int64_t count = tile_count(x.shape()[1], x.shape()[2], g.stride);
  auto begin_tile = [&](int64_t i) {
    return i < count ? begin(crop(x, i / columns * g.stride, i % columns * g.stride, g.size, g.multiple)) : Pending();
  };
  Tensor out;
  std::vector<Tensor> above, current;
  Pending next = begin_tile(0);
  for (int64_t i = 0; i < count; ++i) {
    int64_t row = i / columns, column = i % columns;
    if (column == 0) above = std::exchange(current, {});
    Pending now = std::exchange(next, begin_tile(i + 1));
    current.push_back(now());
    Tensor& tile = current.back();
    if (row > 0) cross_fade(above[static_cast<size_t>(column)], tile, 1, extent);
    if (column > 0) cross_fade(current[static_cast<size_t>(column - 1)], tile, 2, extent);
    if (!out.defined()) out = Tensor({tile.shape()[0], g.height, g.width, tile.shape()[3]}, tile.dtype());
    int64_t y = row * g.out_stride, z = column * g.out_stride;
    int64_t h = std::min({tile.shape()[1], g.out_stride, g.height - y});
    int64_t w = std::min({tile.shape()[2], g.out_stride, g.width - z});
    if (w > 0) place(tile, h, w, out, y, z);
  }
  return out;
}

int64_t tile_count(int64_t height, int64_t width, int64_t stride) {
  return ((height + stride - 1) / stride) * ((width + stride - 1) / stride);
}

}  // namespace kinora
