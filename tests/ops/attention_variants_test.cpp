// Which kernel computes attention: what is asked for where it can, else another; all say the same.
#include "diffusion/backends.h"
#include "ops/attention.h"
#include "support.h"

namespace kinora::test {
namespace {

struct Case {
  const char* name;
  Shape q, k;
  AttentionOptions options;
  bool biased;
  std::vector<int32_t> lengths = {};
};

const Case kCases[] = {
    {"plain", {2, 70, 3, 40}, {2, 33, 3, 40}, {.scale = 0.2}, false},
    {"grouped", {1, 20, 6, 16}, {1, 20, 2, 16}, {.scale = 0.2, .softcap = 3, .causal = true, .window = 7}, false},
    {"biased", {2, 5, 2, 8}, {2, 9, 2, 8}, {.scale = 0.3}, true},
    {"frames", {1, 24, 1, 32}, {1, 24, 1, 32}, {.scale = 0.2, .causal = true, .block = 6}, false},
    {"lengths", {3, 20, 2, 16}, {3, 33, 2, 16}, {.scale = 0.2}, false, {1, 33, 17}},
    {"lengths_biased", {2, 20, 2, 16}, {2, 33, 1, 16}, {.scale = 0.2, .softcap = 3}, true, {32, 5}},
    {"lengths_frames", {2, 24, 1, 32}, {2, 24, 1, 32}, {.scale = 0.2, .causal = true, .block = 6}, false, {20, 3}},
};

struct Result {
  Tensor y;
  std::string attention;
};

Result run(const Case& c, const std::string& variant) {
  Graph graph;
  Value q = graph.input("q", c.q), k = graph.input("k", c.k), v = graph.input("v", c.k);
  Value bias = c.biased ? graph.input("bias", {c.q[0], c.k[1]}) : Value();
  Value lengths = c.lengths.empty() ? Value() : graph.input("lengths", {c.q[0]}, DType::i32);
  graph.output("y", attention(q, k, v, bias, c.options, lengths));
  std::map<std::string, Tensor> feed{
      {"q", random_tensor(c.q, 1)}, {"k", random_tensor(c.k, 2)}, {"v", random_tensor(c.k, 3)}};
  if (c.biased) feed["bias"] = random_tensor({c.q[0], c.k[1]}, 4);
  if (!c.lengths.empty()) feed["lengths"] = Tensor::from({c.q[0]}, c.lengths);
  Runtime runtime = make_runtime("cpu", "float32", 2, nullptr, variant);
  Executable exe = compile(graph, *runtime.backend, runtime.context);
  return {exe.run(feed).at("y"), attention_of(exe)};
}

TEST(AttentionVariants, AgreeOnTheCpu) {
  for (const Case& c : kCases) {
    Result math = run(c, "math"), flash = run(c, "flash");
    EXPECT_EQ(math.attention, "math 1") << c.name;
    EXPECT_EQ(flash.attention, "flash 1") << c.name;
    expect_close(flash.y, math.y, DType::f32, c.k[1], c.name);
    // What is not there is replaced.
    for (const char* variant : {"auto", "cudnn"}) EXPECT_EQ(run(c, variant).attention, "flash 1") << c.name;
  }
}

TEST(AttentionVariants, LinearAttentionStaysLinear) {
  Graph graph;
  Value q = graph.input("q", {1, 10, 2, 8});
  graph.output("y", linear_attention(q, q, q));
  for (const char* variant : {"auto", "math"}) {
    Runtime runtime = make_runtime("cpu", "float32", 1, nullptr, variant);
    EXPECT_EQ(attention_of(compile(graph, *runtime.backend, runtime.context)), "linear 1");
  }
  Graph empty;
  empty.output("y", softmax(empty.input("x", {3})));
  Runtime runtime = make_runtime("cpu", "float32", 1, nullptr);
  EXPECT_EQ(attention_of(compile(empty, *runtime.backend, runtime.context)), "none");
}

TEST(AttentionVariants, AnUnknownNameIsRefused) {
  try {
    make_runtime("cpu", "float32", 1, nullptr, "fast");
    FAIL() << "it was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(std::string(error.what()).find("auto, flash, cudnn, math"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace kinora::test
