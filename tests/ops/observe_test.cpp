#include "ops/observe.h"

#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "support.h"

namespace kinora::test {
namespace {

// Two linears that share x, one that adds to it, and one that nobody asks about.
Graph products(const Tensor& a, const Tensor& b, const Tensor& c) {
  Graph graph;
  Value x = graph.input("x", {2, 3, 16});
  Value p = linear(x, graph.parameter("a.weight", a)), q = linear(x, graph.parameter("b.weight", b));
  Value y = linear_add(silu(p) * q, graph.parameter("c.weight", c), {}, x);
  graph.output("y", linear(y, graph.parameter("d.weight", a)));
  return graph;
}

Tensor second_moments(const Tensor& x, int64_t length) {
  Tensor sum = Tensor::zeros({length, length});
  const float* v = x.data<float>();
  for (int64_t r = 0; r < x.numel() / length; ++r) {
    for (int64_t i = 0; i < length * length; ++i)
      sum.data<float>()[i] += v[r * length + i / length] * v[r * length + i % length];
  }
  return sum;
}

TEST(ObserveProducts, GivesMomentsOfWhatEachReads) {
  Tensor a = random_tensor({32, 16}, 1), b = random_tensor({32, 16}, 2), c = random_tensor({16, 32}, 3);
  Tensor x = random_tensor({2, 3, 16}, 4);
  Graph graph = products(a, b, c);
  auto wanted = [](const std::string& name) { return name != "d.weight"; };
  ObservedGraph observed = observe_products(graph, wanted, 16);
  ASSERT_EQ(observed.inputs.size(), 2u);
  EXPECT_EQ(observed.graph.outputs().size(), 2u);
  EXPECT_EQ(observed.inputs[0].weights, (std::vector<std::string>{"a.weight", "b.weight"}));
  EXPECT_EQ(observed.inputs[1].weights, std::vector<std::string>{"c.weight"});
  EXPECT_EQ(observed.inputs[0].rows, 6);
  EXPECT_TRUE(observed.inputs[0].full);
  EXPECT_FALSE(observed.inputs[1].full);  // longer than 16

  Graph plain;  // what c reads
  Value in = plain.input("x", {2, 3, 16});
  plain.output("h", silu(linear(in, plain.parameter("a", a))) * linear(in, plain.parameter("b", b)));
  Tensor h = run_graph(plain, {{"x", x}}).at("h"), all = second_moments(h, 32), squares({32}, DType::f32);
  for (int64_t i = 0; i < 32; ++i) squares.data<float>()[i] = all.data<float>()[i * 32 + i];
  std::map<std::string, Tensor> out = run_graph(observed.graph, {{"x", x}});
  expect_close(out.at(observed.inputs[0].output), second_moments(x, 16), DType::f32, 6, "x·xᵀ");
  expect_close(out.at(observed.inputs[1].output), squares, DType::f32, 6, "squares");
}

// A transformer reads a joined weight by ranges of rows, all with the same input.
TEST(ObserveProducts, RowsOfAWeightCountAsTheWeight) {
  Tensor a = random_tensor({32, 16}, 1);
  Graph graph;
  Value x = graph.input("x", {4, 16});
  Value q = linear(x, graph.parameter("a.weight[0:16]", a.rows(0, 16)));
  graph.output("y", q * linear(x, graph.parameter("a.weight[16:32]", a.rows(16, 32))));
  ObservedGraph observed = observe_products(
      graph, [](const std::string& name) { return name == "a.weight"; }, 16);
  ASSERT_EQ(observed.inputs.size(), 1u);
  EXPECT_EQ(observed.inputs[0].weights, std::vector<std::string>{"a.weight"});
}

}  // namespace
}  // namespace kinora::test
