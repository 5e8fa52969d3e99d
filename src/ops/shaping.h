// Ops that move elements without arithmetic, of any dtype. Extents that do not fit are an Error(internal).
#pragma once

#include "graph/graph.h"

namespace kinora {

Value reshape(Value x, const Shape& shape);
// The bytes of x from `offset` on, a multiple of 16, as another tensor: how one step gives two results. Moves nothing,
// and has no gradient.
Value part(Value x, int64_t offset, const Shape& shape, DType dtype);
Value permute(Value x, Ints order);  // result axis i is x's axis order[i]
Value transpose_last(Value x);       // swaps the last two axes
// Elements [start, stop) of one axis, every `stride`-th.
Value slice(Value x, int axis, int64_t start, int64_t stop, int64_t stride = 1);
std::vector<Value> split(Value x, int axis, int parts);
Value concat(std::span<const Value> parts, int axis);
Value concat(std::initializer_list<Value> parts, int axis);
Value broadcast_to(Value x, const Shape& shape);
// Zeros around one axis: `before`, `after`, and `interior` between neighbours.
Value pad(Value x, int axis, int64_t before, int64_t after, int64_t interior = 0);
// Repeats the first and the last element of each axis: before[i] and after[i] times along axis i.
Value pad_edge(Value x, Ints before, Ints after);
Value repeat_interleave(Value x, int axis, int64_t times);  // a a b b c c

// Channels-last pictures: [batch, height, width, channels].
Value upsample_nearest2(Value x);           // twice the height and width
Value pixel_shuffle(Value x, int64_t r);    // torch.nn.PixelShuffle: channels / r², height·r, width·r
Value pixel_unshuffle(Value x, int64_t r);  // its inverse

// Channels-last films: [batch, frames, height, width, channels].
// Nearest neighbour: height and width twice, with `frames` the number of frames too.
Value upsample_nearest3d(Value x, bool frames);
// Channels / (rt·r²), frames·rt, height·r, width·r, channel order (c, rt, ry, rx); rt is 1 or r. And its inverse.
Value pixel_shuffle3d(Value x, int64_t rt, int64_t r);
Value pixel_unshuffle3d(Value x, int64_t rt, int64_t r);

extern const OpDef kReshape, kPart, kPermute, kSlice, kConcat, kBroadcast, kPad, kPadEdge, kUpsample2;

}  // namespace kinora
