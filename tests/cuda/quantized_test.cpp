// Quantized rows and weights on the GPU: the CPU's bytes, and those of the ops that give rows at once.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "cuda_support.h"
#include "ops/elementwise.h"
#include "ops/fuse_quantized.h"
#include "ops/norm.h"
#include "ops/quantize.h"
#include "ops/shaping.h"

namespace kinora::test {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr QuantFormat kFusedRowFormats[] = {QuantFormat::int8, QuantFormat::fp8};
constexpr QuantFormat kRowFormats[] = {QuantFormat::int8, QuantFormat::fp8, QuantFormat::nvfp4_both};

void expect_same_bytes(const Tensor& got, const Tensor& expected, const std::string& what) {
  ASSERT_EQ(got.bytes(), expected.bytes()) << what;
  const auto *a = static_cast<const uint8_t*>(got.raw()), *b = static_cast<const uint8_t*>(expected.raw());
  size_t other = 0, first = 0;
  for (size_t i = got.bytes(); i-- > 0;) {
    if (a[i] == b[i]) continue;
    ++other;
    first = i;
  }
  EXPECT_EQ(other, 0u) << what << ": the first of them at " << first << " of " << got.bytes() << ", " << int{a[first]}
                       << " instead of " << int{b[first]};
}

// Rows of values of all sizes, among them some without a scale.
Tensor odd_rows(int64_t m, int64_t k, DType dtype) {
  Tensor x = random_tensor({m, k}, static_cast<uint64_t>(m * k), -3, 3);
  auto* v = x.data<float>();
  for (int64_t i = 0; i < m; ++i) {
    float factor = dtype == DType::f16 ? 1.0f : std::ldexp(1.0f, static_cast<int>(i * 37 % 120) - 60);
    for (int64_t j = 0; j < k; ++j) v[i * k + j] *= factor;
  }
  auto row = [&](int64_t i) { return v + std::min(i, m - 1) * k; };
  for (int64_t j = 0; j < k; ++j) row(1)[j] = 0;
  for (int64_t j = 0; j < k; ++j) row(2)[j] = j % 2 ? 1e-31f : -1e-38f;
  row(3)[k - 1] = std::numeric_limits<float>::infinity();
  row(4)[k / 2] = std::numeric_limits<float>::quiet_NaN();
  row(5)[0] = -0.0f;
  for (int64_t j = 0; j < std::min<int64_t>(k, 448); ++j) row(6)[j] = static_cast<float>(448 - j);  // ties
  row(7)[k - 1] = dtype == DType::f16 ? 6e4f : 3e38f;
  return x.to(dtype);
}

Graph quantizing(const Tensor& x, QuantFormat format) {
  Graph graph;
  graph.output("rows", quantize_rows(graph.input("x", x.shape(), x.dtype()), format));
  return graph;
}

TEST(CudaQuantizeRows, GivesTheCpusBytes) {
  KINORA_NEEDS_GPU();
  for (DType dtype : kTypes) {
    for (int64_t k : {16, 32, 80, 256, 1024, 2240, 5600, 8192, 9216, 16384, 33040}) {
      for (int64_t m : {1, 9, 33}) {
        Tensor x = odd_rows(m, k, dtype);
        for (QuantFormat format : kRowFormats) {
          Graph graph = quantizing(x, format);
          expect_same_bytes(
              run_on_gpu(graph, {{"x", x}}).at("rows"), run_graph(graph, {{"x", x}}).at("rows"),
              std::string(quant_format_name(format)) + " " + std::string(dtype_name(dtype)) + " " + x.shape().str());
        }
      }
    }
  }
}

// The peaks of blocks and of rows, and codes on the edge between two, in every way of filling the last tiles.
TEST(CudaNvfp4Rows, GiveTheCpusBytesAndNumbers) {
  KINORA_NEEDS_GPU();
  for (DType dtype : kTypes) {
    for (int64_t k : {16, 48, 64, 80, 1152, 2240, 5600}) {
      for (int64_t m : {1, 127, 128, 129, 300}) {
        Tensor x = random_tensor({m, k}, static_cast<uint64_t>(m * k), -6, 6);
        for (int64_t i = 0; i < x.numel(); ++i) {
          if (i / 16 % 3 == 0) x.data<float>()[i] = std::nearbyint(x.data<float>()[i] * 4) / 4;
          if (i / 16 % 5 == 0) x.data<float>()[i] *= 1e-4f;
        }
        x = x.to(dtype);
        Graph graph;
        Value rows = quantize_rows(graph.input("x", x.shape(), dtype), QuantFormat::nvfp4_both);
        graph.output("rows", rows);
        graph.output("numbers", dequantize_rows(rows, QuantFormat::nvfp4_both, m, k));
        auto got = run_on_gpu(graph, {{"x", x}}), expected = run_graph(graph, {{"x", x}});
        std::string what = std::string(dtype_name(dtype)) + " " + x.shape().str();
        expect_same_bytes(got.at("rows"), expected.at("rows"), what);
        expect_same_bytes(got.at("numbers"), expected.at("numbers"), what);
      }
    }
  }
}

// Values of all sizes, ties, blocks of zeros and blocks too small for a scale.
Tensor odd_weight(const Shape& shape, DType dtype) {
  Tensor x = random_tensor(shape, static_cast<uint64_t>(shape.numel()), -3, 3);
  auto* v = x.data<float>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    int64_t block = i / 16;
    if (block % 3 == 0) v[i] = std::nearbyint(v[i] * 4) / 4;
    if (block % 5 == 0) v[i] = std::ldexp(v[i], -static_cast<int>(block % 40));
    if (block % 11 == 0) v[i] = block % 2 ? 0.0f : -0.0f;
    if (i % 997 == 0) v[i] *= 100;
  }
  return x.to(dtype);
}

void expect_same_matrix(const QuantizedMatrix& got, const QuantizedMatrix& expected, const std::string& what) {
  EXPECT_EQ(got.codes.shape(), expected.codes.shape()) << what;
  expect_same_bytes(got.codes, expected.codes, what + " codes");
  expect_same_bytes(got.scale, expected.scale, what + " scale");
  ASSERT_EQ(got.scale_2.defined(), expected.scale_2.defined()) << what;
  if (got.scale_2.defined()) expect_same_bytes(got.scale_2, expected.scale_2, what + " scale_2");
}

constexpr QuantFormat kWeightFormats[] = {QuantFormat::int8,        QuantFormat::int8_weights, QuantFormat::fp8,
                                          QuantFormat::fp8_weights, QuantFormat::nvfp4,        QuantFormat::nvfp4_both};

TEST(CudaQuantizeWeight, GivesTheCpusBytes) {
  KINORA_NEEDS_GPU();
  Runtime runtime = gpu_runtime();
  Quantizer quantizer = runtime.backend->quantizer(runtime.context.device, runtime.context.pool);
  // The largest is neither first nor last, and goes through more than one buffer.
  const Shape shapes[] = {{1, 16}, {70, 64, 1, 1}, {300, 5600}, {9, 33040}, {257, 272}};
  for (QuantFormat format : kWeightFormats) {
    for (DType dtype : kTypes) {
      for (const Shape& shape : shapes) {
        for (float factor : {1.0f, 1e-32f, 1e30f}) {  // one whose peak counts as zero, and one near the end
          if (factor != 1 && (shape[0] != 70 || dtype == DType::f16)) continue;
          Tensor weight = odd_weight(shape, DType::f32);
          for (int64_t i = 0; i < weight.numel(); ++i) weight.data<float>()[i] *= factor;
          weight = weight.to(dtype);
          expect_same_matrix(quantizer(weight, format), quantize_matrix(weight, format, runtime.context.pool.get()),
                             std::string(quant_format_name(format)) + " " + std::string(dtype_name(dtype)) + " " +
                                 shape.str() + " times " + std::to_string(factor));
        }
      }
    }
  }
}

TEST(CudaQuantizeWeight, RefusesWhatIsNotFiniteAndLeavesToTheHostWhatHasNoRoom) {
  KINORA_NEEDS_GPU();
  Runtime runtime = gpu_runtime();
  Quantizer quantizer = runtime.backend->quantizer(runtime.context.device, runtime.context.pool);
  for (QuantFormat format : {QuantFormat::int8, QuantFormat::fp8, QuantFormat::nvfp4}) {
    for (float bad : {INFINITY, -INFINITY, NAN}) {
      Tensor weight = odd_weight({70, 64}, DType::f32);
      weight.data<float>()[69 * 64 + 63] = bad;
      for (DType dtype : kTypes) EXPECT_THROW(quantizer(weight.to(dtype), format), Error);
    }
  }
  runtime.context.device->limit(size_t{1} << 20);
  Tensor weight = odd_weight({600, 1024}, DType::bf16);
  expect_same_matrix(quantizer(weight, QuantFormat::nvfp4), quantize_matrix(weight, QuantFormat::nvfp4), "no room");
}

// Whatever the size, and by any number of threads.
TEST(CudaCopies, BringEveryByteThereAndBack) {
  KINORA_NEEDS_GPU();
  for (int threads : {1, 2, 20}) {
    Runtime runtime = make_runtime("cuda", "float32", threads, nullptr);
    Device& device = *runtime.context.device;
    ThreadPool& pool = *runtime.context.pool;
    for (int64_t count : {1, 16384, 16385, 262144, 262145, 30'000'001}) {
      Tensor sent = random_tensor({count}, static_cast<uint64_t>(count)), changed = sent.clone(),
             got({count}, DType::f32);
      auto there = device.allocate(sent.bytes()), copied = device.allocate(sent.bytes());
      device.upload(there.get(), changed.raw(), changed.bytes(), &pool);
      std::memset(changed.raw(), 0x55, changed.bytes());
      device.copies()->after(*device.mark());
      device.copies()->send(copied.get(), sent.raw(), sent.bytes(), pool);
      device.download(got.raw(), there.get(), got.bytes(), &pool);
      expect_same_bytes(got, sent, std::to_string(count) + " values");
      device.after(*device.copies()->mark());
      device.download(got.raw(), copied.get(), got.bytes());
      expect_same_bytes(got, sent, std::to_string(count) + " values of the second queue");
    }
  }
}

QuantizedWeight weight_of(Graph& graph, QuantFormat format, int64_t n, int64_t k, uint64_t seed = 1) {
  QuantizedMatrix q = quantize_matrix(random_tensor({n, k}, seed), format);
  QuantizedWeight weight{format, graph.parameter("codes", q.codes), graph.parameter("scale", q.scale), {}};
  if (q.scale_2.defined()) weight.scale_2 = graph.parameter("scale_2", q.scale_2);
  return weight;
}

TEST(CudaDequantize, GivesTheCpusBytes) {
  KINORA_NEEDS_GPU();
  for (QuantFormat format :
       {QuantFormat::int8, QuantFormat::fp8_weights, QuantFormat::nvfp4, QuantFormat::nvfp4_both}) {
    Graph graph;
    graph.input("unused", {1});
    graph.output("y", dequantize(weight_of(graph, format, 257, 272)));
    std::map<std::string, Tensor> feed{{"unused", Tensor({1}, DType::f32)}};
    expect_same_bytes(run_on_gpu(graph, feed).at("y"), run_graph(graph, feed).at("y"),
                      std::string(quant_format_name(format)));
  }
}

// What one op gives at once must be what two give: the first result is an output here, so that they stay two.
struct Both {
  Graph one, two;

  template <class F, class G>
  void build(const Tensor& x, const F& plain, const G& rows, QuantFormat format) {
    one.output("rows", rows(one.input("x", x.shape(), x.dtype())));
    Value y = plain(two.input("x", x.shape(), x.dtype()));
    two.output("rows", quantize_rows(y, format));
    two.output("y", y);
  }
  void expect_same(const Tensor& x, const std::string& what) const {
    expect_same_bytes(run_on_gpu(one, {{"x", x}}).at("rows"), run_on_gpu(two, {{"x", x}}).at("rows"),
                      what + " " + std::string(dtype_name(x.dtype())) + " " + x.shape().str());
  }
};

TEST(CudaFusedRows, NormsGiveTheBytesOfTwoSteps) {
  KINORA_NEEDS_GPU();
  for (DType dtype : kTypes) {
    for (int64_t k : {16, 80, 512, 1152, 2240, 3072, 6144, 12288}) {
      Tensor x = random_tensor({3, 5, k}, 4, -2, 2).to(dtype);
      for (QuantFormat format : kFusedRowFormats) {
        auto part = [&](Value v, int64_t i) { return slice(v, 1, i, i + 1); };  // [3, 1, k], a view
        Both layer;
        layer.build(
            x, [&](Value v) { return layer_norm(v, 1e-6, part(v, 1), part(v, 2)); },
            [&](Value v) { return layer_norm_rows(v, format, 1e-6, part(v, 1), part(v, 2)); }, format);
        layer.expect_same(x, "layer_norm");
        auto weight = [&](Value v) { return v.graph().parameter("w", random_tensor({k}, 5).to(dtype)); };
        Both rms;
        rms.build(
            x, [&](Value v) { return rms_norm(v, weight(v), {}, 1e-5, 1); },
            [&](Value v) { return rms_norm_rows(v, format, weight(v), {}, 1e-5, 1); }, format);
        rms.expect_same(x, "rms_norm");
      }
    }
  }
}

TEST(CudaFusedRows, SumsGiveTheBytesOfTwoSteps) {
  KINORA_NEEDS_GPU();
  for (DType dtype : kTypes) {
    for (int64_t k : {16, 80, 512, 2240, 3072, 12288}) {
      Tensor x = random_tensor({3, 7, k}, 10, -2, 2).to(dtype);
      for (bool norm : {false, true}) {
        auto build = [&](bool fused) {
          auto graph = std::make_unique<Graph>();
          Value in = graph->input("x", x.shape(), dtype);
          auto slice_of = [&](int64_t i) { return slice(in, 1, i, i + 1); };
          Value y = affine(in, 0.5, 0.25);
          Value rows, sum;
          if (fused) {
            std::optional<RowNorm> how;
            if (norm) how = RowNorm{1e-6, slice_of(1), slice_of(2)};
            Value both = mul_add_rows(slice_of(0), y, in, QuantFormat::fp8, how);
            sum = sum_of(both, x.shape(), dtype);
            rows = rows_of(both, x.shape(), dtype);
          } else {
            sum = mul_add(slice_of(0), y, in);
            Value normed = norm ? layer_norm(sum, 1e-6, slice_of(1), slice_of(2)) : sum;
            rows = quantize_rows(normed, QuantFormat::fp8);
            graph->output("normed", normed);
          }
          graph->output("sum", sum);
          graph->output("rows", rows);
          return graph;
        };
        auto got = run_on_gpu(*build(true), {{"x", x}}), expected = run_on_gpu(*build(false), {{"x", x}});
        std::string what = std::string(dtype_name(dtype)) + " " + x.shape().str() + (norm ? " with a norm" : "");
        expect_same_bytes(got.at("sum"), expected.at("sum"), "sum " + what);
        expect_same_bytes(got.at("rows"), expected.at("rows"), "rows " + what);
      }
    }
  }
}

// Every number of groups that a thread takes, packed or not, and rows too long to be kept.
TEST(CudaSumsAndNorms, GiveTheBitsOfTwoSteps) {
  KINORA_NEEDS_GPU();
  for (DType dtype : kTypes) {
    for (int64_t k : {16, 21, 72, 203, 1000, 1152, 1536, 2048, 2240, 3072, 4096, 6144, 8192, 12296}) {
      for (Shape shape : {Shape{3, 7, k}, Shape{1, 130, k}}) {
        Tensor x = random_tensor(shape, 10, -2, 2).to(dtype);
        for (bool modulated : {false, true}) {
          auto build = [&](bool fused) {
            auto graph = std::make_unique<Graph>();
            Value in = graph->input("x", shape, dtype);
            auto slice_of = [&](int64_t i) { return slice(in, 1, i, i + 1); };
            Value y = affine(in, 0.5, 0.25), scale, shift, sum, normed;
            if (modulated) scale = slice_of(1), shift = slice_of(2);
            if (fused) {
              Value both = mul_add_norm(slice_of(0), y, in, 1e-6, scale, shift);
              sum = sum_of(both, shape, dtype);
              normed = normed_of(both, shape, dtype);
            } else {
              sum = mul_add(slice_of(0), y, in);
              graph->output("early", affine(sum, 2, 0));  // so that no pass joins them
              normed = layer_norm(sum, 1e-6, scale, shift);
            }
            graph->output("sum", sum);
            graph->output("normed", normed);
            return graph;
          };
          auto got = run_on_gpu(*build(true), {{"x", x}}), expected = run_on_gpu(*build(false), {{"x", x}});
          std::string what = std::string(dtype_name(dtype)) + " " + shape.str() + (modulated ? " modulated" : "");
          expect_same_bytes(got.at("sum"), expected.at("sum"), "sum " + what);
          expect_same_bytes(got.at("normed"), expected.at("normed"), "norm " + what);
        }
      }
    }
  }
}

TEST(CudaStreamsAndNorms, GiveTheBitsOfTwoSteps) {
  KINORA_NEEDS_GPU();
  for (DType dtype : kTypes) {
    for (int64_t k : {8, 21, 72, 203, 1000, 1152, 2048, 2304, 3584, 6144, 8192, 12296}) {
      Shape shape{2, 67, k};
      std::map<std::string, Tensor> feed{{"x", random_tensor(shape, 10, -2, 2).to(dtype)},
                                         {"stream", random_tensor(shape, 11, -2, 2).to(dtype)}};
      auto build = [&](bool fused) {
        auto graph = std::make_unique<Graph>();
        Value x = graph->input("x", shape, dtype), stream = graph->input("stream", shape, dtype);
        auto weight = [&](const char* name, uint64_t seed) {
          return graph->parameter(name, random_tensor({k}, seed).to(dtype));
        };
        Value first = weight("first", 12), second = weight("second", 13), sum, normed;
        if (fused) {
          Value both = rms_norm_add_norm(x, stream, {first, 1e-6, 1}, {second, 1e-5, 0.5});
          sum = sum_of(both, shape, dtype), normed = normed_of(both, shape, dtype);
        } else {
          sum = rms_norm_add(x, stream, first, {}, 1e-6, 1);
          graph->output("early", affine(sum, 2, 0));  // so that no pass joins them
          normed = rms_norm(sum, second, {}, 1e-5, 0.5);
        }
        graph->output("sum", sum);
        graph->output("normed", normed);
        return graph;
      };
      auto got = run_on_gpu(*build(true), feed), expected = run_on_gpu(*build(false), feed);
      std::string what = std::string(dtype_name(dtype)) + " " + shape.str();
      expect_same_bytes(got.at("sum"), expected.at("sum"), "sum " + what);
      expect_same_bytes(got.at("normed"), expected.at("normed"), "norm " + what);
    }
  }
}

// Slices that begin at no multiple of 16 bytes.
TEST(CudaFusedRows, ReadAnySlice) {
  KINORA_NEEDS_GPU();
  for (DType dtype : kTypes) {
    for (int64_t k : {16, 2240}) {
      Tensor x = random_tensor({4, 2 * k + 3}, 6, -2, 2).to(dtype);
      for (QuantFormat format : kFusedRowFormats) {
        auto a = [&](Value v) { return slice(v, 1, 1, 1 + k); };
        auto b = [&](Value v) { return slice(v, 1, 3 + k, 3 + 2 * k); };
        Both norm;
        norm.build(
            x, [&](Value v) { return layer_norm(a(v), 1e-6); },
            [&](Value v) { return layer_norm_rows(a(v), format, 1e-6); }, format);
        norm.expect_same(x, "layer_norm of a slice");
        Both gated;
        gated.build(
            x, [&](Value v) { return act_mul(a(v), b(v), "silu"); },
            [&](Value v) { return act_mul_rows(a(v), b(v), format, "silu"); }, format);
        gated.expect_same(x, "act_mul of slices");
      }
    }
  }
}

TEST(CudaFusedRows, GatedActivationsGiveTheBytesOfTwoSteps) {
  KINORA_NEEDS_GPU();
  for (DType dtype : kTypes) {
    for (int64_t k : {16, 1040, 9216, 10240, 17408}) {
      Tensor x = random_tensor({5, 2 * k}, 7, -3, 3).to(dtype);
      for (const char* act : {"silu", "gelu_tanh"}) {
        auto half = [&](Value v, int64_t i) { return slice(v, 1, i * k, (i + 1) * k); };
        Both gated;
        gated.build(
            x, [&](Value v) { return act_mul(half(v, 0), half(v, 1), act); },
            [&](Value v) { return act_mul_rows(half(v, 0), half(v, 1), QuantFormat::fp8, act); }, QuantFormat::fp8);
        gated.expect_same(x, act);
      }
    }
  }
}

// Enough rows for the sums to be made in several parts, the last one shorter; a gate for each of three pictures.
TEST(CudaQuantizedProduct, ManyRowsAgreeWithTheCpu) {
  KINORA_NEEDS_GPU();
  constexpr int64_t kRows = 1401, kIn = 32, kOut = 2064;
  for (QuantFormat format : {QuantFormat::int8, QuantFormat::fp8, QuantFormat::nvfp4, QuantFormat::nvfp4_both}) {
    for (DType dtype : kTypes) {
      auto build = [&](DType type) {
        Graph graph;
        Value x = graph.input("x", {3, kRows, kIn}, type), gate = graph.input("gate", {3, 1, kOut}, type);
        Value residual = graph.input("residual", {3, kRows, kOut}, type);
        Value bias = graph.parameter("bias", random_tensor({kOut}, 8));
        graph.output("y", quantized_linear(x, weight_of(graph, format, kOut, kIn),
                                           {.bias = bias, .act = "silu", .gate = gate, .residual = residual}));
        return graph;
      };
      std::map<std::string, Tensor> feed{{"x", random_tensor({3, kRows, kIn}, 2).to(dtype)},
                                         {"gate", random_tensor({3, 1, kOut}, 3).to(dtype)},
                                         {"residual", random_tensor({3, kRows, kOut}, 4).to(dtype)}};
      Tensor got = run_on_gpu(build(dtype), feed).at("y");
      for (auto& [name, tensor] : feed) tensor = tensor.to(DType::f32);
      expect_close(got, run_graph(build(DType::f32), feed).at("y"), dtype, kIn,
                   std::string(quant_format_name(format)) + " " + std::string(dtype_name(dtype)));
    }
  }
}

// The bits of a row depend on nothing else, for 16-bit products of the models' sizes.
TEST(CudaQuantizedProduct, RowsStandAlone) {
  KINORA_NEEDS_GPU();
  constexpr int64_t kIn = 2240, kOut = 2240, kRows = 512;
  for (QuantFormat format :
       {QuantFormat::int8, QuantFormat::fp8, QuantFormat::int8_weights, QuantFormat::nvfp4, QuantFormat::nvfp4_both}) {
    auto run = [&](const Tensor& x) {
      Graph graph;
      Value in = graph.input("x", x.shape(), DType::bf16);
      Value bias = graph.parameter("bias", random_tensor({kOut}, 8).to(DType::bf16));
      graph.output("y", quantized_linear(in, weight_of(graph, format, kOut, kIn), {.bias = bias}));
      return run_on_gpu(graph, {{"x", x}}).at("y");
    };
    Tensor x = random_tensor({2 * kRows, kIn}, 9, -2, 2).to(DType::bf16);
    Tensor all = run(x);
    for (int64_t begin : {int64_t{0}, kRows}) {
      expect_same_bytes(run(x.rows(begin, begin + kRows)), all.rows(begin, begin + kRows),
                        std::string(quant_format_name(format)) + " from row " + std::to_string(begin));
    }
  }
}

// One row for each item: the same bits for any number of items.
TEST(CudaQuantizedProduct, ItemsStandAlone) {
  KINORA_NEEDS_GPU();
  constexpr int64_t kIn = 3072, kOut = 1801, kItems = 7;
  for (QuantFormat format : {QuantFormat::int8_weights, QuantFormat::fp8_weights, QuantFormat::nvfp4}) {
    for (DType dtype : kTypes) {
      auto run = [&](const Tensor& x) {
        Graph graph;
        Value in = graph.input("x", x.shape(), dtype);
        Value bias = graph.parameter("bias", random_tensor({kOut}, 8));
        graph.output("y", quantized_linear(in, weight_of(graph, format, kOut, kIn), {.bias = bias, .act = "silu"}));
        return run_on_gpu(graph, {{"x", x}}).at("y");
      };
      Tensor x = random_tensor({kItems, kIn}, 9, -2, 2).to(dtype), all = run(x);
      for (int64_t i = 0; i < kItems; ++i) {
        expect_same_bytes(run(x.rows(i, i + 1)), all.rows(i, i + 1),
                          std::string(quant_format_name(format)) + " " + std::string(dtype_name(dtype)));
      }
    }
  }
}

}  // namespace
}  // namespace kinora::test
