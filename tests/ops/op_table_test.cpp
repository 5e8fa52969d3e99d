// Every op, in four modes: its value against float64 truth or its decomposition, its gradient against central
// differences, the same bits on any number of threads, and bfloat16 near float32.
#include <cstring>
#include <set>

#include "graph/rewrite.h"
#include "ops/elementwise.h"
#include "ops/grad.h"
#include "ops/op_cases.h"
#include "ops/reduce.h"
#include "ops/table.h"
#include "support.h"

namespace kinora::test {
namespace {

class OpTable : public testing::TestWithParam<size_t> {
 protected:
  const OpCase& op_case() const { return op_cases()[GetParam()]; }
};

TEST_P(OpTable, Value) {
  const OpCase& c = op_case();
  Graph graph = build(c);
  Feed feed = make_inputs(c);
  Tensor got = run_graph(graph, feed).at("y");
  Tensor expected;
  if (c.truth) {
    std::vector<Tensor> inputs;
    for (size_t i = 0; i < c.shapes.size(); ++i) inputs.push_back(feed.at("x" + std::to_string(i)));
    std::vector<double> truth = c.truth(inputs);
    ASSERT_EQ(static_cast<int64_t>(truth.size()), got.numel());
    expected = Tensor::from(got.shape(), std::vector<float>(truth.begin(), truth.end()));
  } else {
    Graph plain = lower(graph, [](const Graph&, const Node& node) { return node.op->decompose != nullptr; });
    expected = run_graph(plain, feed).at("y");
  }
  expect_close(got, expected, DType::f32, c.terms, c.name);
}

TEST_P(OpTable, SameBitsOnAnyNumberOfThreads) {
  const OpCase& c = op_case();
  Graph graph = build(c);
  Feed feed = make_inputs(c);
  Tensor one = run_graph(graph, feed, 1).at("y");
  for (int threads : {2, 3}) {
    Tensor many = run_graph(graph, feed, threads).at("y");
    EXPECT_EQ(std::memcmp(one.raw(), many.raw(), one.bytes()), 0) << c.name << " on " << threads << " threads";
  }
}

TEST_P(OpTable, Bfloat16IsNearFloat32) {
  const OpCase& c = op_case();
  // Discontinuous, or float32 by its definition.
  if (c.name == "step" || c.name == "cast" || c.name.starts_with("rope") || c.name.starts_with("rms_norm_rope")) return;
  if (c.name.starts_with("quantize_rows") || c.name.starts_with("dequantize_rows")) return;
  Feed feed = make_inputs(c);
  if (has_bias(c)) return;                               // float32 by definition
  if (c.name.find("nvfp4-both") != std::string::npos) {  // another code of 4 bits is far more than a rounding
    for (auto& [name, tensor] : feed) tensor = tensor.to(DType::bf16).to(DType::f32);
  }
  Tensor exact = run_graph(build(c), feed).at("y");
  Tensor rounded = run_graph(build(c, DType::bf16), feed).at("y");
  expect_close(rounded, exact, DType::bf16, c.terms, c.name);
}

// The loss is Σ y·r with fixed r, so every result element takes part with a weight of its own.
Graph build_loss(const OpCase& c) {
  Graph graph;
  Value y = c.build(add_inputs(graph, c, DType::f32));
  Value weight = graph.input("r", y.shape());
  Ints axes;
  for (int i = 0; i < y.shape().rank(); ++i) axes.push_back(i);
  graph.output("loss", sum(y * weight, axes));
  return graph;
}

TEST_P(OpTable, Gradient) {
  const OpCase& c = op_case();
  if (!c.gradient) return;
  Feed feed = make_inputs(c);
  Graph forward = build_loss(c);
  Graph graph = expand_for_grad(forward);
  Value loss(&graph, graph.outputs().at(0).second);
  std::vector<Value> wrt;
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& node = graph.nodes()[i];
    if (node.op == &kInputOp && node.spec.dtype == DType::f32) {
      if (node.name == "r") feed["r"] = random_tensor(node.spec.shape, 99, 0.5f, 1.5f);
      wrt.emplace_back(&graph, static_cast<NodeId>(i));
    }
  }
  std::vector<Value> grads = gradients(loss, wrt);
  for (size_t i = 0; i < wrt.size(); ++i) {
    if (grads[i].defined()) graph.output("d" + graph.node(wrt[i].id()).name, grads[i]);
  }
  Feed results = run_graph(graph, feed);
  Executable value = compile(forward, cpu::backend(), context(2));
  for (const Value& input : wrt) {
    const std::string& name = graph.node(input.id()).name;
    Tensor& x = feed.at(name);
    bool differentiable = c.name != "step" || name == "r";
    ASSERT_TRUE(!differentiable || results.count("d" + name)) << c.name << ": no gradient of " << name;
    if (!results.count("d" + name)) continue;
    const Tensor& analytic = results.at("d" + name);
    double peak = 0;
    for (float g : analytic.values<float>()) peak = std::max<double>(peak, std::abs(g));
    for (int64_t i = 0; i < x.numel(); i += std::max<int64_t>(1, x.numel() / 12)) {
      float old = x.data<float>()[i], h = 1.0f / 128;
      x.data<float>()[i] = old + h;
      double above = value.run(feed).at("loss").data<float>()[0];
      x.data<float>()[i] = old - h;
      double below = value.run(feed).at("loss").data<float>()[0];
      x.data<float>()[i] = old;
      // The difference quotient is off by O(h²) and by the rounding of the loss divided by h.
      double slope = (above - below) / (2 * h);
      double allowed = 4e-3 * std::max(peak, 1.0) + 0x1p-22 * std::max(std::abs(above), 1.0) / h;
      EXPECT_NEAR(analytic.data<float>()[i], slope, allowed) << c.name << ": d/d" << name << "[" << i << "]";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, OpTable, testing::Range(size_t{0}, op_cases().size()), [](const auto& param) {
  std::string name = op_cases()[param.param].name;
  for (char& ch : name) ch = std::isalnum(static_cast<unsigned char>(ch)) ? ch : '_';
  return name;
});

TEST(OpTableItself, EveryOpHasACase) {
  std::set<std::string> covered;
  for (const OpCase& c : op_cases()) covered.insert(c.name.substr(0, c.name.find('/')));
  for (const OpDef* op : op_table())
    EXPECT_TRUE(covered.count(std::string(op->name))) << op->name << " has no test case";
}

}  // namespace
}  // namespace kinora::test
