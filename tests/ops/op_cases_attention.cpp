// Cases of norms and attention.
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/op_cases.h"
#include "ops/shaping.h"

namespace kinora::test {
namespace {

using In = std::span<const Value>;
using Tensors = std::span<const Tensor>;
using Doubles = std::vector<double>;

void add_norm_attention(std::vector<OpCase>& c) {
  c.push_back({.name = "layer_norm",
               .shapes = {{2, 3, 21}},
               .build = [](In x) { return layer_norm(x[0], 1e-6); },
               .terms = 21});
  c.push_back({.name = "layer_norm/modulated",
               .shapes = {{2, 3, 18}, {2, 1, 18}, {1, 1, 18}},
               .build = [](In x) { return layer_norm(x[0], 1e-6, x[1], x[2]); },
               .terms = 18});
  for (int64_t width : {21, 80, 2240}) {  // three rows of 21 leave a gap between sum and norm
    bool modulated = width != 80;
    Shape wide{3, 5, width}, one{3, 1, width};
    c.push_back(
        {.name = "mul_add_norm/" + std::to_string(width),
         .shapes = modulated ? std::vector<Shape>{one, wide, wide, one, one} : std::vector<Shape>{one, wide, wide},
         .build =
             [modulated](In x) {
               Value both =
                   modulated ? mul_add_norm(x[0], x[1], x[2], 1e-6, x[3], x[4]) : mul_add_norm(x[0], x[1], x[2], 1e-6);
               const Shape& shape = x[2].shape();
               return concat({normed_of(both, shape, x[2].dtype()), sum_of(both, shape, x[2].dtype())}, 2);
             },
         .terms = width,
         .gradient = false});
  }
  for (int64_t width : {21, 80, 2304}) {
    c.push_back({.name = "rms_norm_add_norm/" + std::to_string(width),
                 .shapes = {{3, 5, width}, {3, 5, width}, {width}, {width}},
                 .build =
                     [](In x) {
                       Value both = rms_norm_add_norm(x[0], x[1], {x[2], 1e-6, 1}, {x[3], 1e-5, 0.5});
                       const Shape& shape = x[0].shape();
                       return concat({normed_of(both, shape, x[0].dtype()), sum_of(both, shape, x[0].dtype())}, 2);
                     },
                 .terms = width,
                 .gradient = false});
  }
  c.push_back({.name = "rms_norm",
               .shapes = {{4, 19}, {19}, {19}},
               .build = [](In x) { return rms_norm(x[0], x[1], x[2], 1e-5); },
               .terms = 19});
  c.push_back({.name = "rms_norm/gemma",
               .shapes = {{2, 2, 16}, {16}},
               .build = [](In x) { return rms_norm(x[0], x[1], {}, 1e-6, 1); },
               .terms = 16});
  for (int64_t width : {19, 128, 8200}) {
    c.push_back({.name = "rms_norm/relu" + std::to_string(width),
                 .shapes = {{4, width}, {width}, {width}},
                 .build =
                     [](In x) {
                       return apply(kRmsNorm, x, {{"eps", 1e-5}, {"offset", 0.0}, {"act", "relu"}});
                     },
                 .terms = width,
                 .gradient = false});
  }
  c.push_back({.name = "group_norm",
               .shapes = {{2, 3, 2, 4, 12}, {12}, {12}},
               .build = [](In x) { return group_norm(x[0], x[1], x[2], 3, 1e-6, "silu"); },
               .terms = 96});
  c.push_back({.name = "group_norm/blocks",
               .shapes = {{2, 5000, 40}, {40}, {40}},
               .build = [](In x) { return group_norm(affine(x[0], 1, 3), x[1], x[2], 4, 1e-6); },
               .terms = 50000,
               .gradient = false});
  auto groups = [&](std::string name, Shape x, int64_t count, std::string act, float shift = 0) {
    c.push_back({.name = "group_norm/" + std::move(name),
                 .shapes = {x, {x[-1]}, {x[-1]}},
                 .build = [=](In in) { return group_norm(affine(in[0], 1, shift), in[1], in[2], count, 1e-6, act); },
                 .terms = x.product(1, x.rank()) / count,
                 .gradient = false});
  };
  groups("one", {1, 1, 32}, 2, "none");
  groups("each", {3, 7, 5}, 5, "relu");
  groups("odd", {5, 3, 7, 9, 21}, 7, "gelu_tanh");
  groups("packs", {2, 5, 17, 13, 128}, 32, "silu");
  groups("wide", {2, 3, 2304}, 32, "silu");
  groups("wide_odd", {1, 4, 1, 2, 2310}, 33, "none");
  groups("far", {2, 900, 64}, 4, "silu", 30);
  auto padded = [&](std::string name, Shape x, int64_t count, Ints before, Ints after, bool gradient = false) {
    c.push_back(
        {.name = std::move(name),
         .shapes = {x, {x[-1]}, {x[-1]}},
         .build = [=](In in) { return group_norm_pad(in[0], in[1], in[2], count, 1e-6, "silu", before, after); },
         .terms = x.product(1, x.rank()) / count,
         .gradient = gradient});
  };
  padded("group_norm_pad", {2, 2, 2, 3, 6}, 3, {0, 2, 1, 1, 0}, {0, 0, 1, 1, 0}, true);
  padded("group_norm_pad/packs", {2, 5, 17, 13, 64}, 32, {0, 2, 1, 1, 0}, {0, 0, 1, 1, 0});
  padded("group_norm_pad/one", {3, 1, 1, 1, 16}, 2, {0, 2, 1, 1, 0}, {0, 0, 1, 1, 0});
  padded("group_norm_pad/picture", {2, 7, 5, 40}, 5, {0, 0, 3, 0}, {0, 1, 2, 0});
  padded("group_norm_pad/line", {2, 9, 24}, 4, {0, 1, 0}, {0, 5, 0});
  c.push_back({.name = "rms_norm_add",
               .shapes = {{4, 19}, {4, 19}, {19}, {19}},
               .build = [](In x) { return rms_norm_add(x[0], x[1], x[2], x[3], 1e-5); },
               .terms = 19});
  c.push_back({.name = "attention",
               .shapes = {{2, 5, 2, 4}, {2, 7, 2, 4}, {2, 7, 2, 4}, {2, 7}},
               .build = [](In x) { return attention(x[0], x[1], x[2], x[3], {.scale = 0.5}); },
               .terms = 7});
  for (const Shape& bias :
       {Shape{1, 4, 5, 7}, Shape{2, 1, 5, 7}, Shape{2, 4, 1, 7}, Shape{2, 4, 5, 7}, Shape{1, 1, 1, 7}}) {
    c.push_back({.name = "attention/bias" + std::to_string(bias[0]) + std::to_string(bias[1]) + std::to_string(bias[2]),
                 .shapes = {{2, 5, 4, 4}, {2, 7, 2, 4}, {2, 7, 2, 4}, bias},
                 .build = [](In x) { return attention(x[0], x[1], x[2], x[3], {.scale = 0.5, .softcap = 2}); },
                 .terms = 7});
  }
  c.push_back({.name = "attention/bias_blocks",
               .shapes = {{1, 150, 2, 8}, {1, 90, 2, 8}, {1, 90, 2, 8}, {1, 2, 150, 90}},
               .build = [](In x) { return attention(x[0], x[1], x[2], x[3], {.causal = true}); },
               .terms = 90,
               .gradient = false});
  c.push_back({.name = "attention/gemma",
               .shapes = {{1, 6, 4, 4}, {1, 6, 2, 4}, {1, 6, 2, 4}},
               .build =
                   [](In x) {
                     return attention(x[0], x[1], x[2], {}, {.scale = 2, .softcap = 1.5, .causal = true, .window = 3});
                   },
               .terms = 6});
  c.push_back({.name = "attention/causal_blocks",
               .shapes = {{2, 7, 1, 4}, {2, 7, 1, 4}, {2, 7, 1, 4}},
               .build = [](In x) { return attention(x[0], x[1], x[2], {}, {.scale = 2, .causal = true, .block = 3}); },
               .terms = 7});
  c.push_back({.name = "attention/causal_blocks_bias",
               .shapes = {{1, 7, 1, 4}, {1, 7, 1, 4}, {1, 7, 1, 4}, {1, 7}},
               .build = [](In x) { return attention(x[0], x[1], x[2], x[3], {.causal = true, .block = 3}); },
               .terms = 7});
  c.push_back(
      {.name = "attention/causal_tiles",
       .shapes = {{1, 2700, 1, 8}, {1, 2700, 1, 8}, {1, 2700, 1, 8}},
       .build = [](In x) { return attention(x[0], x[1], x[2], {}, {.scale = 2, .causal = true, .block = 300}); },
       .terms = 2700,
       .gradient = false});
  c.push_back({.name = "attention/blocks",
               .shapes = {{1, 150, 2, 32}, {1, 90, 2, 32}, {1, 90, 2, 32}},
               .build = [](In x) { return attention(x[0], x[1], x[2], {}, {.scale = 0.18}); },
               .terms = 90,
               .gradient = false});
  c.push_back({.name = "linear_attention",
               .shapes = {{2, 6, 2, 5}, {2, 6, 2, 5}, {2, 6, 2, 5}},
               .build = [](In x) { return linear_attention(affine(x[0], 1, 0.4), affine(x[1], 1, 0.4), x[2]); },
               .terms = 30});
  c.push_back({.name = "linear_attention/blocks",
               .shapes = {{1, 1100, 2, 32}, {1, 1100, 2, 32}, {1, 1100, 2, 32}},
               .build = [](In x) { return linear_attention(x[0], x[1], x[2]); },
               .terms = 1100,
               .gradient = false});
  c.push_back({.name = "rope",
               .shapes = {{2, 3, 2, 6}, {3, 6}, {3, 6}},
               .build = [](In x) { return rope(x[0], x[1], x[2]); },
               .terms = 2});
  c.push_back({.name = "rope/interleaved",
               .shapes = {{2, 3, 2, 6}, {3, 6}, {3, 6}},
               .build = [](In x) { return rope(x[0], x[1], x[2], true); },
               .terms = 2,
               .truth =
                   [](Tensors in) {
                     Doubles out;
                     for (int64_t i = 0; i < 72; ++i) {
                       int64_t at = i / 12 % 3 * 6 + i % 6;  // in the tables: heads and batch share them
                       double partner = in[0].data<float>()[i ^ 1], sign = i % 2 ? 1 : -1;
                       out.push_back(double(in[0].data<float>()[i]) * in[1].data<float>()[at] +
                                     sign * partner * in[2].data<float>()[at]);
                     }
                     return out;
                   }});
}

// Sizes that are no multiples of any tile, and inputs that are slices of one projection.
void add_attention_sizes(std::vector<OpCase>& c) {
  auto attend = [&](std::string name, Shape q, Shape k, AttentionOptions o, bool biased = false) {
    OpCase item{.name = "attention/" + name,
                .shapes = {q, k, k},
                .build = [=](In x) { return attention(x[0], x[1], x[2], biased ? x[3] : Value(), o); },
                .terms = k[1],
                .gradient = false};
    if (biased) item.shapes.push_back({k[0], k[1]});
    c.push_back(std::move(item));
  };
  attend("one", {1, 1, 1, 8}, {1, 1, 1, 8}, {.scale = 0.3});
  attend("odd", {3, 7, 3, 5}, {3, 67, 1, 5}, {.scale = 0.4}, true);
  attend("dim64", {2, 131, 2, 64}, {2, 131, 1, 64}, {.scale = 0.125, .causal = true});
  attend("dim72", {2, 130, 2, 72}, {2, 75, 2, 72}, {.scale = 0.12}, true);
  attend("dim96", {1, 17, 1, 96}, {1, 33, 1, 96}, {.scale = -0.1});
  attend("dim112", {1, 65, 1, 112}, {1, 129, 1, 112}, {.scale = 0.1});
  attend("dim128", {1, 140, 2, 128}, {1, 140, 1, 128}, {.scale = 0.09, .causal = true, .window = 70});
  attend("dim160", {1, 9, 1, 160}, {1, 40, 1, 160}, {.scale = 0.08});
  attend("dim256", {1, 70, 2, 256}, {1, 70, 1, 256}, {.scale = 0.06, .softcap = 2, .causal = true}, true);
  attend("dim256_pairs", {2, 150, 4, 256}, {2, 150, 2, 256}, {.scale = 0.06, .softcap = 50, .causal = true});
  attend("dim256_window", {1, 90, 2, 256}, {1, 90, 1, 256}, {.scale = 0.06, .causal = true, .window = 20}, true);
  attend("dim256_unseen", {1, 90, 2, 256}, {1, 40, 1, 256}, {.scale = 0.06, .causal = true, .window = 20});
  attend("dim256_keys", {2, 19, 2, 256}, {2, 330, 1, 256}, {.scale = 0.06}, true);
  attend("dim256_frames", {1, 70, 2, 256}, {1, 130, 1, 256}, {.scale = 0.06, .causal = true, .block = 33}, true);
  attend("dim200", {2, 35, 6, 200}, {2, 70, 1, 200}, {.scale = 0.07, .softcap = 2}, true);
  attend("dim250", {2, 35, 2, 250}, {2, 35, 1, 250}, {.scale = 0.07, .causal = true}, true);
  attend("dim256_single", {2, 70, 3, 256}, {2, 70, 3, 256}, {.scale = 0.06, .causal = true}, true);
  attend("dim264", {1, 70, 2, 264}, {1, 70, 1, 264}, {.scale = 0.06});
  attend("dim301", {2, 35, 1, 301}, {2, 41, 1, 301}, {.scale = 0.06}, true);
  attend("dim512", {2, 65, 3, 512}, {2, 99, 1, 512}, {.scale = 0.044, .softcap = 2});
  attend("dim512_causal", {1, 130, 1, 512}, {1, 130, 1, 512}, {.scale = 0.044, .causal = true});
  attend("frames", {2, 132, 1, 512}, {2, 132, 1, 512}, {.scale = 0.044, .causal = true, .block = 33});
  attend("frames_one", {1, 1, 1, 320}, {1, 1, 1, 320}, {.scale = 0.06, .causal = true, .block = 2});
  attend("frames_short", {3, 5, 1, 512}, {3, 5, 1, 512}, {.scale = 0.05, .causal = true, .block = 64});
  attend("frames_dim64", {2, 300, 2, 64}, {2, 300, 1, 64}, {.scale = 0.125, .causal = true, .block = 70});
  attend("frames_cut", {1, 90, 2, 40}, {1, 53, 2, 40}, {.scale = 0.15, .causal = true, .block = 17});
  attend("frames_biased", {1, 90, 2, 128}, {1, 101, 2, 128}, {.scale = 0.1, .causal = true, .block = 20}, true);
  auto attend_lengths = [&](std::string name, Shape q, Shape k, AttentionOptions o, std::vector<int64_t> lengths,
                            bool biased = false, bool gradient = false) {
    OpCase item{.name = "attention/lengths_" + name,
                .shapes = {q, k, k},
                .build = [=](In x) { return attention(x[0], x[1], x[2], biased ? x[3] : Value(), o, x.back()); },
                .terms = k[1],
                .gradient = gradient,
                .ids = std::move(lengths)};
    if (biased) item.shapes.push_back({k[0], k[1]});
    item.shapes.push_back({k[0]});
    c.push_back(std::move(item));
  };
  attend_lengths("small", {3, 5, 2, 4}, {3, 7, 2, 4}, {.scale = 0.5}, {1, 7, 4}, false, true);
  attend_lengths("small_biased", {2, 5, 2, 4}, {2, 7, 1, 4}, {.scale = 0.5, .softcap = 2}, {6, 2}, true, true);
  attend_lengths("one", {2, 1, 1, 8}, {2, 1, 1, 8}, {.scale = 0.3}, {1, 1});
  attend_lengths("caption", {4, 131, 2, 112}, {4, 150, 2, 112}, {.scale = 0.1}, {1, 150, 64, 65});
  attend_lengths("dim72", {4, 67, 2, 72}, {4, 75, 1, 72}, {.scale = 0.12}, {75, 63, 32, 33});
  attend_lengths("odd", {3, 7, 3, 5}, {3, 67, 1, 5}, {.scale = 0.4}, {67, 66, 3}, true);
  attend_lengths("dim160", {2, 9, 1, 160}, {2, 40, 1, 160}, {.scale = 0.08}, {31, 34});
  attend_lengths("dim256", {3, 35, 2, 256}, {3, 67, 1, 256}, {.scale = 0.06}, {1, 64, 67});
  attend_lengths("dim256_causal", {2, 90, 2, 256}, {2, 90, 1, 256}, {.scale = 0.06, .causal = true}, {5, 80});
  attend_lengths("dim512", {3, 65, 2, 512}, {3, 41, 1, 512}, {.scale = 0.044}, {1, 17, 41});
  attend_lengths("causal", {2, 131, 2, 64}, {2, 131, 1, 64}, {.scale = 0.125, .causal = true}, {1, 70});
  attend_lengths("window", {2, 140, 1, 32}, {2, 140, 1, 32}, {.scale = 0.2, .causal = true, .window = 20}, {70, 3});
  attend_lengths("frames", {2, 90, 1, 40}, {2, 90, 1, 40}, {.scale = 0.15, .causal = true, .block = 17}, {50, 90});
  attend("unseen", {1, 90, 1, 16}, {1, 40, 1, 16}, {.scale = 0.25, .causal = true, .window = 20});
  c.push_back(
      {.name = "attention/masked",
       .shapes = {{2, 6, 2, 32}, {2, 70, 2, 32}, {2, 70, 2, 32}, {2, 70}},
       .build = [](In x) { return attention(x[0], x[1], x[2], affine(step(x[3]), 1e30, -1e30), {.causal = true}); },
       .terms = 70,
       .gradient = false});
  // Padding behind the tokens, and before them: there, queries see nothing but what the mask hides.
  for (bool left : {false, true}) {
    auto padded = [=](In x) {
      std::vector<float> mask(2 * 100, 0);
      for (int64_t i = 0; i < 40; ++i) mask[static_cast<size_t>(left ? i : 160 + i)] = -1e30f;
      Value bias = x[0].graph().constant(Tensor::from({2, 100}, mask));
      return attention(x[0], x[1], x[2], bias, {.scale = 0.06, .softcap = 50, .causal = true});
    };
    c.push_back({.name = std::string("attention/padded_") + (left ? "left" : "right"),
                 .shapes = {{2, 100, 4, 256}, {2, 100, 2, 256}, {2, 100, 2, 256}},
                 .build = padded,
                 .terms = 100,
                 .gradient = false});
  }
  c.push_back({.name = "attention/qkv",
               .shapes = {{2, 40, 480}},
               .build =
                   [](In x) {
                     std::vector<Value> qkv = split(reshape(x[0], {2, 40, 6, 80}), 2, 3);
                     return attention(qkv[0], qkv[1], qkv[2], {}, {.scale = 0.11});
                   },
               .terms = 40,
               .gradient = false});
}

void add_linear_attention_sizes(std::vector<OpCase>& c) {
  auto attend = [&](std::string name, Shape x, float low = -1) {
    c.push_back({.name = "linear_attention/" + name,
                 .shapes = {x, x, x},
                 .build = [](In in) { return linear_attention(in[0], in[1], in[2]); },
                 .terms = x[1],
                 .low = low,
                 .gradient = false});
  };
  attend("one", {1, 1, 1, 32}, 0.1f);
  attend("tokens", {3, 150, 5, 32});
  attend("many", {1, 4500, 3, 32});
  attend("dim1", {2, 20, 3, 1}, 0.1f);
  attend("dim33", {1, 90, 2, 33});
  attend("dim128", {1, 50, 2, 128});
  c.push_back({.name = "linear_attention/qkv",
               .shapes = {{2, 100, 288}},
               .build =
                   [](In x) {
                     std::vector<Value> qkv = split(reshape(x[0], {2, 100, 9, 32}), 2, 3);
                     return linear_attention(qkv[0], qkv[1], qkv[2]);
                   },
               .terms = 100,
               .gradient = false});
  c.push_back({.name = "linear_attention/by_head",
               .shapes = {{2, 100, 3, 96}},
               .build =
                   [](In x) {
                     std::vector<Value> qkv = split(x[0], 3, 3);
                     return linear_attention(qkv[0], qkv[1], qkv[2]);
                   },
               .terms = 100,
               .gradient = false});
  auto rotate = [&](std::string name, Shape x) {
    c.push_back({.name = "rope/" + name,
                 .shapes = {x, {x[1], x[3]}, {x[1], x[3]}},
                 .build = [](In in) { return rope(in[0], in[1], in[2]); },
                 .terms = 2,
                 .gradient = false});
  };
  rotate("dim32", {2, 5, 6, 32});
  rotate("dim256", {1, 40, 9, 256});
  rotate("dim40", {3, 7, 1, 40});
  auto norm_and_rotate = [&](std::string name, Shape x, bool pairs) {
    c.push_back({.name = "rms_norm_rope/" + name,
                 .shapes = {x, {x[3]}, {x[1], x[3]}, {x[1], x[3]}},
                 .build = [pairs](In in) { return rms_norm_rope(in[0], in[1], in[2], in[3], 1e-6, 0.5, pairs); },
                 .terms = x[3],
                 .low = 0.25f,
                 .gradient = x.numel() < 100});
  };
  norm_and_rotate("small", {2, 3, 2, 6}, false);
  norm_and_rotate("small_pairs", {2, 3, 2, 6}, true);
  norm_and_rotate("dim128", {1, 19, 13, 128}, false);
  norm_and_rotate("dim128_pairs", {2, 5, 7, 128}, true);
  norm_and_rotate("dim64", {2, 1, 24, 64}, false);
  norm_and_rotate("dim256", {1, 3, 5, 256}, false);
  norm_and_rotate("dim40", {3, 7, 1, 40}, false);
  c.push_back({.name = "rms_norm_rope/slice",
               .shapes = {{1, 7, 288}, {32}, {7, 32}, {7, 32}},
               .build =
                   [](In x) {
                     Value k = reshape(slice(x[0], 2, 96, 192), {1, 7, 3, 32});
                     return rms_norm_rope(k, x[1], x[2], x[3], 1e-6);
                   },
               .terms = 32,
               .gradient = false});
  c.push_back({.name = "rope/slice",
               .shapes = {{2, 7, 9, 64}, {7, 64}, {7, 64}},
               .build = [](In x) { return rope(slice(x[0], 2, 3, 8), x[1], x[2]); },
               .terms = 2,
               .gradient = false});
}

}  // namespace

void add_norm_attention_cases(std::vector<OpCase>& c) {
  add_norm_attention(c);
  add_attention_sizes(c);
  add_linear_attention_sizes(c);
}

}  // namespace kinora::test
