// Pictures and films in overlapping tiles, cross-faded linearly where they meet, as diffusers and Open-Sora do it.
#pragma once

#include <functional>

#include "core/tensor.h"

namespace kinora {

// Fades from the last `extent` of `a` into the first of `b` along one axis (fewer where one is shorter), writing into
// b; element i of them is a·(1 - i/extent) + b·i/extent. Both f32, all other extents equal.
void cross_fade(const Tensor& a, Tensor& b, int axis, int64_t extent);

struct TileGrid {
  int64_t size, stride;          // of the input
  int64_t out_size, out_stride;  // of the output
  int64_t height, width;         // of the output
  int64_t multiple;              // input tiles are padded with zeros to this
};

// Calls run() for each tile of x [batch, H, W, C] and joins the results [batch', h, w, C'] row by row: a tile is faded
// into from the one above and the one to its left, and gives its first out_stride rows and columns.
Tensor run_tiled(const Tensor& x, const TileGrid& grid, const std::function<Tensor(const Tensor&)>& run);

// The same with tiles that are begun and then waited for: the next one is begun before the last one is waited for and
// joined to the rest, so that a device works on the one while the host joins the other. `begin` returns what waits.
using Pending = std::function<Tensor()>;
Tensor run_tiled_ahead(const Tensor& x, const TileGrid& grid, const std::function<Pending(const Tensor&)>& begin);

// How many tiles that makes.
int64_t tile_count(int64_t height, int64_t width, int64_t stride);

}  // namespace kinora
