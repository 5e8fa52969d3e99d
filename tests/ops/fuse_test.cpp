// The passes that make fewer steps of sums and products: what becomes of each, and that the result stays the same.
#include "ops/fuse.h"

#include "graph/rewrite.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/fuse_products.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/shaping.h"
#include "support.h"

namespace kinora::test {
namespace {

std::vector<const Node*> nodes_of(const Graph& graph, const OpDef& op) {
  std::vector<const Node*> found;
  std::vector<bool> live = live_nodes(graph);
  for (size_t i = 0; i < live.size(); ++i) {
    if (live[i] && graph.nodes()[i].op == &op) found.push_back(&graph.nodes()[i]);
  }
  return found;
}

void expect_same(const Graph& before, const Graph& after) {
  std::map<std::string, Tensor> feed;
  uint64_t seed = 5;
  for (const Node& node : before.nodes()) {  // one that nothing reads is fed, too
    if (node.op == &kInputOp) feed[node.name] = random_tensor(node.spec.shape, seed++);
  }
  expect_close(run_graph(after, feed).at("y"), run_graph(before, feed).at("y"), DType::f32, 100, "y");
}

struct Layer {
  Graph graph;
  Value x = graph.input("x", {2, 3, 4}), residual = graph.input("residual", {2, 3, 5});
  Value gate = graph.input("gate", {2, 1, 5});
  Value weight = graph.parameter("weight", random_tensor({5, 4}, 1)),
        bias = graph.parameter("bias", random_tensor({5}, 2));
};

TEST(SplitGates, TurnsAGatedSumIntoAProductAndMulAdd) {
  for (bool biased : {false, true}) {
    Layer l;
    l.graph.output("y", linear_add(l.x, l.weight, biased ? l.bias : Value(), l.residual, l.gate));
    Graph after = split_gates(l.graph);
    EXPECT_TRUE(nodes_of(after, kLinearAdd).empty());
    ASSERT_EQ(nodes_of(after, kMulAdd).size(), 1u);
    ASSERT_EQ(nodes_of(after, kLinear).size(), 1u);
    EXPECT_EQ(nodes_of(after, kLinear)[0]->inputs.size(), biased ? 3u : 2u);
    expect_same(l.graph, after);
    Graph fused = fuse_pointwise(after);  // and it stays so
    EXPECT_EQ(nodes_of(fused, kMulAdd).size(), 1u);
    expect_same(l.graph, fused);
  }
}

TEST(SplitGates, LeavesAPlainSum) {
  Layer l;
  l.graph.output("y", linear_add(l.x, l.weight, l.bias, l.residual));
  EXPECT_EQ(nodes_of(split_gates(l.graph), kLinearAdd).size(), 1u);
}

TEST(FusePointwise, JoinsALinearWithWhatItIsAddedTo) {
  for (bool biased : {false, true}) {
    Layer l;
    l.graph.output("y", l.residual + linear(l.x, l.weight, biased ? l.bias : Value()));
    Graph after = fuse_pointwise(l.graph);
    ASSERT_EQ(nodes_of(after, kLinearAdd).size(), 1u);
    EXPECT_TRUE(nodes_of(after, kAdd).empty());
    EXPECT_TRUE(nodes_of(after, kLinear).empty());
    expect_same(l.graph, after);
  }
}

TEST(FusePointwise, LeavesALinearThatOthersRead) {
  Layer l;
  Value product = linear(l.x, l.weight, l.bias);
  l.graph.output("y", l.residual + product);
  l.graph.output("product", product);
  EXPECT_TRUE(nodes_of(fuse_pointwise(l.graph), kLinearAdd).empty());
}

// A stream in float32 beside 16-bit layers, as T5 has it: the layer's result is added before it is rounded.
TEST(FusePointwise, AddsToAWiderStream) {
  for (bool biased : {false, true}) {
    Graph graph;
    Value x = graph.input("x", {2, 3, 4}), residual = graph.input("residual", {2, 3, 5});
    Value weight = graph.parameter("weight", random_tensor({5, 4}, 1).to(DType::bf16)),
          bias = graph.parameter("bias", random_tensor({5}, 2).to(DType::bf16));
    graph.output("y", residual + cast(linear(cast(x, DType::bf16), weight, biased ? bias : Value()), DType::f32));
    Graph after = fuse_pointwise(graph);
    EXPECT_EQ(nodes_of(after, kLinearAdd).size(), biased ? 0u : 1u);
    std::map<std::string, Tensor> feed{{"x", random_tensor({2, 3, 4}, 3)}, {"residual", random_tensor({2, 3, 5}, 4)}};
    expect_close(run_graph(after, feed).at("y"), run_graph(graph, feed).at("y"), DType::bf16, 4, "y");
  }
}

TEST(FusePointwise, LetsANormWriteTheTypeThatIsRead) {
  Graph graph;
  Value x = graph.input("x", {3, 8}), weight = graph.parameter("weight", random_tensor({8}, 1));
  Value y = cast(rms_norm(x, weight, {}, 1e-6), DType::bf16);
  graph.output("y", cast(y, DType::f32));
  Graph after = fuse_pointwise(graph);
  ASSERT_EQ(nodes_of(after, kRmsNorm).size(), 1u);
  EXPECT_EQ(nodes_of(after, kRmsNorm)[0]->spec.dtype, DType::bf16);
  EXPECT_EQ(nodes_of(after, kCast).size(), 1u);
  expect_same(graph, after);
}

// Queries, keys and values as columns of one product, 4, 2 and 2 heads of 8.
struct Turned {
  Graph graph;
  Value qkv = graph.input("qkv", {2, 3, 64}), table = graph.input("table", {3, 8});
  Value part(int64_t at, int64_t heads) { return reshape(slice(qkv, 2, at, at + 8 * heads), {2, 3, heads, 8}); }
  Value q(Value cos, Value sin, bool pairs = false) { return rope(part(0, 4), cos, sin, pairs); }
  Value k(Value cos, Value sin, bool pairs = false) { return rope(part(32, 2), cos, sin, pairs); }
};

TEST(MergeRopes, TurnsQueriesAndKeysAtOnce) {
  for (bool pairs : {false, true}) {
    for (bool keys_first : {false, true}) {
      Turned t;
      Value q, k;
      if (keys_first) k = t.k(t.table, t.table, pairs);
      q = t.q(t.table, t.table, pairs);
      if (!keys_first) k = t.k(t.table, t.table, pairs);
      t.graph.output("y", attention(q, k, t.part(48, 2), {}, {.scale = 0.3}));
      Graph after = merge_ropes(t.graph);
      ASSERT_EQ(nodes_of(after, kRope).size(), 1u);
      EXPECT_EQ(nodes_of(after, kRope)[0]->spec.shape, (Shape{2, 3, 6, 8}));
      expect_same(t.graph, after);
      EXPECT_EQ(nodes_of(merge_ropes(after), kRope).size(), 1u);
    }
  }
}

TEST(MergeRopes, LeavesWhatDoesNotJoin) {
  Turned tables;  // two of them
  Value other = tables.graph.input("other", {3, 8});
  Value q = tables.q(tables.table, tables.table), k = tables.k(tables.table, other);
  tables.graph.output("y", attention(q, k, tables.part(48, 2), {}, {}));
  EXPECT_EQ(nodes_of(merge_ropes(tables.graph), kRope).size(), 2u);
  Turned apart;  // with columns in between
  k = rope(apart.part(48, 2), apart.table, apart.table);
  apart.graph.output("y", attention(apart.q(apart.table, apart.table), k, apart.part(32, 2), {}, {}));
  EXPECT_EQ(nodes_of(merge_ropes(apart.graph), kRope).size(), 2u);
  Turned given;  // out, where a slice would have to be copied
  q = given.q(given.table, given.table), k = given.k(given.table, given.table);
  given.graph.output("y", attention(q, k, given.part(48, 2), {}, {}));
  given.graph.output("keys", k);
  EXPECT_EQ(nodes_of(merge_ropes(given.graph), kRope).size(), 2u);
}

TEST(FusePointwise, LetsANormClampItsResult) {
  Graph graph;
  Value x = graph.input("x", {3, 8}), weight = graph.parameter("weight", random_tensor({8}, 1));
  Value normed = rms_norm(x, weight, {}, 1e-6);
  graph.output("y", relu(normed));
  Graph after = fuse_pointwise(graph);
  EXPECT_TRUE(nodes_of(after, kRelu).empty());
  ASSERT_EQ(nodes_of(after, kRmsNorm).size(), 1u);
  EXPECT_EQ(nodes_of(after, kRmsNorm)[0]->attrs.text("act"), "relu");
  expect_same(graph, after);
  graph.output("normed", normed);  // which is then needed by itself
  EXPECT_EQ(nodes_of(fuse_pointwise(graph), kRelu).size(), 1u);
}

// What takes a norm in, by itself or as a term, does not know an activation.
TEST(FusePointwise, LeavesANormThatClamps) {
  Graph graph;
  Value x = graph.input("x", {2, 3, 2, 8}), weight = graph.parameter("weight", random_tensor({8}, 1));
  Value table = graph.input("table", {3, 8});
  Value turned = rope(relu(rms_norm(x, weight, {}, 1e-6)), table, table, true);
  graph.output("y", turned + relu(rms_norm(affine(x, 2, 1), weight, {}, 1e-6)));
  Graph clamped = fuse_pointwise(graph);
  EXPECT_TRUE(nodes_of(clamped, kRelu).empty());
  Graph after = fuse_norm_rope(fuse_pointwise(clamped));
  EXPECT_EQ(nodes_of(after, kRmsNorm).size(), 2u);
  EXPECT_EQ(nodes_of(after, kRope).size(), 1u);
  expect_same(graph, after);
}

TEST(FuseNormRope, JoinsANormWithItsTurn) {
  for (bool pairs : {false, true}) {
    Graph graph;
    Value x = graph.input("x", {2, 3, 2, 8}), weight = graph.parameter("weight", random_tensor({8}, 1));
    Value table = graph.input("table", {3, 8});
    Value normed = rms_norm(x, weight, {}, 1e-6);
    graph.output("y", rope(normed, table, table, pairs));
    Graph after = fuse_norm_rope(graph);
    EXPECT_EQ(nodes_of(after, kRmsNormRope).size(), 1u);
    EXPECT_TRUE(nodes_of(after, kRope).empty());
    expect_same(graph, after);
    graph.output("normed", normed);  // which is then needed by itself
    EXPECT_TRUE(nodes_of(fuse_norm_rope(graph), kRmsNormRope).empty());
  }
}

TEST(MergeLinears, JoinsThoseOfTheSameX) {
  Layer l;
  Value q = linear(l.x, l.weight, l.bias), k = linear(l.x, l.graph.parameter("k", random_tensor({5, 4}, 3)), l.bias);
  l.graph.output("y", concat({k, q}, 2));
  Graph after = merge_linears(l.graph);
  ASSERT_EQ(nodes_of(after, kLinear).size(), 1u);
  EXPECT_EQ(nodes_of(after, kLinear)[0]->spec.shape, (Shape{2, 3, 10}));
  EXPECT_EQ(nodes_of(after, kSlice).size(), 2u);
  expect_same(l.graph, after);
}

TEST(MergeLinears, LeavesWhatCannotBeJoined) {
  Layer l;
  Value plain = linear(l.x, l.weight), biased = linear(l.x, l.weight, l.bias);
  Value active = linear(l.x, l.weight, l.bias, "silu"),
        of_another = linear(l.residual + l.residual, l.graph.input("w", {5, 5}));
  l.graph.output("y", plain + biased + active + of_another);
  EXPECT_EQ(nodes_of(merge_linears(l.graph), kLinear).size(), 4u);
}

TEST(MergeLinears, KeepsTheResultInBounds) {
  Graph graph;
  Value x = graph.input("x", {1, 1});
  std::vector<Value> parts;
  for (const char* name : {"a", "b", "c"}) {
    parts.push_back(linear(x, graph.parameter(name, random_tensor({16384, 1}, static_cast<uint64_t>(*name)))));
  }
  graph.output("y", concat(parts, 1));
  Graph after = merge_linears(graph);
  ASSERT_EQ(nodes_of(after, kLinear).size(), 2u);
  EXPECT_EQ(nodes_of(after, kLinear)[0]->spec.shape[1], 32768);
  EXPECT_EQ(nodes_of(after, kLinear)[1]->spec.shape[1], 16384);
  expect_same(graph, after);
}

TEST(DropRejoinedSlices, TakesTheWholeAlone) {
  Graph graph;
  Value x = graph.input("x", {2, 6});
  graph.output("y", concat({slice(x, 1, 0, 2), slice(x, 1, 2, 6)}, 1));
  Graph after = drop_rejoined_slices(graph);
  EXPECT_TRUE(nodes_of(after, kSlice).empty());
  expect_same(graph, after);
  Graph others;
  Value z = others.input("x", {2, 6});
  others.output("y", concat({slice(z, 1, 2, 6), slice(z, 1, 0, 2)}, 1));       // in another order
  others.output("less", concat({slice(z, 1, 0, 2), slice(z, 1, 2, 5)}, 1));    // without the end
  others.output("across", concat({slice(z, 1, 0, 3), slice(z, 1, 3, 6)}, 0));  // along another axis
  EXPECT_EQ(nodes_of(drop_rejoined_slices(others), kConcat).size(), 3u);
}

TEST(JoinBeforeSlicing, TakesColumnsOfJoinedLinears) {
  for (int64_t batch : {1, 2}) {
    Graph graph;
    auto part = [&](const std::string& name, int64_t tokens, int64_t begin) {
      Value x = graph.input(name, {batch, tokens, 4});
      Value y = linear(x, graph.parameter("w" + name, random_tensor({6, 4}, static_cast<uint64_t>(tokens))));
      return slice(y, 2, begin, begin + 2);
    };
    graph.output("y", concat({part("a", 3, 2), part("b", 5, 2)}, 1));
    Graph after = join_before_slicing(graph);
    EXPECT_EQ(nodes_of(after, kSlice).size(), batch == 1 ? 1u : 2u);  // of several items, parts would lie in pieces
    expect_same(graph, after);
  }
  Graph other;
  Value x = other.input("x", {1, 3, 4});
  Value y = linear(x, other.parameter("w", random_tensor({6, 4}, 1)));
  other.output("y", concat({slice(y, 2, 0, 2), slice(y, 2, 2, 4)}, 1));  // of different columns
  EXPECT_EQ(nodes_of(join_before_slicing(other), kSlice).size(), 2u);
}

TEST(MatchWeightTypes, GivesEveryProductWeightsOfItsOwnType) {
  Layer l;
  Value half = l.graph.parameter("half", random_tensor({5, 4}, 3).to(DType::bf16));
  l.graph.output("y", linear_add(l.x, half, {}, l.residual));
  Graph after = match_weight_types(l.graph);
  for (NodeId input : nodes_of(after, kLinearAdd)[0]->inputs) EXPECT_EQ(after.node(input).spec.dtype, DType::f32);
  expect_same(l.graph, after);
}

}  // namespace
}  // namespace kinora::test
