// The forms of attention's bias that the table of cases cannot show.
#include "ops/attention.h"

#include <algorithm>
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

// Behind the last key nothing counts, whatever stands there; before it, all is as if there were no more keys.
TEST(AttentionLengths, KeysBehindThemWeighNothing) {
  constexpr int64_t kKeys = 23, kWidth = 2 * 16;
  Tensor q = random_tensor({1, 9, 2, 16}, 1), k = random_tensor({1, kKeys, 2, 16}, 2);
  auto run = [&](const Tensor& keys, int64_t length) {
    Graph graph;
    Value y = graph.input("k", keys.shape());
    Value lengths = graph.input("lengths", {1}, DType::i32);
    graph.output("y", attention(graph.input("q", q.shape()), y, y, {}, {.scale = 0.3}, lengths));
    Tensor n = Tensor::from({1}, std::vector<int32_t>{static_cast<int32_t>(length)});
    return run_graph(graph, {{"q", q}, {"k", keys}, {"lengths", n}}).at("y");
  };
  for (int64_t length = 1; length <= kKeys; ++length) {
    Tensor other = k.clone(), few({1, length, 2, 16}, DType::f32);
    for (int64_t i = length * kWidth; i < other.numel(); ++i) other.data<float>()[i] = 1e30f;
    std::copy_n(k.data<float>(), few.numel(), few.data<float>());
    Tensor some = run(k, length), same = run(other, length);
    EXPECT_EQ(std::memcmp(some.raw(), same.raw(), some.bytes()), 0) << length;
    expect_close(some, run(few, length), DType::f32, kKeys, "the first " + std::to_string(length));
  }
}

TEST(AttentionLengths, ThatDoNotFitAreRefused) {
  Graph graph;
  Value q = graph.input("q", {2, 3, 2, 4}), k = graph.input("k", {2, 5, 2, 4});
  Value bias = graph.input("bias", {2, 5});
  EXPECT_THROW(attention(q, k, k, {}, {}, graph.input("one", {1}, DType::i32)), Error);
  EXPECT_THROW(attention(q, k, k, bias, {}, graph.input("rows", {2, 5}, DType::i32)), Error);
  EXPECT_THROW(attention(q, k, k, {}, {}, graph.input("wide", {2}, DType::i64)), Error);
  EXPECT_THROW(attention(q, k, k, bias, {}, graph.input("float", {2})), Error);
}

}  // namespace
}  // namespace kinora::test
