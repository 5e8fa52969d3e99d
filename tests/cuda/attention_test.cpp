// The kernels for attention on the GPU: each against float32 on the CPU, whatever stands in for one that cannot, slices
// of joined tensors, results that lie in a wider one, and the same bits in any batch.
#include "ops/attention.h"

#include <cstring>

#include "cuda/cuda.h"
#include "cuda_support.h"
#include "ops/elementwise.h"
#include "ops/shaping.h"

namespace kinora::test {
namespace {

struct Sizes {
  const char* name;
  int64_t batch, queries, keys, heads, kv_heads, dim;
  std::vector<int32_t> lengths = {};  // of the keys, when not all count
};

const Sizes kSizes[] = {
    {"long", 1, 1100, 1030, 3, 3, 128},
    {"odd", 2, 77, 129, 4, 4, 72},
    {"grouped", 2, 65, 65, 4, 2, 64},
    {"one_token", 2, 1, 1, 2, 2, 128},
    {"one_query", 1, 1, 300, 2, 2, 64},
    {"few_keys", 1, 513, 7, 2, 2, 96},
    {"batch", 3, 1024, 1024, 1, 1, 64},
    {"narrow", 1, 50, 40, 2, 2, 24},
    {"pairs", 3, 70, 70, 4, 2, 256},
    {"pairs_many_keys", 2, 33, 400, 2, 1, 256, {400, 321}},
    {"pairs_few_keys", 3, 33, 65, 4, 1, 208, {65, 1, 64}},
    {"captions", 4, 1100, 300, 3, 3, 112, {300, 1, 77, 129}},
    {"captions_72", 3, 1024, 300, 2, 2, 72, {64, 299, 128}},
    {"captions_many", 4, 1100, 300, 12, 12, 112, {300, 1, 77, 170}},  // heads and lengths change within a block's share
    {"captions_many_72", 3, 1000, 320, 16, 16, 72, {161, 160, 320}},
    {"captions_grouped", 5, 65, 70, 4, 2, 64, {65, 1, 64, 2, 70}},
    {"captions_short", 2, 33, 1, 2, 2, 112, {1, 1}},
};

Runtime runtime_for(const std::string& variant, DType dtype) {
  Runtime runtime = make_runtime("cuda", "float32", 2, nullptr, variant);
  runtime.dtype = dtype;
  return runtime;
}

struct Attention {
  Graph graph;
  std::map<std::string, Tensor> feed;

  // q, k and v as columns of one tensor where there are as many of each; the result as columns of another.
  Attention(const Sizes& s, DType dtype, bool joined, int64_t batch = 0, int64_t from = 0) {
    int64_t b = batch ? batch : s.batch;
    auto input = [&](const std::string& name, int64_t tokens, int64_t heads, uint64_t seed) {
      Tensor all = random_tensor({s.batch, tokens, heads, s.dim}, seed, -2, 2);
      feed[name] = all.rows(from, from + b);
      return cast(graph.input(name, {b, tokens, heads, s.dim}), dtype);
    };
    Value q = input("q", s.queries, s.heads, 1), k = input("k", s.keys, s.kv_heads, 2),
          v = input("v", s.keys, s.kv_heads, 3);
    if (joined && s.queries == s.keys && s.heads == s.kv_heads) {
      std::vector<Value> parts = split(affine(concat({q, k, v}, 2), 1, 0), 2, 3);
      q = parts[0], k = parts[1], v = parts[2];
    }
    Value lengths;
    if (!s.lengths.empty()) {
      lengths = graph.input("lengths", {b}, DType::i32);
      feed["lengths"] = Tensor::from({s.batch}, s.lengths).rows(from, from + b);
    }
    double scale = 1 / std::sqrt(static_cast<double>(s.dim));
    auto attend = [&](double by) {
      return reshape(attention(q, k, v, {}, {.scale = by * scale}, lengths), {b, s.queries, s.heads * s.dim});
    };
    Value y = attend(1);
    if (joined) y = slice(concat({y, attend(0.5)}, 2), 2, 0, s.heads * s.dim);
    graph.output("y", cast(y, DType::f32));
  }
};

class CudaAttention : public testing::TestWithParam<Sizes> {};

TEST_P(CudaAttention, AllKernelsAgree) {
  KINORA_NEEDS_GPU();
  const Sizes& s = GetParam();
  for (DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    Attention exact(s, DType::f32, false);
    for (auto& [name, tensor] : exact.feed) {
      if (name != "lengths") tensor = tensor.to(dtype).to(DType::f32);
    }
    Tensor expected = run_graph(exact.graph, exact.feed).at("y");
    for (bool joined : {false, true}) {
      for (const char* variant : {"auto", "cudnn", "flash", "math"}) {
        Attention a(s, dtype, joined);
        Runtime runtime = runtime_for(variant, dtype);
        Executable exe = compile(a.graph, *runtime.backend, runtime.context);
        std::string used = attention_of(exe);
        std::string what = std::string(s.name) + " " + variant + " (" + used + (joined ? ", joined)" : ")");
        expect_close(exe.run(a.feed).at("y"), expected, dtype, s.keys, what);
        if (variant == std::string("flash") || variant == std::string("math")) {
          EXPECT_EQ(used, variant + std::string(joined ? " 2" : " 1"));
        }
        if (variant == std::string("cudnn") && dtype == DType::f32) {
          EXPECT_EQ(used, joined ? "flash 2" : "flash 1") << what;
        }
      }
    }
  }
}

// A batch item's bits must not depend on how many there are, nor on its place. cuDNN's choice of an engine may depend
// on the batch, so that its plans are for one item.
TEST_P(CudaAttention, BatchInvariant) {
  KINORA_NEEDS_GPU();
  const Sizes& s = GetParam();
  for (const char* variant : {"auto", "cudnn", "flash"}) {
    Runtime runtime = runtime_for(variant, DType::bf16);
    Attention all(s, DType::bf16, false);
    Tensor together = compile(all.graph, *runtime.backend, runtime.context).run(all.feed).at("y");
    for (int64_t i = 0; i < s.batch; ++i) {
      Attention one(s, DType::bf16, false, 1, i);
      Tensor alone = compile(one.graph, *runtime.backend, runtime.context).run(one.feed).at("y");
      Tensor same = together.rows(i, i + 1);
      EXPECT_EQ(std::memcmp(alone.raw(), same.raw(), alone.bytes()), 0) << s.name << " " << variant << ", item " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaAttention, testing::ValuesIn(kSizes),
                         [](const auto& param) { return std::string(param.param.name); });

// On the machines that films are made on, long attention must not fall back unseen.
TEST(CudaAttentionChoice, LongIsCudnn) {
  KINORA_NEEDS_GPU();
  Attention a(kSizes[0], DType::bf16, false);
  Runtime runtime = runtime_for("auto", DType::bf16);
  EXPECT_EQ(attention_of(compile(a.graph, *runtime.backend, runtime.context)), "cudnn 1");
  Attention b(kSizes[1], DType::bf16, false);
  EXPECT_EQ(attention_of(compile(b.graph, *runtime.backend, runtime.context)), "flash 1");
}

// So must not the captions of large pictures, of Sana's two widths: cuDNN's where ours for Hopper does not run.
TEST(CudaAttentionChoice, CaptionsOfLargePictures) {
  KINORA_NEEDS_GPU();
  Runtime runtime = runtime_for("auto", DType::bf16);
  bool hopper = cuda::device_limits().major == 9 && cuda::device_limits().minor == 0;
  for (int64_t queries : {4095, 4096}) {
    for (int64_t dim : {72, 112}) {
      Attention a(Sizes{"", 2, queries, 300, 2, 2, dim, {300, 40}}, DType::bf16, false);
      EXPECT_EQ(attention_of(compile(a.graph, *runtime.backend, runtime.context)),
                hopper || queries < 4096 ? "flash 1" : "cudnn 1")
          << dim;
    }
  }
}

// Keys behind the last one that counts must not be looked at: there, numbers of any size change no bit.
TEST(CudaAttentionLengths, KeysBehindThemWeighNothing) {
  KINORA_NEEDS_GPU();
  for (const Sizes& s : kSizes) {
    if (s.lengths.empty()) continue;
    for (const char* variant : {"cudnn", "flash"}) {
      for (DType dtype : {DType::bf16, DType::f32}) {
        Attention a(s, dtype, false);
        Runtime runtime = runtime_for(variant, dtype);
        Executable exe = compile(a.graph, *runtime.backend, runtime.context);
        Tensor expected = exe.run(a.feed).at("y");
        for (const char* name : {"k", "v"}) {
          Tensor changed = a.feed.at(name).clone();
          int64_t row = s.kv_heads * s.dim;
          for (int64_t b = 0; b < s.batch; ++b) {
            for (int64_t i = s.lengths[size_t(b)] * row; i < s.keys * row; ++i)
              changed.data<float>()[b * s.keys * row + i] = 1e4f;
          }
          a.feed[name] = changed;
        }
        Tensor got = exe.run(a.feed).at("y");
        EXPECT_EQ(std::memcmp(got.raw(), expected.raw(), got.bytes()), 0) << s.name << " " << variant;
      }
    }
  }
}

TEST(CudaAttentionChoice, MasksAreOurs) {
  KINORA_NEEDS_GPU();
  Graph graph;
  Value q = cast(graph.input("q", {1, 1100, 1, 64}), DType::bf16);
  graph.output("y", cast(attention(q, q, q, {}, {.scale = 0.1, .causal = true}), DType::f32));
  Runtime runtime = runtime_for("cudnn", DType::bf16);
  EXPECT_EQ(attention_of(compile(graph, *runtime.backend, runtime.context)), "flash 1");
}

}  // namespace
}  // namespace kinora::test
