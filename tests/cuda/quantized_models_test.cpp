// Whole models with quantized weights: what the passes make of them, computed on the CPU, and the GPU beside the CPU.
#include <cmath>
#include <memory>

#include "cuda_support.h"
#include "diffusion/components.h"
#include "diffusion/text_encoders.h"
#include "graph/rewrite.h"
#include "ops/fuse_quantized.h"
#include "ops/matmul.h"
#include "ops/quantize.h"
#include "sana_golden.h"

namespace kinora::test {
namespace {

constexpr const char* kFormats[] = {"int8", "fp8", "int8-weights", "fp8-weights", "nvfp4", "nvfp4-both"};

Runtime quantized(Runtime runtime, const char* format) {
  runtime.quantization = parse_quantization(format, "");
  return runtime;
}
Runtime on_cpu(const char* format) { return quantized(make_runtime("cpu", "float32", 2, nullptr), format); }

double distance(const Tensor& a, const Tensor& b) {
  double error = 0, total = 0;
  Tensor x = a.to(DType::f32), y = b.to(DType::f32);
  for (int64_t i = 0; i < x.numel(); ++i) {
    double p = x.data<float>()[i], q = y.data<float>()[i];
    error += (p - q) * (p - q);
    total += q * q;
  }
  return std::sqrt(error / std::max(total, 1e-30));
}

// One way to compute a model's result, for a runtime.
using Compute = std::function<Tensor(Runtime)>;

// In float32 both sides do the same; but a value that lies on the edge between two codes of a row may go either way,
// and then the difference is a part of what quantizing itself costs.
void expect_the_cpus(const Compute& compute, const Tensor& exact, const char* format, const std::string& what) {
  Tensor cpu = compute(on_cpu(format)), gpu = compute(quantized(gpu_runtime(), format));
  double cost = distance(cpu, exact);
  EXPECT_GT(cost, 1e-5) << what << ": nothing was quantized";
  if (quantizes_rows(quant_format_from_name(format))) {
    EXPECT_LT(distance(gpu, cpu), cost / 4) << what;
  } else {
    expect_close(gpu, cpu, DType::f32, kModelTerms, what);
  }
}

// In 16 bits the rows' codes are others; the result is about as far from the exact one.
void expect_no_worse(const Compute& compute, const Tensor& exact, const char* format, const std::string& what) {
  double cost = distance(compute(on_cpu(format)), exact);
  double rounding = distance(compute(gpu_runtime(DType::bf16)), exact);
  double got = distance(compute(quantized(gpu_runtime(DType::bf16), format)), exact);
  EXPECT_LT(got, 1.5 * std::hypot(cost, rounding))
      << what << ": quantizing costs " << cost << ", rounding " << rounding;
}

Compute sana(const Golden& golden) {
  return [&golden](Runtime runtime) {
    Denoiser model(read_sana_config(golden.config), golden.weights, std::move(runtime));
    return model.predict(sana_inputs(golden, model.config()));
  };
}

class CudaQuantizedSana : public testing::TestWithParam<const char*> {};

TEST_P(CudaQuantizedSana, GivesTheCpusResult) {
  KINORA_NEEDS_GPU();
  Golden golden(GetParam());
  Tensor exact = golden.channels_last("out.sample");
  for (const char* format : kFormats) {
    expect_the_cpus(sana(golden), exact, format, std::string(GetParam()) + " " + format);
    expect_no_worse(sana(golden), exact, format, std::string(GetParam()) + " " + format + " in bfloat16");
  }
}

TEST_P(CudaQuantizedSana, BatchInvariant) {
  KINORA_NEEDS_GPU();
  Golden golden(GetParam());
  for (const char* format : kFormats) {
    Denoiser model(read_sana_config(golden.config), golden.weights, quantized(gpu_runtime(DType::bf16), format));
    DenoiseInputs all = sana_inputs(golden, model.config());
    Tensor together = model.predict(all);
    for (int64_t i = 0; i < all.latents.shape()[0]; ++i) {
      EXPECT_EQ(distance(model.predict(item_of(all, i)), together.rows(i, i + 1)), 0)
          << GetParam() << " " << format << ", item " << i;
    }
  }
}

int64_t count_of(const Graph& graph, const OpDef& op) {
  std::vector<bool> live = live_nodes(graph);
  int64_t count = 0;
  for (size_t i = 0; i < live.size(); ++i) count += live[i] && graph.nodes()[i].op == &op;
  return count;
}

// The backend's passes, needing no GPU: no weight is left in floats, and norms give quantized rows at once.
TEST_P(CudaQuantizedSana, PassesKeepTheResult) {
  Golden golden(GetParam());
  for (const char* format : kFormats) {
    Denoiser model(read_sana_config(golden.config), golden.weights, on_cpu(format));
    DenoiseInputs in = sana_inputs(golden, model.config());
    const Shape& s = in.latents.shape();
    Graph plain = model.graph(s[0], s[1], s[2], in.caption.shape()[1]);
    auto fused = std::make_unique<Graph>(cuda::backend().passes[0](plain));
    for (auto pass : cuda::backend().passes.subspan(1)) fused = std::make_unique<Graph>(pass(*fused));
    auto feed = model.feed(in);
    Tensor expected = run_graph(plain, feed).at("sample"), got = run_graph(*fused, feed).at("sample");
    std::string what = std::string(GetParam()) + " " + format;
    EXPECT_EQ(count_of(*fused, kDequantize), 0) << what;
    int64_t layers = model.config().layers;
    if (std::string(format) == "nvfp4-both") {  // rows are a step of their own, and no products are joined
      EXPECT_GT(count_of(*fused, kQuantizeRows), 0) << what;
      EXPECT_GT(count_of(*fused, kQuantizedLinearRows), 0) << what;
      EXPECT_EQ(count_of(*fused, kQuantizedLinear), 0) << what;
      EXPECT_LT(distance(got, expected), distance(expected, golden.channels_last("out.sample")) / 4) << what;
    } else if (quantizes_rows(quant_format_from_name(format))) {
      // A block ends with a sum, whose norm begins the next; its first sum is read by the second attention.
      EXPECT_EQ(count_of(*fused, kLayerNormRows), layers + 1) << what;
      EXPECT_EQ(count_of(*fused, kMulAddRows), 2 * layers - 1) << what;
      // q, k, v of the one attention and k, v of the other in one product each; all blocks' k and v, where they fit.
      EXPECT_LE(count_of(*fused, kQuantizedLinearRows), 6 * layers + 1) << what;
      EXPECT_LT(distance(got, expected), distance(expected, golden.channels_last("out.sample")) / 4) << what;
    } else {
      EXPECT_GT(count_of(*fused, kQuantizedLinear), 0) << what;
      expect_close(got, expected, DType::f32, kModelTerms, what);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaQuantizedSana, testing::Values("sana_base", "sana_qk_norm", "sana_sprint"));

TEST(CudaQuantizedGemma2, GivesTheCpusResult) {
  KINORA_NEEDS_GPU();
  Golden golden("gemma2_softcap");
  Compute compute = [&](Runtime runtime) {
    TextEncoder model(read_gemma2_config(golden.config), golden.weights, std::move(runtime));
    Tensor mask = golden.tensor("in.mask"), hidden = model.encode(golden.tensor("in.ids"), mask);
    int64_t width = hidden.shape()[2];
    for (int64_t i = 0; i < hidden.numel(); ++i) hidden.data<float>()[i] *= mask.data<float>()[i / width];
    return hidden;
  };
  for (const char* format : kFormats) {
    expect_the_cpus(compute, golden.tensor("out.hidden"), format, std::string("gemma2 ") + format);
    expect_no_worse(compute, golden.tensor("out.hidden"), format, std::string("gemma2 in bfloat16 ") + format);
  }
}

TEST(CudaQuantizedT5, GivesTheCpusResult) {
  KINORA_NEEDS_GPU();
  for (const char* name : {"t5_gated", "t5_relu"}) {
    Golden golden(name);
    Compute compute = [&](Runtime runtime) {
      T5Encoder model(read_t5_config(golden.config), golden.weights, std::move(runtime));
      return model.encode(golden.tensor("in.ids"));
    };
    for (const char* format : kFormats) {
      expect_the_cpus(compute, golden.tensor("out.hidden"), format, std::string(name) + " " + format);
      expect_no_worse(compute, golden.tensor("out.hidden"), format, std::string(name) + " in bfloat16 " + format);
    }
  }
}

// Text encoders keep x as it is unless they are told otherwise; their gated activations and norms give rows too.
TEST(CudaQuantizedGemma2, TakesRowsWhenTold) {
  KINORA_NEEDS_GPU();
  Golden golden("gemma2_softcap");
  auto encode = [&](Runtime runtime) {
    runtime.quantization = parse_quantization("fp8", "text_encoder.*=fp8");
    TextEncoder model(read_gemma2_config(golden.config), golden.weights, std::move(runtime));
    Tensor mask = golden.tensor("in.mask"), hidden = model.encode(golden.tensor("in.ids"), mask);
    int64_t width = hidden.shape()[2];
    for (int64_t i = 0; i < hidden.numel(); ++i) hidden.data<float>()[i] *= mask.data<float>()[i / width];
    return hidden;
  };
  Tensor cpu = encode(make_runtime("cpu", "float32", 2, nullptr)), exact = golden.tensor("out.hidden");
  double cost = distance(cpu, exact);
  EXPECT_LT(distance(encode(gpu_runtime()), cpu), cost / 2);
  EXPECT_LT(distance(encode(gpu_runtime(DType::bf16)), exact), 1.5 * cost);
}

}  // namespace
}  // namespace kinora::test
