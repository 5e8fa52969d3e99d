// Slices that are read in place and parts that a concat's result takes up: no work of their own, the same values.
#include "graph/views.h"

#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/shaping.h"
#include "support.h"

namespace kinora::test {
namespace {

// 64 floats: rows begin at multiples of 256 bytes.
constexpr int64_t kWidth = 64;

struct Two {
  Graph graph;
  Value x = graph.input("x", {1, 3, kWidth}), y = graph.input("y", {1, 5, kWidth});
  std::map<std::string, Tensor> feed{{"x", random_tensor({1, 3, kWidth}, 1)}, {"y", random_tensor({1, 5, kWidth}, 2)}};

  Tensor run() const { return run_graph(graph, feed).at("result"); }
};

Views plain_views(const Graph& graph) {
  auto no = [](const Node&) { return false; };
  return find_views(graph, {no, no, [](NodeId) { return false; }});
}

Views strided_views(const Graph& graph) {
  auto yes = [](const Node&) { return true; };
  return find_views(graph, {yes, yes, [](NodeId) { return false; }});
}

bool idle(const Views& views, Value value) { return views.idle[static_cast<size_t>(value.id())]; }

float at(const Tensor& t, int64_t i) { return t.data<float>()[i]; }

TEST(Views, PartsAreWrittenIntoTheirConcat) {
  Two t;
  Value a = exp(t.x), b = sin(t.y), all = concat({a, b}, 1);
  t.graph.output("result", all + all);
  Views views = plain_views(t.graph);
  EXPECT_TRUE(idle(views, all));
  EXPECT_EQ(views.storage[static_cast<size_t>(b.id())], all.id());
  EXPECT_EQ(views.offset[static_cast<size_t>(b.id())], 3 * kWidth);
  Tensor got = t.run();
  for (int64_t i = 0; i < 3 * kWidth; ++i) EXPECT_NEAR(at(got, i), 2 * std::exp(at(t.feed["x"], i)), 1e-5);
  for (int64_t i = 0; i < 5 * kWidth; ++i) EXPECT_NEAR(at(got, 3 * kWidth + i), 2 * std::sin(at(t.feed["y"], i)), 1e-5);
}

TEST(Views, APartMayHaveOtherReaders) {
  Two t;
  Value a = exp(t.x), b = sin(t.y), all = concat({a, b}, 1);
  t.graph.output("result", all * all);
  t.graph.output("a", affine(a, 3, 0));
  EXPECT_TRUE(idle(plain_views(t.graph), all));
  auto got = run_graph(t.graph, t.feed);
  for (int64_t i = 0; i < 3 * kWidth; ++i) EXPECT_NEAR(at(got.at("a"), i), 3 * std::exp(at(t.feed["x"], i)), 1e-5);
  EXPECT_NEAR(at(got.at("result"), 0), std::exp(2 * at(t.feed["x"], 0)), 1e-5);
}

// What cannot be written there makes the concat a copy: inputs, outputs, a part taken twice, parts of two concats.
TEST(Views, OtherPartsAreCopied) {
  Two t;
  Value a = exp(t.x), b = sin(t.y);
  Value of_input = concat({t.x, b}, 1), twice = concat({a, a}, 1), both = concat({a, b}, 1), again = concat({b, a}, 1);
  t.graph.output("result", both);
  t.graph.output("input", of_input);
  t.graph.output("twice", twice);
  t.graph.output("again", again);
  Views views = plain_views(t.graph);
  EXPECT_FALSE(idle(views, of_input));
  EXPECT_FALSE(idle(views, twice));
  EXPECT_TRUE(idle(views, both));
  EXPECT_FALSE(idle(views, again));
  auto got = run_graph(t.graph, t.feed);
  for (int64_t i = 0; i < 3 * kWidth; ++i) {
    float e = at(got.at("result"), i);
    EXPECT_EQ(e, at(got.at("twice"), i));
    EXPECT_EQ(e, at(got.at("twice"), 3 * kWidth + i));
    EXPECT_EQ(e, at(got.at("again"), 5 * kWidth + i));
    EXPECT_EQ(at(got.at("input"), i), at(t.feed["x"], i));
  }
  for (int64_t i = 0; i < 5 * kWidth; ++i) EXPECT_EQ(at(got.at("again"), i), at(got.at("input"), 3 * kWidth + i));
  Graph outputs;
  Value c = exp(outputs.input("x", {1, 3, kWidth})), d = concat({c, c + c}, 1);
  outputs.output("c", c);
  outputs.output("d", d);
  EXPECT_FALSE(idle(plain_views(outputs), d));
}

// Every reshape on the way counts, and nothing is written over while it is needed.
TEST(Views, ThroughReshapesAndChains) {
  Two t;
  Value a = reshape(exp(t.x), {3, kWidth}), b = reshape(sin(t.y), {5, kWidth});
  Value all = concat({a, b}, 0);
  Value sum = reshape(all, {8 * kWidth});
  for (int i = 0; i < 3; ++i) sum = affine(sum, 1, 1);
  Value more = concat({affine(reshape(a, {3 * kWidth}), 1, 0), sum, affine(sum, 2, 0)}, 0);
  t.graph.output("result", more);
  Views views = plain_views(t.graph);
  EXPECT_TRUE(idle(views, all));
  EXPECT_TRUE(idle(views, more));
  Tensor got = t.run();
  for (int64_t i = 0; i < 3 * kWidth; ++i) {
    double e = std::exp(at(t.feed["x"], i));
    EXPECT_NEAR(at(got, i), e, 1e-5);
    EXPECT_NEAR(at(got, 3 * kWidth + i), e + 3, 1e-5);
    EXPECT_NEAR(at(got, 11 * kWidth + i), 2 * (e + 3), 1e-5);
  }
}

TEST(Views, ContiguousSlicesAreReadInPlace) {
  Graph graph;
  Value x = exp(graph.input("x", {1, 8, kWidth}));
  Value rows = slice(x, 1, 4, 7), columns = slice(x, 2, 4, 7), odd = slice(reshape(x, {8 * kWidth}), 0, 3, 9);
  graph.output("rows", affine(rows, 2, 0));
  graph.output("columns", affine(columns, 2, 0));
  graph.output("odd", affine(odd, 2, 0));
  graph.output("kept", slice(x, 1, 2, 4));  // an output has memory of its own
  Views views = plain_views(graph);
  EXPECT_TRUE(idle(views, rows));
  EXPECT_FALSE(idle(views, columns));
  EXPECT_FALSE(idle(views, odd));  // not where a kernel expects an input to begin
  Tensor in = random_tensor({1, 8, kWidth}, 3);
  auto got = run_graph(graph, {{"x", in}});
  for (int64_t i = 0; i < 3 * kWidth; ++i)
    EXPECT_NEAR(at(got.at("rows"), i), 2 * std::exp(at(in, 4 * kWidth + i)), 1e-5);
  EXPECT_NEAR(at(got.at("columns"), 4), 2 * std::exp(at(in, kWidth + 5)), 1e-5);
  EXPECT_NEAR(at(got.at("odd"), 1), 2 * std::exp(at(in, 4)), 1e-5);
  EXPECT_NEAR(at(got.at("kept"), 1), std::exp(at(in, 2 * kWidth + 1)), 1e-5);
}

// Columns of a wider matrix: only where the writer can leave gaps, and all readers but the concat can read them.
TEST(Views, ColumnsNeedKernelsThatLeaveGaps) {
  for (int64_t batch : {1, 2}) {
    Graph graph;
    Value q = graph.input("q", {batch, 6, 2, 32}), x = graph.input("x", {batch, 6, kWidth});
    Value attended = attention(q, q, q, {}, {.scale = 0.2});
    Value both = concat({reshape(attended, {batch, 6, kWidth}), exp(x)}, 2);
    graph.output("y", both);
    Views views = strided_views(graph);
    EXPECT_TRUE(idle(views, both));
    Ints strides = views.strides[static_cast<size_t>(attended.id())];
    if (batch > 1) {
      EXPECT_EQ(strides[0], 6 * 2 * kWidth);
    }
    EXPECT_EQ(Ints(strides.begin() + 1, strides.end()), (Ints{2 * kWidth, 32, 1}));
    EXPECT_FALSE(idle(plain_views(graph), both));
    // Between the items of a batch, rows are not evenly spaced.
    Graph tokens;
    Value joined = concat({exp(tokens.input("x", {batch, 6, kWidth})), sin(tokens.input("y", {batch, 2, kWidth}))}, 1);
    tokens.output("y", joined);
    EXPECT_EQ(idle(strided_views(tokens), joined), batch == 1);
  }
}

// Bytes of another node's result, wherever that lies; a concat cannot take them up.
TEST(Views, PartsOfOneResultLieInIt) {
  Two t;
  Value a = exp(t.x), b = sin(t.y), all = concat({a, b}, 1);
  Value row = part(b, 4 * kWidth, {1, 1, kWidth}, DType::f32), copied = concat({row, cos(t.x)}, 1);
  t.graph.output("result", all + all);
  t.graph.output("row", row);
  t.graph.output("copied", copied);
  Views views = plain_views(t.graph);
  EXPECT_TRUE(idle(views, row));
  EXPECT_EQ(views.storage[static_cast<size_t>(row.id())], views.storage[static_cast<size_t>(b.id())]);
  EXPECT_FALSE(idle(views, all));  // a part of it is an output
  EXPECT_FALSE(idle(views, copied));
  auto got = run_graph(t.graph, t.feed);
  for (int64_t i = 0; i < kWidth; ++i) {
    double expected = std::sin(at(t.feed["y"], kWidth + i));
    EXPECT_NEAR(at(got.at("row"), i), expected, 1e-5);
    EXPECT_NEAR(at(got.at("copied"), i), expected, 1e-5);
    EXPECT_NEAR(at(got.at("result"), 4 * kWidth + i), 2 * expected, 1e-5);
  }
  EXPECT_NEAR(at(got.at("copied"), kWidth), std::cos(at(t.feed["x"], 0)), 1e-5);

  Two inside;
  Value c = exp(inside.x), d = sin(inside.y), whole = concat({c, d}, 1);
  Value second = part(d, 4 * kWidth, {kWidth}, DType::f32);
  inside.graph.output("result", affine(whole, 2, 0));
  inside.graph.output("second", affine(second, 2, 0));
  Views placed = plain_views(inside.graph);
  EXPECT_TRUE(idle(placed, whole));
  EXPECT_EQ(placed.storage[static_cast<size_t>(second.id())], whole.id());
  EXPECT_EQ(placed.offset[static_cast<size_t>(second.id())], 4 * kWidth);
  EXPECT_NEAR(at(run_graph(inside.graph, inside.feed).at("second"), 1), 2 * std::sin(at(inside.feed["y"], kWidth + 1)),
              1e-5);
}

// Of an op's rows, one may read slices that another does not know: each node is asked for by itself.
int read_in_place = 0;

Step make_sine_of_slice(const StepSpec& spec) {
  const Shape s = spec.output().shape;
  int64_t row = spec.strides[0][0];
  read_in_place += !is_contiguous(s, spec.strides[0]);
  Step step;
  step.run = [=](const StepArgs& args) {
    for (int64_t i = 0; i < s.numel(); ++i) {
      static_cast<float*>(args.out)[i] = std::sin(static_cast<const float*>(args.in[0])[i / s[1] * row + i % s[1]]);
    }
  };
  return step;
}

TEST(Views, OnlyNodesWhoseRowReadsSlicesGetThem) {
  std::vector<Kernel> kernels{
      {&kSin, make_sine_of_slice, [](const StepSpec& s) { return s.output().shape[1] == 3; }, true}};
  for (Kernel kernel : cpu::backend().kernels) {
    kernel.strided = kernel.op == &kSlice;  // else no slice is read where it lies
    kernels.push_back(kernel);
  }
  Backend backend = cpu::backend();
  backend.kernels = kernels;
  Graph graph;
  Value x = exp(graph.input("x", {8, kWidth}));
  graph.output("three", sin(slice(x, 1, 4, 7)));
  graph.output("four", sin(slice(x, 1, 4, 8)));
  Tensor in = random_tensor({8, kWidth}, 3);
  read_in_place = 0;
  auto got = compile(graph, backend, context(2)).run({{"x", in}});
  for (int64_t i = 0; i < 8; ++i) {
    for (int64_t j = 0; j < 4; ++j) {
      double expected = std::sin(std::exp(at(in, i * kWidth + 4 + j)));
      if (j < 3) {
        EXPECT_NEAR(at(got.at("three"), i * 3 + j), expected, 1e-5);
      }
      EXPECT_NEAR(at(got.at("four"), i * 4 + j), expected, 1e-5);
    }
  }
  EXPECT_EQ(read_in_place, 1);
}

}  // namespace
}  // namespace kinora::test
