// The passes over convolutions: what they rewrite, what they leave alone, and that the result stays the same.
#include "ops/fuse_conv.h"

#include <cstring>

#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/shaping.h"
#include "support.h"

namespace kinora::test {
namespace {

Value parameter(Graph& graph, const std::string& name, const Shape& shape, DType dtype = DType::f32) {
  return graph.parameter(name, random_tensor(shape, name.size(), -0.5f, 0.5f).to(dtype));
}

std::vector<const Node*> nodes_of(const Graph& graph, const OpDef& op) {
  std::vector<const Node*> found;
  for (const Node& node : graph.nodes()) {
    if (node.op == &op) found.push_back(&node);
  }
  return found;
}

void expect_same(const Graph& before, const Graph& after) {
  std::map<std::string, Tensor> feed;
  for (const Node* node : nodes_of(before, kInputOp)) feed[node->name] = random_tensor(node->spec.shape, 5);
  auto expected = run_graph(before, feed), got = run_graph(after, feed);
  for (const auto& [name, value] : expected) expect_close(got.at(name), value, DType::f32, 300, name);
}

TEST(ChannelsLastWeights, RewritesDenseKernelsOnly) {
  Graph graph;
  Value x = graph.input("x", {1, 6, 5, 8});
  Value a = conv2d(x, parameter(graph, "a", {4, 8, 3, 3}, DType::bf16), parameter(graph, "a.bias", {4}, DType::f16),
                   {.padding = 1, .act = "relu"});
  Value b = conv2d(x, parameter(graph, "bb", {8, 1, 3, 3}), {}, {.padding = 1, .groups = 8});
  Value c = conv2d(x, parameter(graph, "ccc", {4, 8, 1, 1}), {}, {});
  graph.output("a", a);
  graph.output("b", b);
  graph.output("c", c);

  Graph after = channels_last_weights(graph);
  std::vector<const Node*> convs = nodes_of(after, kConv2d);
  ASSERT_EQ(convs.size(), 3u);
  EXPECT_EQ(convs[0]->attrs.text("weight_layout"), "ohwi");
  EXPECT_EQ(convs[0]->attrs.text("act"), "relu");
  for (NodeId input : convs[0]->inputs) EXPECT_EQ(after.node(input).spec.dtype, DType::f32);
  EXPECT_EQ(after.node(convs[0]->inputs[1]).spec.shape, Shape({4, 3, 3, 8}));
  EXPECT_EQ(convs[1]->attrs.text("weight_layout"), "oihw");
  EXPECT_EQ(convs[2]->attrs.text("weight_layout"), "oihw");
  EXPECT_EQ(channels_last_weights(after).nodes().size(), after.nodes().size());
  expect_same(graph, after);
}

TEST(ChannelsLastWeights, FillsTheChannelsOfFilms) {
  for (DType dtype : {DType::bf16, DType::f32}) {
    Graph graph;
    Value x = cast(graph.input("x", {1, 3, 4, 5, 3}), dtype);
    Value y = conv3d(x, parameter(graph, "w", {9, 3, 3, 3, 3}, DType::bf16), parameter(graph, "bias", {9}),
                     {.padding = {1, 1, 1}, .act = "silu"});
    y = conv3d(y, parameter(graph, "grouped", {9, 1, 1, 1, 1}), {}, {.groups = 9});
    graph.output("y", cast(conv3d(y, parameter(graph, "ww", {2, 9, 2, 2, 2}), {}, {}), DType::f32));
    Graph after = channels_last_weights(graph);
    std::vector<const Node*> convs = nodes_of(after, kConv3d);
    ASSERT_EQ(convs.size(), 3u);
    bool filled = dtype == DType::bf16;
    auto weight = [&](size_t i) { return after.node(convs[i]->inputs[1]).spec; };
    EXPECT_EQ(weight(0).shape, filled ? Shape({16, 3, 3, 3, 8}) : Shape({9, 3, 3, 3, 3}));
    EXPECT_EQ(weight(0).dtype, dtype);
    EXPECT_EQ(weight(1).shape, Shape({9, 1, 1, 1, 1}));
    EXPECT_EQ(weight(2).shape, filled ? Shape({8, 2, 2, 2, 16}) : Shape({2, 2, 2, 2, 9}));
    std::map<std::string, Tensor> feed{{"x", random_tensor({1, 3, 4, 5, 3}, 5)}};
    expect_close(run_graph(after, feed).at("y"), run_graph(graph, feed).at("y"), dtype, 81, "film");
  }
}

TEST(FoldUpsampling, TurnsThreeTapsOverTheLargeIntoTwoOverTheSmall) {
  Graph graph;
  Value x = graph.input("x", {2, 3, 4, 8});
  Value up = upsample_nearest2(x);
  graph.output("y", conv2d(up, parameter(graph, "w", {6, 8, 3, 3}), parameter(graph, "bias", {6}),
                           {.padding = 1, .act = "silu"}));
  Value shared = upsample_nearest2(affine(x, 2, 1));  // read twice, so it is there anyway
  graph.output("kept", conv2d(shared, parameter(graph, "kept", {6, 8, 3, 3}), {}, {.padding = 1}));
  graph.output("shared", shared);

  Graph after = fold_upsampling(graph);
  std::vector<const Node*> convs = nodes_of(after, kConv2d);
  ASSERT_EQ(convs.size(), 2u);
  EXPECT_EQ(after.node(convs[0]->inputs[1]).spec.shape, Shape({24, 8, 2, 2}));
  EXPECT_EQ(after.node(convs[1]->inputs[1]).spec.shape, Shape({6, 8, 3, 3}));
  EXPECT_EQ(nodes_of(after, kInterleavePhases).size(), 1u);
  expect_same(graph, after);
}

// As the models write it.
Value shortcut_of_rows(Value x) {
  const Shape s = x.shape();
  int64_t channels = s[3] / 2;
  Value rows = permute(reshape(x, {s[0], s[1], s[2], channels, 2}), {0, 1, 4, 2, 3});
  return repeat_interleave(reshape(rows, {s[0], 2 * s[1], s[2], channels}), 2, 2);
}

TEST(JoinPhasesAndShortcut, ReadsWhatTheShortcutRepeats) {
  Graph graph;
  Value x = graph.input("x", {2, 4, 5, 24}), narrow = graph.input("narrow", {2, 3, 4, 6}),
        wide = graph.input("wide", {2, 3, 4, 12});
  graph.output("twice", interleave_phases(x) + shortcut_of_rows(wide));
  graph.output("four", upsample_nearest2(narrow) + interleave_phases(affine(x, 2, 0)));

  Graph after = join_phases_and_shortcut(graph);
  Graph pruned = join_phases_and_shortcut(after);  // without what is unread now
  for (const Node* node : nodes_of(pruned, kInterleavePhases)) EXPECT_EQ(node->inputs.size(), 2u);
  EXPECT_EQ(nodes_of(pruned, kInterleavePhases).size(), 2u);
  for (const OpDef* op : {&kAdd, &kUpsample2, &kBroadcast, &kPermute}) EXPECT_TRUE(nodes_of(pruned, *op).empty());
  std::map<std::string, Tensor> feed;
  for (const Node* node : nodes_of(graph, kInputOp)) feed[node->name] = random_tensor(node->spec.shape, 7);
  auto expected = run_graph(graph, feed), got = run_graph(pruned, feed);
  for (const auto& [name, value] : expected) {  // one sum as before: the same bits
    EXPECT_EQ(std::memcmp(got.at(name).raw(), value.raw(), value.bytes()), 0) << name;
  }
}

TEST(JoinPhasesAndShortcut, LeavesOtherSums) {
  Graph graph;
  Value x = graph.input("x", {1, 3, 4, 24}), other = graph.input("other", {1, 4, 6, 6});
  graph.output("plain", interleave_phases(x) + other);
  Value shared = interleave_phases(affine(x, 2, 0));  // read twice, so it is there anyway
  graph.output("kept", shared + upsample_nearest2(slice(slice(other, 1, 0, 2), 2, 0, 3)));
  graph.output("shared", shared);
  // Rows and columns the other way round.
  Value wide = graph.input("wide", {1, 2, 3, 12});
  Value columns = reshape(permute(reshape(wide, {1, 2, 3, 6, 2}), {0, 1, 2, 4, 3}), {1, 2, 6, 6});
  graph.output("columns", interleave_phases(affine(x, 3, 0)) + repeat_interleave(columns, 1, 2));
  Graph after = join_phases_and_shortcut(graph);
  for (const Node* node : nodes_of(after, kInterleavePhases)) EXPECT_EQ(node->inputs.size(), 1u);
  EXPECT_EQ(nodes_of(after, kAdd).size(), 3u);
}

TEST(InterleavePhases, SaysWhichShortcutFits) {
  Graph graph;
  Value x = graph.input("x", {1, 3, 4, 24});
  std::string said = message_of([&] { interleave_phases(x, graph.input("y", {1, 2, 3, 24})); }, ErrorKind::internal);
  EXPECT_NE(said.find("the shortcut must be [1, 2, 3, 6] or [1, 2, 3, 12] of x's type"), std::string::npos) << said;
}

TEST(AddWithoutRepeating, ReadsTheElementsInPlace) {
  Graph graph;
  Value x = graph.input("x", {2, 3, 4, 8}), y = graph.input("y", {2, 6, 8, 8}), z = graph.input("z", {2, 3, 4, 16});
  graph.output("up", y + upsample_nearest2(affine(x, 2, 0)));
  graph.output("repeated", repeat_interleave(x, 3, 2) + z);

  Graph after = add_without_repeating(graph);
  Graph pruned = add_without_repeating(after);  // without what is unread now
  EXPECT_TRUE(nodes_of(pruned, kUpsample2).empty());
  EXPECT_TRUE(nodes_of(pruned, kBroadcast).empty());
  expect_same(graph, pruned);
}

// The feed-forward of Sana's blocks, with a picture of tokens.
Value feed_forward(Graph& graph, Value tokens, const std::string& act) {
  Value y = linear(tokens, parameter(graph, "inverted", {12, 8}), parameter(graph, "inverted.bias", {12}), act);
  y = reshape(y, {2, 3, 4, 12});
  return conv2d(y, parameter(graph, "depth", {12, 1, 3, 3}), parameter(graph, "depth.bias", {12}),
                {.padding = 1, .groups = 12});
}

TEST(FuseDepthwiseGlu, TakesTheLinearsActivation) {
  for (std::string act : {"silu", "none", "relu"}) {
    Graph graph;
    graph.output("y", affine(glu(feed_forward(graph, graph.input("x", {2, 12, 8}), act)), 2, 1));
    Graph after = fuse_depthwise_glu(graph);
    ASSERT_EQ(nodes_of(after, kDepthwiseGlu).size(), 1u) << act;
    EXPECT_TRUE(nodes_of(after, kConv2d).empty() && nodes_of(after, kGlu).empty()) << act;
    bool moved = act == "silu";
    EXPECT_EQ(nodes_of(after, kDepthwiseGlu)[0]->attrs.text("act"), moved ? "silu" : "none");
    EXPECT_EQ(nodes_of(after, kLinear)[0]->attrs.text("act"), moved ? "none" : act);
    EXPECT_EQ(nodes_of(after, kLinear)[0]->inputs.size(), 3u);
    expect_same(graph, after);
  }
}

// The models build the op; the linear before it may still give its activation away.
TEST(FuseDepthwiseGlu, TakesTheLinearsActivationIntoAnOpThatIsThere) {
  for (int64_t side : {3, 5}) {
    for (bool shared : {false, true}) {
      Graph graph;
      Value tokens = linear(graph.input("x", {2, 12, 8}), parameter(graph, "inverted", {12, 8}), {}, "silu");
      graph.output("y", depthwise_glu(reshape(tokens, {2, 3, 4, 12}), parameter(graph, "depth", {12, 1, side, side}),
                                      parameter(graph, "depth.bias", {12})));
      if (shared) graph.output("tokens", tokens);
      Graph after = fuse_depthwise_glu(graph);
      ASSERT_EQ(nodes_of(after, kDepthwiseGlu).size(), 1u);
      bool moved = side == 3 && !shared;
      EXPECT_EQ(nodes_of(after, kDepthwiseGlu)[0]->attrs.text("act"), moved ? "silu" : "none");
      EXPECT_EQ(nodes_of(after, kDepthwiseGlu)[0]->inputs.size(), 3u);
      EXPECT_EQ(nodes_of(after, kLinear)[0]->attrs.text("act"), moved ? "none" : "silu");
      expect_same(graph, after);
    }
  }
}

TEST(FuseDepthwiseGlu, LeavesWhatOthersRead) {
  Graph graph;
  Value conv = feed_forward(graph, graph.input("x", {2, 12, 8}), "silu");
  graph.output("y", glu(conv));
  graph.output("conv", conv);
  EXPECT_TRUE(nodes_of(fuse_depthwise_glu(graph), kDepthwiseGlu).empty());

  Graph shared;  // the convolution may go, the linear's result is needed as it is
  Value y = linear(shared.input("x", {1, 3, 4, 8}), parameter(shared, "inverted", {12, 8}), {}, "silu");
  shared.output("y", glu(conv2d(y, parameter(shared, "depth", {12, 1, 3, 3}), {}, {.padding = 1, .groups = 12})));
  shared.output("linear", y);
  Graph after = fuse_depthwise_glu(shared);
  ASSERT_EQ(nodes_of(after, kDepthwiseGlu).size(), 1u);
  EXPECT_EQ(nodes_of(after, kDepthwiseGlu)[0]->attrs.text("act"), "none");
  EXPECT_EQ(nodes_of(after, kLinear)[0]->attrs.text("act"), "silu");
  expect_same(shared, after);
}

TEST(FuseDepthwiseGlu, LeavesOtherConvolutions) {
  for (Conv2dOptions o :
       {Conv2dOptions{.padding = 0, .groups = 12}, Conv2dOptions{.stride = 2, .padding = 1, .groups = 12},
        Conv2dOptions{.padding = 1, .groups = 12, .act = "silu"}}) {
    Graph graph;
    graph.output("y", glu(conv2d(graph.input("x", {1, 5, 4, 12}), parameter(graph, "depth", {12, 1, 3, 3}), {}, o)));
    EXPECT_TRUE(nodes_of(fuse_depthwise_glu(graph), kDepthwiseGlu).empty());
  }
}

}  // namespace
}  // namespace kinora::test
