// The forms of attention's bias that the table of cases cannot show.
#include "ops/attention.h"

#include <cstring>

#include "core/error.h"
#include "support.h"

namespace kinora::test {
namespace {

TEST(AttentionBias, PairsStandForAllHeadsAndQueries) {
  Tensor q = random_tensor({2, 3, 2, 4}, 1), k = random_tensor({2, 5, 2, 4}, 2), bias = random_tensor({2, 5}, 3);
  auto run = [&](const Tensor& b) {
    Graph graph;
    Value x = graph.input("q", q.shape()), y = graph.input("k", k.shape());
    graph.output("y", attention(x, y, y, graph.input("bias", b.shape()), {}));
    return run_graph(graph, {{"q", q}, {"k", k}, {"bias", b}}).at("y");
  };
  Tensor pairs = run(bias), full = run(bias.reshaped({2, 1, 1, 5}));
  EXPECT_EQ(std::memcmp(pairs.raw(), full.raw(), full.bytes()), 0);
}

TEST(AttentionBias, ThatDoesNotFitIsRefused) {
  Graph graph;
  Value q = graph.input("q", {2, 3, 2, 4}), k = graph.input("k", {2, 5, 2, 4});
  for (const Shape& shape :
       {Shape{2, 4}, Shape{3, 5}, Shape{5}, Shape{2, 2, 3, 1}, Shape{1, 2, 4, 5}, Shape{1, 4, 3, 5}}) {
    EXPECT_THROW(attention(q, k, k, graph.input("bias", shape), {}), Error) << shape.str();
  }
  EXPECT_THROW(attention(q, k, k, graph.input("half", {2, 5}, DType::bf16), {}), Error);
}

}  // namespace
}  // namespace kinora::test
