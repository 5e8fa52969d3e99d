// The passes over film autoencoders: what they rewrite, what they leave alone, and that the result stays the same.
#include "ops/fuse_film.h"

#include "graph/rewrite.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/shaping.h"
#include "support.h"

namespace kinora::test {
namespace {

Value parameter(Graph& graph, const std::string& name, const Shape& shape) {
  return graph.parameter(name, random_tensor(shape, name.size(), -0.5f, 0.5f));
}

std::vector<const Node*> live_nodes_of(const Graph& graph, const OpDef& op) {
  std::vector<bool> live = live_nodes(graph);
  std::vector<const Node*> found;
  for (size_t i = 0; i < live.size(); ++i) {
    if (live[i] && graph.nodes()[i].op == &op) found.push_back(&graph.nodes()[i]);
  }
  return found;
}

void expect_same(const Graph& before, const Graph& after) {
  std::map<std::string, Tensor> feed;
  for (const Node* node : live_nodes_of(before, kInputOp)) feed[node->name] = random_tensor(node->spec.shape, 5);
  auto expected = run_graph(before, feed), got = run_graph(after, feed);
  for (const auto& [name, value] : expected) expect_close(got.at(name), value, DType::f32, 300, name);
}

Value double_frames(Value x) {
  return concat({slice(x, 1, 0, 1), repeat_interleave(slice(x, 1, 1, x.shape()[1]), 1, 2)}, 1);
}

Value causal(Value x, Value weight, Value bias, const std::string& act = "none") {
  return conv3d(pad_edge(x, {0, 2, 1, 1, 0}, {0, 0, 1, 1, 0}), weight, bias, {.act = act});
}

TEST(FoldFilmUpsampling, LeavesEightTapsOf27WhereFramesAreDoubled) {
  Graph graph;
  Value x = graph.input("x", {2, 4, 3, 5, 6}), bias = parameter(graph, "bias", {7});
  Value film = upsample_nearest3d(double_frames(affine(x, 2, 1)), false);
  graph.output("y", causal(film, parameter(graph, "w", {7, 6, 3, 3, 3}), bias, "silu"));
  Graph after = fold_film_upsampling(graph);
  std::vector<const Node*> convs = live_nodes_of(after, kConv3d);
  ASSERT_EQ(convs.size(), 1u);
  EXPECT_EQ(after.node(convs[0]->inputs[1]).spec.shape, Shape({56, 6, 2, 2, 2}));
  EXPECT_EQ(live_nodes_of(after, kInterleavePhases3d).size(), 1u);
  EXPECT_TRUE(live_nodes_of(after, kUpsample2).empty());
  expect_same(graph, after);
}

TEST(FoldFilmUpsampling, LeavesTwelveTapsOf27WherePicturesAloneAre) {
  Graph graph;
  for (int64_t frames : {1, 3}) {
    Value x = graph.input("x" + std::to_string(frames), {2, frames, 3, 5, 6});
    Value film = upsample_nearest3d(affine(x, 2, 1), false);
    graph.output("y" + std::to_string(frames), causal(film, parameter(graph, "w", {7, 6, 3, 3, 3}), {}));
  }
  Graph after = fold_film_upsampling(graph);
  std::vector<const Node*> convs = live_nodes_of(after, kConv3d);
  ASSERT_EQ(convs.size(), 2u);
  for (const Node* conv : convs) EXPECT_EQ(after.node(conv->inputs[1]).spec.shape, Shape({28, 6, 3, 2, 2}));
  EXPECT_EQ(live_nodes_of(after, kInterleavePhases).size(), 2u);
  expect_same(graph, after);
}

TEST(FoldFilmUpsampling, LeavesTwelveTapsWithZerosAround) {
  Graph graph;
  Value w = parameter(graph, "w", {7, 6, 3, 3, 3}), bias = parameter(graph, "bias", {7});
  for (bool frames : {false, true}) {
    std::string name = frames ? "frames" : "pictures";
    Value film = upsample_nearest3d(affine(graph.input("x" + name, {2, 3, 4, 3, 6}), 2, 1), frames);
    graph.output(name, conv3d(film, w, bias, {.padding = {1, 1, 1}, .act = "silu"}));
  }
  Graph after = fold_film_upsampling(graph);
  std::vector<const Node*> convs = live_nodes_of(after, kConv3d);
  ASSERT_EQ(convs.size(), 2u);
  for (const Node* conv : convs) EXPECT_EQ(after.node(conv->inputs[1]).spec.shape, Shape({28, 6, 3, 2, 2}));
  EXPECT_TRUE(live_nodes_of(after, kUpsample2).empty());
  expect_same(graph, after);
}

// Read twice, not doubled, other kernels, strides and paddings.
TEST(FoldFilmUpsampling, LeavesOtherConvolutionsAlone) {
  Graph graph;
  Value x = graph.input("x", {1, 3, 4, 4, 4}), w = parameter(graph, "w", {5, 4, 3, 3, 3});
  Value up = upsample_nearest3d(x, false);
  Value padded = pad_edge(up, {0, 2, 1, 1, 0}, {0, 0, 1, 1, 0});
  graph.output("stride", conv3d(padded, w, {}, {.stride = {1, 2, 2}}));
  graph.output("twice", conv3d(up, w, {}, {.padding = {1, 1, 1}}));
  graph.output("kernel",
               conv3d(pad_edge(up, {0, 1, 1, 1, 0}, {0, 0, 1, 1, 0}), parameter(graph, "ww", {5, 4, 2, 3, 3}), {}, {}));
  graph.output("same", conv3d(pad_edge(up, {0, 1, 1, 1, 0}, {0, 1, 1, 1, 0}), w, {}, {}));
  graph.output("plain", causal(x, w, {}));
  Graph after = fold_film_upsampling(graph);
  for (const Node* conv : live_nodes_of(after, kConv3d)) EXPECT_EQ(after.node(conv->inputs[1]).spec.shape[0], 5);
  expect_same(graph, after);
}

TEST(FuseNormPadding, WritesTheEdgesAtOnce) {
  Graph graph;
  Value x = graph.input("x", {2, 3, 4, 5, 8});
  Value weight = parameter(graph, "w", {8}), bias = parameter(graph, "bias", {8});
  graph.output("y",
               affine(pad_edge(group_norm(x, weight, bias, 4, 1e-6, "silu"), {0, 2, 1, 1, 0}, {0, 0, 1, 1, 0}), 2, 0));
  Value shared = group_norm(affine(x, 1, 1), weight, bias, 2, 1e-6);
  graph.output("shared", shared);
  graph.output("kept", pad_edge(shared, {0, 1, 0, 0, 0}, {0, 0, 0, 0, 0}));
  graph.output("batch", pad_edge(group_norm(x, weight, bias, 8, 1e-6), {1, 0, 0, 0, 0}, {0, 0, 0, 0, 0}));
  Graph after = fuse_norm_padding(graph);
  std::vector<const Node*> fused = live_nodes_of(after, kGroupNormPad);
  ASSERT_EQ(fused.size(), 1u);
  EXPECT_EQ(fused[0]->attrs.text("act"), "silu");
  EXPECT_EQ(live_nodes_of(after, kGroupNorm).size(), 2u);
  EXPECT_EQ(live_nodes_of(after, kPadEdge).size(), 2u);
  expect_same(graph, after);
}

}  // namespace
}  // namespace kinora::test
