// Cases of convolutions.
#include "ops/conv.h"
#include "ops/matmul.h"
#include "ops/op_cases.h"
#include "ops/shaping.h"

namespace kinora::test {

using In = std::span<const Value>;

void add_conv_cases(std::vector<OpCase>& c) {
  auto conv = [&](std::string name, Shape x, Shape w, Conv2dOptions o, bool gradient = true) {
    c.push_back({.name = std::move(name),
                 .shapes = {x, w, {w[0]}},
                 .build = [o](In in) { return conv2d(in[0], in[1], in[2], o); },
                 .terms = w.product(1, 4),
                 .gradient = gradient});
  };
  conv("conv2d", {2, 5, 4, 3}, {6, 3, 3, 3}, {.padding = 1});
  conv("conv2d/stride", {1, 6, 5, 4}, {5, 4, 3, 3}, {.stride = 2, .padding = 1, .act = "silu"});
  conv("conv2d/depthwise", {2, 5, 4, 20}, {20, 1, 3, 3}, {.padding = 1, .groups = 20});
  conv("conv2d/depthwise5", {1, 7, 6, 3}, {3, 1, 5, 5}, {.padding = 2, .groups = 3, .act = "relu"});
  conv("conv2d/depthwise5_wide", {1, 7, 11, 37}, {37, 1, 5, 5}, {.padding = 2, .groups = 37}, false);
  conv("conv2d/depthwise_stride_wide", {1, 7, 9, 18}, {18, 1, 3, 3}, {.stride = 2, .padding = 1, .groups = 18}, false);
  conv("conv2d/grouped", {1, 3, 4, 8}, {8, 4, 1, 1}, {.groups = 2});
  conv("conv2d/grouped3x3", {1, 4, 4, 4}, {6, 2, 3, 3}, {.padding = 1, .groups = 2});
  conv("conv2d/depthwise7", {2, 9, 11, 6}, {6, 1, 7, 7}, {.padding = 3, .groups = 6, .act = "gelu_tanh"}, false);
  conv("conv2d/depthwise_stride", {2, 7, 8, 5}, {5, 1, 3, 3}, {.stride = 2, .padding = 1, .groups = 5}, false);
  conv("conv2d/depthwise_unpadded", {1, 6, 9, 4}, {4, 1, 5, 5}, {.groups = 4, .act = "silu"}, false);
  conv("conv2d/depthwise_wide", {2, 19, 37, 70}, {70, 1, 5, 5}, {.padding = 2, .groups = 70}, false);
  conv("conv2d/grouped32", {3, 7, 5, 96}, {96, 32, 1, 1}, {.groups = 3, .act = "silu"}, false);
  conv("conv2d/grouped_widening", {2, 3, 5, 6}, {9, 2, 1, 1}, {.groups = 3}, false);
  conv("conv2d/tall", {3, 17, 3, 8}, {24, 8, 3, 3}, {.padding = 1, .act = "gelu_tanh"}, false);
  // A GPU reads channels where they lie among others, from an even or odd one on, and writes them there.
  for (int64_t first : {2, 5}) {
    for (int64_t more : {6, 7}) {
      c.push_back({.name = "conv2d/depthwise_slice" + std::to_string(first) + std::to_string(more),
                   .shapes = {{2, 6, 9, first + 20 + more}, {20, 1, 5, 5}, {20}},
                   .build =
                       [first](In in) {
                         return conv2d(slice(in[0], 3, first, first + 20), in[1], in[2], {.padding = 2, .groups = 20});
                       },
                   .terms = 25,
                   .gradient = false});
    }
  }
  c.push_back({.name = "conv2d/depthwise_slices",
               .shapes = {{1, 9, 7, 12}, {8, 1, 5, 4}},
               .build =
                   [](In in) {
                     Value x = slice(slice(in[0], 2, 1, 6), 3, 3, 11);
                     return conv2d(x, slice(in[1], 3, 1, 3), {}, {.stride = 2, .padding = 1, .groups = 8});
                   },
               .terms = 10,
               .gradient = false});
  c.push_back({.name = "conv2d/multiscale",
               .shapes = {{2, 6, 5, 64}, {128, 64}, {128, 1, 5, 5}, {128, 32, 1, 1}, {128, 32, 1, 1}},
               .build =
                   [](In in) {
                     Value y = linear(in[0], in[1]), z = conv2d(y, in[2], {}, {.padding = 2, .groups = 128});
                     return concat({y, conv2d(z, in[3], {}, {.groups = 4}), conv2d(y, in[4], {}, {.groups = 4})}, 3);
                   },
               .terms = 64 * 25,
               .gradient = false});
  c.push_back({.name = "conv2d/multiscale_two",
               .shapes = {{2, 6, 5, 64}, {128, 64}, {128, 1, 5, 5}, {128, 32, 1, 1}},
               .build =
                   [](In in) {
                     Value y = linear(in[0], in[1]), z = conv2d(y, in[2], {}, {.padding = 2, .groups = 128});
                     return concat({y, conv2d(z, in[3], {}, {.groups = 4, .act = "relu"})}, 3);
                   },
               .terms = 64 * 25,
               .gradient = false});
  auto last = [&](std::string name, Shape x, Shape w, Conv2dOptions o, bool gradient = true) {
    o.weight_layout = "ohwi";
    conv(std::move(name), x, w, o, gradient);
  };
  last("conv2d/ohwi", {2, 5, 4, 3}, {6, 3, 3, 3}, {.padding = 1, .act = "silu"});
  last("conv2d/ohwi_stride", {2, 9, 7, 16}, {8, 3, 3, 16}, {.stride = 2, .padding = 1, .act = "relu"}, false);
  last("conv2d/ohwi_batch", {4, 8, 8, 32}, {40, 3, 3, 32}, {.padding = 1}, false);
  last("conv2d/ohwi_grouped", {1, 4, 4, 4}, {6, 3, 3, 2}, {.padding = 1, .groups = 2}, false);
  last("conv2d/ohwi_narrow", {2, 19, 37, 32}, {3, 3, 3, 32}, {.padding = 1}, false);
  last("conv2d/ohwi_narrow_tiles", {1, 33, 65, 160}, {3, 3, 3, 160}, {.padding = 1, .act = "silu"}, false);
  last("conv2d/ohwi_narrow_two", {3, 16, 32, 64}, {2, 3, 3, 64}, {.padding = 1, .act = "relu"}, false);
  last("conv2d/ohwi_narrow_one", {1, 1, 2, 96}, {1, 3, 3, 96}, {.padding = 1}, false);
  conv("conv2d/blocks", {1, 70, 40, 16}, {150, 16, 3, 3}, {.padding = 1}, false);
  auto glu3 = [&](std::string name, Shape x, std::string act, bool gradient) {
    c.push_back({.name = std::move(name),
                 .shapes = {x, {x[3], 1, 3, 3}, {x[3]}},
                 .build = [act](In in) { return depthwise_glu(in[0], in[1], in[2], act); },
                 .terms = 9,
                 .gradient = gradient});
  };
  glu3("depthwise_glu", {2, 5, 4, 12}, "silu", true);
  glu3("depthwise_glu/plain", {1, 3, 6, 10}, "none", true);
  glu3("depthwise_glu/one", {3, 1, 1, 4}, "silu", false);
  glu3("depthwise_glu/odd", {2, 13, 19, 6}, "silu", false);
  glu3("depthwise_glu/tall", {1, 41, 9, 132}, "silu", false);
  glu3("depthwise_glu/strips", {1, 5, 71, 72}, "silu", false);
  glu3("depthwise_glu/plain_strips", {1, 4, 35, 24}, "none", false);
  c.push_back({.name = "depthwise_glu/no_bias",
               .shapes = {{1, 18, 8, 64}, {64, 1, 3, 3}},
               .build = [](In in) { return depthwise_glu(in[0], in[1], {}, "relu"); },
               .terms = 9,
               .gradient = false});
  conv("conv2d/depthwise_blocks", {1, 50, 70, 80}, {80, 1, 3, 3}, {.padding = 1, .groups = 80}, false);
  c.push_back({.name = "depthwise_glu/larger",
               .shapes = {{1, 6, 7, 10}, {10, 1, 5, 5}, {10}},
               .build = [](In x) { return depthwise_glu(x[0], x[1], x[2]); },
               .terms = 25});
  c.push_back({.name = "depthwise_glu/wide",
               .shapes = {{1, 9, 13, 70}, {70, 1, 3, 3}},
               .build = [](In x) { return depthwise_glu(x[0], x[1], {}); },
               .terms = 9,
               .gradient = false});
  auto film = [&](std::string name, Shape x, Shape w, Conv3dOptions o, bool gradient = true) {
    c.push_back({.name = std::move(name),
                 .shapes = {x, w, {w[0]}},
                 .build = [o](In in) { return conv3d(in[0], in[1], in[2], o); },
                 .terms = w.product(1, 5),
                 .gradient = gradient});
  };
  film("conv3d", {2, 4, 5, 4, 3}, {6, 3, 3, 3, 3}, {.padding = {1, 1, 1}});
  film("conv3d/valid", {1, 5, 5, 6, 3}, {4, 3, 3, 3, 3}, {.act = "silu"});
  film("conv3d/stride", {1, 5, 6, 5, 4}, {5, 4, 3, 3, 3}, {.stride = {2, 2, 2}, .padding = {1, 1, 1}, .act = "silu"});
  film("conv3d/stride_plane", {1, 3, 6, 6, 4}, {5, 4, 3, 3, 3}, {.stride = {1, 2, 2}, .padding = {1, 1, 1}});
  film("conv3d/unequal", {1, 3, 6, 9, 2}, {3, 2, 2, 3, 5}, {.stride = {1, 2, 3}, .padding = {1, 0, 2}});
  film("conv3d/pointwise", {1, 3, 4, 4, 6}, {5, 6, 1, 1, 1}, {});
  film("conv3d/depthwise", {2, 3, 5, 4, 20}, {20, 1, 3, 3, 3}, {.padding = {1, 1, 1}, .groups = 20});
  film("conv3d/depthwise5", {1, 4, 7, 6, 3}, {3, 1, 5, 5, 5}, {.padding = {2, 2, 2}, .groups = 3, .act = "gelu_tanh"});
  film("conv3d/grouped", {1, 2, 3, 4, 8}, {8, 4, 1, 1, 1}, {.groups = 2});
  film("conv3d/blocks", {1, 3, 70, 40, 16}, {150, 16, 3, 3, 3}, {.padding = {1, 1, 1}}, false);
  film("conv3d/depthwise_blocks", {1, 3, 50, 70, 80}, {80, 1, 3, 3, 3}, {.padding = {1, 1, 1}, .groups = 80}, false);
  auto film_last = [&](std::string name, Shape x, Shape w, Conv3dOptions o, bool gradient = false) {
    o.weight_layout = "othwi";
    film(std::move(name), x, w, o, gradient);
  };
  film_last("conv3d/othwi", {2, 4, 5, 4, 3}, {6, 3, 3, 3, 3}, {.padding = {1, 1, 1}, .act = "silu"}, true);
  film_last("conv3d/othwi_valid", {3, 5, 6, 7, 16}, {24, 3, 3, 3, 16}, {.act = "relu"});
  film_last("conv3d/othwi_two", {1, 6, 9, 7, 32}, {64, 2, 2, 2, 32}, {});
  film_last("conv3d/othwi_picture", {1, 1, 11, 13, 8}, {40, 1, 3, 3, 8}, {.padding = {0, 1, 1}, .act = "gelu_tanh"});
  film_last("conv3d/othwi_stride", {2, 7, 9, 8, 8}, {16, 3, 3, 3, 8}, {.stride = {2, 2, 2}, .padding = {1, 1, 1}});
  film_last("conv3d/othwi_unequal", {1, 4, 6, 9, 8}, {8, 2, 1, 3, 8}, {.stride = {1, 3, 2}, .padding = {1, 0, 2}});
  film_last("conv3d/othwi_odd", {1, 3, 5, 7, 5}, {7, 3, 3, 3, 5}, {});
  film_last("conv3d/othwi_blocks", {1, 4, 33, 35, 64}, {72, 3, 3, 3, 64}, {});
  c.push_back({.name = "conv3d/no_bias",
               .shapes = {{1, 4, 5, 6, 16}, {16, 3, 3, 3, 16}},
               .build = [](In in) { return conv3d(in[0], in[1], {}, {.weight_layout = "othwi"}); },
               .terms = 432,
               .gradient = false});
  auto with_shortcut = [&](std::string name, Shape x, int64_t repeats) {
    c.push_back({.name = "interleave_phases/" + name,
                 .shapes = {x, {x[0], x[1] - 1, x[2] - 1, x[3] / repeats}},
                 .build = [](In in) { return interleave_phases(in[0], in[1]); }});
  };
  with_shortcut("shortcut", {2, 4, 3, 20}, 4);
  with_shortcut("shortcut_packs", {3, 2, 5, 96}, 4);
  with_shortcut("shortcut_rows", {2, 3, 4, 12}, 2);
  with_shortcut("shortcut_rows_packs", {2, 5, 8, 64}, 2);
  c.push_back({.name = "interleave_phases3d", .shapes = {{2, 3, 4, 3, 16}}, .build = [](In in) {
                 return interleave_phases3d(in[0]);
               }});
  c.push_back({.name = "interleave_phases3d/packs", .shapes = {{1, 4, 3, 5, 64}}, .build = [](In in) {
                 return interleave_phases3d(in[0]);
               }});
  c.push_back({.name = "interleave_phases3d/one", .shapes = {{3, 1, 2, 2, 24}}, .build = [](In in) {
                 return interleave_phases3d(in[0]);
               }});
}

}  // namespace kinora::test
