// The passes around quantized products: what becomes of each, and that the result stays the same.
#include "ops/fuse_quantized.h"

#include <cstring>

#include "graph/rewrite.h"
#include "ops/elementwise.h"
#include "ops/fuse_products.h"
#include "ops/norm.h"
#include "ops/quantize.h"
#include "ops/shaping.h"
#include "support.h"

namespace kinora::test {
namespace {

int64_t count_of(const Graph& graph, const OpDef& op) {
  std::vector<bool> live = live_nodes(graph);
  int64_t count = 0;
  for (size_t i = 0; i < live.size(); ++i) count += live[i] && graph.nodes()[i].op == &op;
  return count;
}

QuantizedWeight weight_of(Graph& graph, const std::string& name, QuantFormat format, int64_t n, int64_t k) {
  QuantizedMatrix q = quantize_matrix(random_tensor({n, k}, static_cast<uint64_t>(name.back())), format);
  QuantizedWeight weight{format, graph.parameter(name, q.codes), graph.parameter(name + "_scale", q.scale), {}};
  if (q.scale_2.defined()) weight.scale_2 = graph.parameter(name + "_scale_2", q.scale_2);
  return weight;
}

// Every output has the same bits.
void expect_same(const Graph& before, const Graph& after) {
  std::map<std::string, Tensor> feed;
  uint64_t seed = 5;
  for (const Node& node : before.nodes()) {
    if (node.op == &kInputOp) feed[node.name] = random_tensor(node.spec.shape, seed++);
  }
  auto expected = run_graph(before, feed), got = run_graph(after, feed);
  for (const auto& [name, tensor] : expected) {
    ASSERT_EQ(got.at(name).bytes(), tensor.bytes());
    EXPECT_EQ(std::memcmp(got.at(name).raw(), tensor.raw(), tensor.bytes()), 0) << name;
  }
}

struct Three {
  Graph graph;
  Value x = graph.input("x", {2, 3, 32});

  explicit Three(QuantFormat format) {
    int64_t i = 0;
    for (const char* name : {"q", "k", "v"}) {
      Value bias = graph.parameter(std::string(name) + "_bias", random_tensor({16 * ++i}, 9));
      graph.output(name, quantized_linear(x, weight_of(graph, name, format, 16 * i, 32), {.bias = bias}));
    }
  }
};

TEST(MergeQuantizedLinears, JoinsThoseOfTheSameX) {
  for (QuantFormat format : {QuantFormat::int8_weights, QuantFormat::fp8_weights}) {
    Three three(format);
    Graph after = merge_quantized_linears(three.graph);
    EXPECT_EQ(count_of(after, kQuantizedLinear), 1);
    expect_same(three.graph, after);
  }
}

TEST(MergeQuantizedLinears, JoinsThoseOfTheSameRows) {
  for (QuantFormat format : {QuantFormat::int8, QuantFormat::fp8}) {
    Three three(format);
    Graph shared = share_quantized_rows(three.graph);
    Graph after = merge_quantized_linears(shared);
    EXPECT_EQ(count_of(after, kQuantizeRows), 1);
    EXPECT_EQ(count_of(after, kQuantizedLinearRows), 1);
    expect_same(shared, after);
  }
}

TEST(MergeQuantizedLinears, LeavesWhatCannotBeJoined) {
  Three blocks(QuantFormat::nvfp4);
  EXPECT_EQ(count_of(merge_quantized_linears(blocks.graph), kQuantizedLinear), 3);
  Graph graph;
  Value x = graph.input("x", {4, 32}), residual = graph.input("residual", {4, 16});
  auto add = [&](const std::string& name, QuantizedFinish finish) {
    graph.output(name, quantized_linear(x, weight_of(graph, name, QuantFormat::fp8_weights, 16, 32), finish));
  };
  add("plain", {});
  add("act", {.act = "silu"});
  add("sum", {.residual = residual});
  add("bias", {.bias = graph.parameter("b", random_tensor({16}, 3))});
  graph.output("format", quantized_linear(x, weight_of(graph, "other", QuantFormat::int8_weights, 16, 32)));
  EXPECT_EQ(count_of(merge_quantized_linears(graph), kQuantizedLinear), 5);
}

struct Chain {
  Graph graph;
  Value x = graph.input("x", {2, 6, 48}), scale = graph.input("scale", {2, 1, 48});
  Value weight = graph.parameter("weight", random_tensor({48}, 4));

  void read(Value y, QuantFormat format) {
    std::span<const int64_t> dims = y.shape().dims();
    Value rows = quantize_rows(y, format);
    graph.output("y", quantized_linear_rows(rows, weight_of(graph, "w", format, 16, 48), {},
                                            Ints(dims.begin(), dims.end() - 1), y.dtype()));
  }
};

TEST(FuseQuantizedRows, JoinsANormThroughAReshape) {
  for (QuantFormat format : {QuantFormat::int8, QuantFormat::fp8}) {
    Chain c;
    c.read(reshape(layer_norm(c.x, 1e-6, c.scale, c.scale), {2, 2, 3, 48}), format);
    Graph after = fuse_quantized_rows(c.graph);
    EXPECT_EQ(count_of(after, kLayerNormRows), 1);
    EXPECT_EQ(count_of(after, kQuantizeRows) + count_of(after, kLayerNorm), 0);
    expect_same(c.graph, after);
  }
}

TEST(FuseQuantizedRows, JoinsAnRmsNormAndAGatedActivation) {
  Chain norm;
  norm.read(rms_norm(norm.x, norm.weight, {}, 1e-5, 1), QuantFormat::fp8);
  Graph after = fuse_quantized_rows(norm.graph);
  EXPECT_EQ(count_of(after, kRmsNormRows), 1);
  expect_same(norm.graph, after);
  Chain gated;
  gated.read(act_mul(gated.x, affine(gated.x, 2, 1), "silu"), QuantFormat::int8);
  Graph joined = fuse_quantized_rows(gated.graph);
  EXPECT_EQ(count_of(joined, kActMulRows), 1);
  EXPECT_EQ(count_of(joined, kActMul), 0);
  expect_same(gated.graph, joined);
}

TEST(FuseQuantizedRows, LeavesWhatOthersReadOrWhatHasOtherRows) {
  Chain shared;
  Value y = layer_norm(shared.x, 1e-6);
  shared.read(y, QuantFormat::fp8);
  shared.graph.output("norm", y);
  EXPECT_EQ(count_of(fuse_quantized_rows(shared.graph), kLayerNormRows), 0);
  Chain other;
  Value flat = reshape(layer_norm(other.graph.input("wide", {3, 96}), 1e-6), {6, 48});
  other.read(flat, QuantFormat::fp8);
  EXPECT_EQ(count_of(fuse_quantized_rows(other.graph), kQuantizeRows), 1);
}

struct Sum {
  Graph graph;
  Value gate = graph.input("gate", {2, 1, 48}), y = graph.input("y", {2, 6, 48}), x = graph.input("x", {2, 6, 48});
  Value sum = mul_add(gate, y, x);

  Value product(Value rows, const std::string& weight) {
    return quantized_linear_rows(rows, weight_of(graph, weight, QuantFormat::fp8, 48, 48), {}, {2, 6}, DType::f32);
  }
};

TEST(FuseSumsAndRows, JoinsASumThatIsReadAgainLater) {
  for (bool norm : {false, true}) {
    Sum s;
    Value rows = norm ? layer_norm_rows(s.sum, QuantFormat::fp8, 1e-6, s.gate, s.gate)
                      : quantize_rows(reshape(s.sum, {2, 2, 3, 48}), QuantFormat::fp8);
    s.graph.output("y", s.sum + s.product(rows, "w"));
    Graph after = fuse_sums_and_rows(s.graph);
    EXPECT_EQ(count_of(after, kMulAddRows), 1);
    EXPECT_EQ(count_of(after, kMulAdd) + count_of(after, kQuantizeRows) + count_of(after, kLayerNormRows), 0);
    expect_same(s.graph, after);
  }
}

TEST(FuseSumsAndRows, LeavesWhatIsReadBeforeOrGivenOut) {
  Sum before;
  Value other = affine(before.sum, 2, 1);
  before.graph.output("y", other + before.product(quantize_rows(before.sum, QuantFormat::fp8), "w"));
  EXPECT_EQ(count_of(fuse_sums_and_rows(before.graph), kMulAddRows), 0);
  Sum out;
  out.graph.output("y", out.product(quantize_rows(out.sum, QuantFormat::fp8), "w"));
  out.graph.output("sum", out.sum);
  EXPECT_EQ(count_of(fuse_sums_and_rows(out.graph), kMulAddRows), 0);
}

// A sum that begins with the sum before, as from block to block.
TEST(FuseSumsAndRows, JoinsAChain) {
  Sum s;
  Value y = s.product(quantize_rows(s.sum, QuantFormat::fp8), "a");
  Value next = mul_add(s.gate, y, s.sum);
  s.graph.output("y", next + s.product(quantize_rows(next, QuantFormat::fp8), "b"));
  Graph after = fuse_sums_and_rows(s.graph);
  EXPECT_EQ(count_of(after, kMulAddRows), 2);
  EXPECT_EQ(count_of(after, kMulAdd), 0);
  expect_same(s.graph, after);
}

// Two kinds of rows of one sum: the first goes with it, the second reads it.
TEST(FuseSumsAndRows, JoinsTheFirstOfTwo) {
  Sum s;
  Value a = s.product(quantize_rows(s.sum, QuantFormat::fp8), "a");
  Value b = s.product(layer_norm_rows(s.sum, QuantFormat::fp8, 1e-6), "b");
  s.graph.output("y", a + b);
  Graph after = fuse_sums_and_rows(s.graph);
  EXPECT_EQ(count_of(after, kMulAddRows), 1);
  EXPECT_EQ(count_of(after, kLayerNormRows), 1);
  expect_same(s.graph, after);
}

TEST(FuseSumsAndRows, JoinsASumWithItsNorm) {
  for (bool modulated : {false, true}) {
    Sum s;
    Value normed = modulated ? layer_norm(s.sum, 1e-6, s.gate, s.gate) : layer_norm(s.sum, 1e-6);
    Value next = mul_add(s.gate, affine(normed, 2, 1), s.sum);
    Value last = layer_norm(next, 1e-6);  // before the other reader of `next`
    s.graph.output("y", last + affine(normed, 3, 0) * next);
    Graph after = fuse_sums_and_rows(s.graph);
    EXPECT_EQ(count_of(after, kMulAddNorm), 2);
    EXPECT_EQ(count_of(after, kMulAdd) + count_of(after, kLayerNorm), 0);
    expect_same(s.graph, after);
    EXPECT_EQ(count_of(fuse_sums_and_rows(after), kMulAddNorm), 2);
  }
}

TEST(FuseSumsAndRows, LeavesANormOfWhatIsReadBeforeOrGivenOut) {
  Sum before;
  Value other = affine(before.sum, 2, 1);
  before.graph.output("y", other + layer_norm(before.sum, 1e-6));
  EXPECT_EQ(count_of(fuse_sums_and_rows(before.graph), kMulAddNorm), 0);
  Sum out;
  out.graph.output("y", layer_norm(out.sum, 1e-6));
  out.graph.output("sum", out.sum);
  EXPECT_EQ(count_of(fuse_sums_and_rows(out.graph), kMulAddNorm), 0);
  Sum narrow;  // a scale that broadcasts along the rows
  Value one = narrow.graph.input("one", {2, 1, 1});
  narrow.graph.output("y", layer_norm(narrow.sum, 1e-6, one, one));
  EXPECT_EQ(count_of(fuse_sums_and_rows(narrow.graph), kMulAddNorm), 0);
}

// A branch's norm, the stream that it joins, and the next branch's norm, as from block to block.
struct Stream {
  Graph graph;
  Value x = graph.input("x", {2, 6, 48}), branch = graph.input("branch", {2, 6, 48});
  Value first = graph.parameter("first", random_tensor({48}, 2)),
        second = graph.parameter("second", random_tensor({48}, 3));

  Value add(Value to, Value y) { return rms_norm_add(y, to, first, {}, 1e-6, 1); }
  Value norm(Value y) { return rms_norm(y, second, {}, 1e-5, 0.5); }
};

TEST(FuseSumsAndRows, JoinsAStreamWithItsNorms) {
  Stream s;
  Value sum = s.add(s.x, s.branch);
  Value next = s.add(sum, affine(s.norm(sum), 2, 1));
  s.graph.output("y", s.norm(next) * next);
  Graph after = fuse_sums_and_rows(s.graph);
  EXPECT_EQ(count_of(after, kRmsNormAddNorm), 2);
  EXPECT_EQ(count_of(after, kRmsNormAdd) + count_of(after, kRmsNorm), 0);
  expect_same(s.graph, after);
  EXPECT_EQ(count_of(fuse_sums_and_rows(after), kRmsNormAddNorm), 2);
}

TEST(FuseSumsAndRows, LeavesStreamsThatAreReadBeforeOrOtherNorms) {
  Stream before;
  Value sum = before.add(before.x, before.branch);
  Value other = affine(sum, 2, 1);
  before.graph.output("y", other + before.norm(sum));
  EXPECT_EQ(count_of(fuse_sums_and_rows(before.graph), kRmsNormAddNorm), 0);
  Stream out;
  sum = out.add(out.x, out.branch);
  out.graph.output("y", out.norm(sum));
  out.graph.output("sum", sum);
  EXPECT_EQ(count_of(fuse_sums_and_rows(out.graph), kRmsNormAddNorm), 0);
  Stream biased;
  sum = rms_norm_add(biased.branch, biased.x, biased.first, biased.second, 1e-6);
  biased.graph.output("y", biased.norm(sum));
  EXPECT_EQ(count_of(fuse_sums_and_rows(biased.graph), kRmsNormAddNorm), 0);
  Stream plain;  // a norm without a weight
  plain.graph.output("y", rms_norm(plain.add(plain.x, plain.branch), {}, {}, 1e-6));
  EXPECT_EQ(count_of(fuse_sums_and_rows(plain.graph), kRmsNormAddNorm), 0);
}

TEST(FuseQuantizedRows, RefusesInputsThatDoNotFit) {
  Graph graph;
  Value x = graph.input("x", {4, 48}), narrow = graph.input("narrow", {4, 24}), row = graph.input("row", {1, 48});
  EXPECT_THROW(layer_norm_rows(narrow, QuantFormat::fp8, 1e-6), Error);
  EXPECT_THROW(layer_norm_rows(x, QuantFormat::nvfp4, 1e-6), Error);
  EXPECT_THROW(layer_norm_rows(x, QuantFormat::nvfp4_both, 1e-6), Error);
  EXPECT_THROW(act_mul_rows(x, row, QuantFormat::fp8, "silu"), Error);
}

TEST(TileWeightScales, PutsThemWhereRowsHaveTheirs) {
  constexpr int64_t kRows = 130, kBlocks = 5;
  QuantizedMatrix q = quantize_matrix(random_tensor({kRows, kBlocks * 16}, 1), QuantFormat::nvfp4_both);
  Graph graph;
  Value tiled = tile_scales(graph.input("scale", {kRows, kBlocks}, DType::f8_e4m3));
  graph.output("tiled", tiled);
  graph.output("back", untile_scales(tiled, kRows, kBlocks));
  auto got = run_graph(graph, {{"scale", q.scale}});
  std::vector<uint8_t> expected(static_cast<size_t>(tiled_scale_bytes(kRows, kBlocks)));
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t b = 0; b < kBlocks; ++b) {
      expected[static_cast<size_t>(tiled_scale_at(i, b, kBlocks))] = q.scale.data<f8_e4m3>()[i * kBlocks + b].bits;
    }
  }
  ASSERT_EQ(got.at("tiled").bytes(), expected.size());
  EXPECT_EQ(std::memcmp(got.at("tiled").raw(), expected.data(), expected.size()), 0);
  EXPECT_EQ(std::memcmp(got.at("back").raw(), q.scale.raw(), q.scale.bytes()), 0);
}

TEST(TileWeightScales, KeepsTheProduct) {
  Graph graph;
  Value x = graph.input("x", {3, 70, 80});
  QuantizedMatrix q = quantize_matrix(random_tensor({130, 80}, 2), QuantFormat::nvfp4_both);
  QuantizedWeight weight{QuantFormat::nvfp4_both, graph.parameter("w", q.codes), graph.parameter("s", q.scale),
                         graph.parameter("t", q.scale_2)};
  graph.output("y", quantized_linear(x, weight, {.bias = graph.parameter("b", random_tensor({130}, 3))}));
  Graph shared = share_quantized_rows(graph), tiled = tile_weight_scales(shared);
  EXPECT_EQ(count_of(tiled, kPermute), 1);
  EXPECT_EQ(count_of(tile_weight_scales(tiled), kPermute), 1);
  std::map<std::string, Tensor> feed{{"x", random_tensor({3, 70, 80}, 4)}};
  expect_close(run_graph(tiled, feed).at("y"), run_graph(shared, feed).at("y"), DType::f32, 80, "tiled");
}

}  // namespace
}  // namespace kinora::test
