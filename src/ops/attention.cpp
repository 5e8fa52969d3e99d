#include "ops/attention.h"

#include <algorithm>
#include <array>

#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shaping.h"
#include "ops/table.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;
using Specs = std::span<const TensorSpec>;

TensorSpec infer_softmax(Specs in, const Attrs&) {
  expect_inputs(in, 1);
  expect_float(in[0]);
  return in[0];
}

Value decompose_softmax(Inputs in, const Attrs&) {
  Value x = cast(in[0], DType::f32);
  Value e = exp(x - max(x, {-1}));  // the maximum cancels, so it needs no gradient
  return cast(e / sum(e, {-1}), in[0].dtype());
}

TensorSpec infer_attention(Specs in, const Attrs& attrs) {
  expect_inputs(in, 3, 5);
  const Shape &q = in[0].shape, &k = in[1].shape;
  if (q.rank() != 4 || k.rank() != 4 || k[0] != q[0] || k[3] != q[3] || k[2] < 1 || q[2] % k[2] != 0) {
    fail(ErrorKind::internal, "q [b, n, heads, d] and k [b, m, kv_heads, d] are needed");
  }
  expect_shape("v", in[2].shape, k);
  expect_float(in[0]);
  if (in[1].dtype != in[0].dtype || in[2].dtype != in[0].dtype) fail(ErrorKind::internal, "q, k, v differ in type");
  AttentionExtras extras = attention_extras(in);
  size_t expected = 3 + size_t{extras.bias > 0} + size_t{extras.lengths > 0};
  if (in.size() != expected) fail(ErrorKind::internal, "one bias and one tensor of lengths are the most");
  if (extras.lengths) expect_shape("lengths", in[extras.lengths].shape, {q[0]});
  if (extras.bias) {
    Shape scores{q[0], q[2], q[1], k[1]};
    const auto& [bias, dtype] = in[extras.bias];
    if (bias.rank() != 4 || bias[3] != k[1] || !(broadcast(bias, scores) == scores) || dtype != DType::f32) {
      fail(ErrorKind::internal, "bias must be f32 and broadcast to [batch, heads, queries, keys] " + scores.str() +
                                    ", all keys given, not " + bias.str());
    }
  }
  if (attrs.integer("block") < 1 || (attrs.integer("block") > 1 && attrs.integer("window") > 0))
    fail(ErrorKind::internal, "a block must be positive, and goes without a window");
  return in[0];
}

// 0 where query i may see key j, else a number that softmax turns into zero.
Value causal_bias(Graph& graph, int64_t queries, int64_t keys, int64_t window, int64_t block) {
  std::vector<float> bias(static_cast<size_t>(queries * keys), 0);
  for (int64_t i = 0; i < queries; ++i) {
    for (int64_t j = 0, end = (i / block + 1) * block; j < keys; ++j) {
      if (j >= end || (window > 0 && j <= i - window)) bias[static_cast<size_t>(i * keys + j)] = -1e30f;
    }
  }
  return graph.constant(Tensor::from({queries, keys}, bias));
}

// [batch, 1, 1, keys]: 0 for the keys before lengths[b], far below what causality hides for those behind.
Value length_bias(Value lengths, int64_t keys) {
  std::vector<float> rows(static_cast<size_t>((keys + 1) * keys), 0);  // by length
  for (int64_t n = 0; n <= keys; ++n) {
    std::fill(rows.begin() + n * keys + std::max<int64_t>(n, 1), rows.begin() + (n + 1) * keys, -1e35f);
  }
  Value table = lengths.graph().constant(Tensor::from({keys + 1, keys}, rows));
  return reshape(gather(table, lengths), {lengths.shape()[0], 1, 1, keys});
}

Value decompose_attention(Inputs in, const Attrs& attrs) {
  int64_t group = in[0].shape()[2] / in[1].shape()[2];
  auto heads_first = [](Value x) { return cast(permute(x, {0, 2, 1, 3}), DType::f32); };
  Value q = heads_first(in[0]);                                                   // [b, heads, n, d]
  Value k = heads_first(group > 1 ? repeat_interleave(in[1], 2, group) : in[1]);  // [b, heads, m, d]
  Value v = heads_first(group > 1 ? repeat_interleave(in[2], 2, group) : in[2]);
  Value scores = affine(matmul(q, k, false, true), attrs.real("scale"), 0);  // [b, heads, n, m]
  if (double cap = attrs.real("softcap"); cap > 0) scores = affine(tanh(affine(scores, 1 / cap, 0)), cap, 0);
  if (attrs.integer("causal")) {
    scores =
        scores + causal_bias(q.graph(), q.shape()[2], k.shape()[2], attrs.integer("window"), attrs.integer("block"));
  }
  std::vector<TensorSpec> specs;
  for (const Value& x : in) specs.push_back({x.shape(), x.dtype()});
  AttentionExtras extras = attention_extras(specs);
  if (extras.bias) scores = scores + in[extras.bias];
  if (extras.lengths) scores = scores + length_bias(in[extras.lengths], k.shape()[2]);
  return cast(permute(matmul(softmax(scores), v), {0, 2, 1, 3}), in[0].dtype());
}

TensorSpec infer_linear_attention(Specs in, const Attrs&) {
  expect_inputs(in, 3);
  expect_float(in[0]);
  if (in[0].shape.rank() != 4) fail(ErrorKind::internal, "[batch, tokens, heads, dim] is needed");
  if (!(in[1] == in[0]) || !(in[2] == in[0])) fail(ErrorKind::internal, "q, k and v must be alike");
  return in[0];
}

Value decompose_linear_attention(Inputs in, const Attrs& attrs) {
  auto heads_first = [](Value x) { return permute(cast(x, DType::f32), {0, 2, 1, 3}); };
  Value q = relu(heads_first(in[0])), k = relu(heads_first(in[1])), v = heads_first(in[2]);  // [b, h, n, d]
  int64_t d = v.shape()[3];
  Value one = broadcast_to(v.graph().scalar(1), v.shape().with(3, 1));
  Value state = matmul(concat({v, one}, 3), k, true, false);  // [b, h, d + 1, d]
  Value out = matmul(q, state, false, true);                  // [b, h, n, d + 1]
  Value y = slice(out, 3, 0, d) / affine(slice(out, 3, d, d + 1), 1, attrs.real("eps"));
  return cast(permute(y, {0, 2, 1, 3}), in[0].dtype());
}

TensorSpec infer_rope(Specs in, const Attrs&) {
  expect_inputs(in, 3);
  expect_float(in[0]);
  const Shape& x = in[0].shape;
  if (x.rank() != 4 || x[3] % 2 != 0) fail(ErrorKind::internal, "[batch, tokens, heads, even dim] is needed");
  expect_shape("cos", in[1].shape, {x[1], x[3]});
  expect_shape("sin", in[2].shape, {x[1], x[3]});
  return in[0];
}

Value decompose_rope(Inputs in, const Attrs& attrs) {
  Value x = cast(in[0], DType::f32);
  const Shape s = x.shape();
  bool pairs = attrs.integer("interleaved");
  std::vector<Value> parts = pairs ? split(reshape(x, {s[0], s[1], s[2], s[3] / 2, 2}), 4, 2) : split(x, 3, 2);
  Value turned = reshape(concat({affine(parts[1], -1, 0), parts[0]}, pairs ? 4 : 3), s);
  Shape table{1, s[1], 1, s[3]};
  return cast(x * reshape(in[1], table) + turned * reshape(in[2], table), in[0].dtype());
}

TensorSpec infer_rms_norm_rope(Specs in, const Attrs& attrs) {
  expect_inputs(in, 4);
  expect_float(in[1]);
  expect_shape("weight", in[1].shape, {in[0].shape[-1]});
  return infer_rope(std::array{in[0], in[2], in[3]}, attrs);
}

Value decompose_rms_norm_rope(Inputs in, const Attrs& attrs) {
  Value normed = rms_norm(cast(in[0], DType::f32), in[1], {}, attrs.real("eps"), attrs.real("offset"));
  return cast(rope(normed, in[2], in[3], attrs.integer("interleaved") != 0), in[0].dtype());
}

TensorSpec infer_glu(Specs in, const Attrs&) {
  expect_inputs(in, 1);
  expect_float(in[0]);
  if (in[0].shape[-1] % 2 != 0) fail(ErrorKind::internal, "an even number of channels is needed");
  return {in[0].shape.with(-1, in[0].shape[-1] / 2), in[0].dtype};
}

Value decompose_glu(Inputs in, const Attrs&) {
  std::vector<Value> halves = split(in[0], in[0].shape().rank() - 1, 2);
  return halves[0] * silu(halves[1]);
}

}  // namespace

const OpDef kSoftmax{"softmax", infer_softmax, nullptr, decompose_softmax};
const OpDef kAttention{"attention", infer_attention, nullptr, decompose_attention};
const OpDef kLinearAttention{"linear_attention", infer_linear_attention, nullptr, decompose_linear_attention};
const OpDef kRope{"rope", infer_rope, nullptr, decompose_rope};
const OpDef kRmsNormRope{"rms_norm_rope", infer_rms_norm_rope, nullptr, decompose_rms_norm_rope};
const OpDef kGlu{"glu", infer_glu, nullptr, decompose_glu};

Value softmax(Value x) { return apply(kSoftmax, {x}); }

AttentionExtras attention_extras(std::span<const TensorSpec> inputs) {
  AttentionExtras extras;
  for (size_t i = 3; i < inputs.size(); ++i) (inputs[i].dtype == DType::i32 ? extras.lengths : extras.bias) = i;
  return extras;
}

Value attention(Value q, Value k, Value v, Value bias, const AttentionOptions& o, Value lengths) {
  Attrs attrs{{"scale", o.scale},
              {"softcap", o.softcap},
              {"causal", int64_t{o.causal}},
              {"window", o.window},
              {"block", o.block}};
  std::vector<Value> inputs{q, k, v};
  if (bias.defined()) {
    const Shape s = bias.shape();
    inputs.push_back(s.rank() == 2 ? reshape(bias, {s[0], 1, 1, s[1]}) : bias);
  }
  if (lengths.defined()) inputs.push_back(lengths);
  return apply(kAttention, inputs, attrs);
}

Value linear_attention(Value q, Value k, Value v, double eps) {
  return apply(kLinearAttention, {q, k, v}, {{"eps", eps}});
}
Value rope(Value x, Value cos, Value sin, bool interleaved) {
  return apply(kRope, {x, cos, sin}, {{"interleaved", int64_t{interleaved}}});
}
Value rms_norm_rope(Value x, Value weight, Value cos, Value sin, double eps, double offset, bool interleaved) {
  return apply(kRmsNormRope, {x, weight, cos, sin},
               {{"eps", eps}, {"offset", offset}, {"interleaved", int64_t{interleaved}}});
}
Value glu(Value x) { return apply(kGlu, {x}); }

}  // namespace kinora
