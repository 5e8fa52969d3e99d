// The passes that make fewer steps of sums and products: what becomes of each, and that the result stays the same.
#include "ops/fuse.h"

#include "graph/rewrite.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
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
