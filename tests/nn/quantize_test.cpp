// Which layers are quantized, what becomes of their tensors, and files of them that are damaged.
#include "nn/quantize.h"

#include <cmath>
#include <cstring>
#include <functional>

#include "diffusion/backends.h"
#include "io/quantized.h"
#include "io/safetensors.h"
#include "nn/layers.h"
#include "ops/quantize.h"
#include "support.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

TEST(Patterns, StarsAndQuestionMarks) {
  EXPECT_TRUE(fits_pattern("a.b", "a.b"));
  EXPECT_TRUE(fits_pattern("*", ""));
  EXPECT_TRUE(fits_pattern("a*b*c", "a.x.b.b.c"));
  EXPECT_TRUE(fits_pattern("*.?o_q", "x.to_q"));
  EXPECT_FALSE(fits_pattern("a*b", "a.b.c"));
  EXPECT_FALSE(fits_pattern("?", ""));
  EXPECT_FALSE(fits_pattern("", "a"));
  std::string many(2000, 'a');
  EXPECT_FALSE(fits_pattern("*a*a*a*a*a*a*b", many));  // and soon
}

std::string chosen(const std::string& format, const std::string& rules, const std::string& component,
                   const std::string& tensor, const Shape& shape = {32, 32}) {
  Quantization q = parse_quantization(format, rules);
  auto result = format_for(q, component, tensor, Tensor(shape, DType::bf16));
  return result ? std::string(quant_format_name(*result)) : "keep";
}

TEST(Table, KeepsWhatIsSensitive) {
  EXPECT_EQ(chosen("fp8", "", "transformer", "transformer_blocks.3.attn1.to_q.weight"), "fp8");
  EXPECT_EQ(chosen("fp8", "", "transformer", "transformer_blocks.3.ff.conv_inverted.weight", {32, 32, 1, 1}), "fp8");
  EXPECT_EQ(chosen("fp8", "", "transformer", "transformer_blocks.3.ff.conv_depth.weight", {32, 1, 3, 3}), "keep");
  for (const char* name :
       {"patch_embed.proj.weight", "time_embed.linear.weight", "caption_projection.linear_1.weight", "proj_out.weight",
        "img_in.weight", "final_layer.linear.weight", "vector_in.in_layer.weight"})
    EXPECT_EQ(chosen("fp8", "", "transformer", name), "keep") << name;
  EXPECT_EQ(chosen("fp8", "", "transformer", "double_blocks.0.img_mod.lin.weight"), "fp8-weights");
  EXPECT_EQ(chosen("int8", "", "transformer", "single_blocks.0.modulation.lin.weight"), "int8-weights");
  EXPECT_EQ(chosen("nvfp4", "", "transformer", "single_blocks.0.modulation.lin.weight"), "nvfp4");
  EXPECT_EQ(chosen("nvfp4-both", "", "transformer", "transformer_blocks.3.attn1.to_q.weight"), "nvfp4-both");
  EXPECT_EQ(chosen("nvfp4-both", "", "transformer", "single_blocks.0.modulation.lin.weight"), "nvfp4");
  EXPECT_EQ(chosen("nvfp4-both", "", "text_encoder", "layers.0.mlp.up_proj.weight"), "nvfp4");
  EXPECT_EQ(chosen("int8", "", "text_encoder", "layers.0.mlp.up_proj.weight"), "int8-weights");
  EXPECT_EQ(chosen("int8", "", "text_encoder", "embed_tokens.weight"), "keep");
  EXPECT_EQ(chosen("int8", "", "t5", "shared.weight"), "keep");
  EXPECT_EQ(chosen("int8", "", "transformer", "x.bias", {32}), "keep");
  EXPECT_EQ(chosen("int8", "", "transformer", "odd.weight", {32, 24}), "keep");
  EXPECT_EQ(chosen("none", "", "transformer", "x.weight"), "keep");
}

TEST(Table, RulesComeBeforeIt) {
  std::string rules = "transformer.a.*=nvfp4, *.to_v ,transformer.proj_out=int8";
  EXPECT_EQ(chosen("fp8", rules, "transformer", "a.b.weight"), "nvfp4");
  EXPECT_EQ(chosen("fp8", rules, "transformer", "b.to_v.weight"), "keep");
  EXPECT_EQ(chosen("fp8", rules, "transformer", "proj_out.weight"), "int8");
  EXPECT_EQ(chosen("fp8", rules, "transformer", "b.to_q.weight"), "fp8");
  EXPECT_THROW(parse_quantization("int4", ""), Error);
  EXPECT_THROW(parse_quantization("fp8", "a=int3"), Error);
  EXPECT_THROW(parse_quantization("fp8", "=fp8"), Error);
  EXPECT_THROW(parse_quantization("none", "a=fp8"), Error);
}

Weights two_layers() {
  Weights weights;
  weights.add("a.weight", random_tensor({32, 48}, 1));
  weights.add("a.bias", random_tensor({32}, 2));
  weights.add("conv.weight", random_tensor({16, 32, 1, 1}, 3).to(DType::bf16));
  return weights;
}

Tensor run_layers(const Weights& weights, int64_t begin = 0, int64_t end = 32) {
  Graph graph;
  Params params(graph, weights);
  Value h = linear_part(params / "a", graph.input("x", {1, 4, 4, 48}), 32, begin, end, true, "silu");
  if (begin == 0 && end == 32) h = conv1x1_layer(params / "conv", h, 16, false);
  if (begin == 0 && end == 32) params.expect_all_used();
  graph.output("y", h);
  return run_graph(graph, {{"x", random_tensor({1, 4, 4, 48}, 9)}}).at("y");
}

double distance(const Tensor& a, const Tensor& b) {
  double error = 0, total = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    error += std::pow(a.data<float>()[i] - b.data<float>()[i], 2);
    total += std::pow(b.data<float>()[i], 2);
  }
  return std::sqrt(error / total);
}

TEST(QuantizeWeights, LayersReadThemWithoutKnowing) {
  ThreadPool pool(2);
  Tensor exact = run_layers(two_layers());
  std::map<std::string, double> allowed{{"int8", 0.02},        {"int8-weights", 0.01}, {"fp8", 0.06},
                                        {"fp8-weights", 0.05}, {"nvfp4", 0.15},        {"nvfp4-both", 0.2}};
  for (const auto& [format, most] : allowed) {
    Weights weights = two_layers();
    quantize_weights(weights, "transformer", parse_quantization(format, ""), pool);
    EXPECT_EQ(weights.size(), format.starts_with("nvfp4") ? 7u : 5u);
    EXPECT_EQ(weights.shape_of("conv.weight"), (Shape{16, 32, 1, 1}));
    EXPECT_LT(weights.bytes(), two_layers().bytes() / 2);
    double error = distance(run_layers(weights), exact);
    EXPECT_LT(error, most) << format;
    EXPECT_GT(error, 1e-5) << format;
    // Rows of a layer are those of the whole.
    Tensor whole = run_layers(weights), part = run_layers(weights, 8, 24);
    EXPECT_EQ(part.shape()[-1], 16);
    EXPECT_THROW(quantize_weights(weights, "transformer", parse_quantization(format, ""), pool), Error);
  }
}

TEST(QuantizeWeights, TheSameOnAnyNumberOfThreads) {
  Tensor weight = random_tensor({70, 64}, 8);
  for (QuantFormat format : {QuantFormat::int8, QuantFormat::fp8, QuantFormat::nvfp4}) {
    ThreadPool pool(3);
    QuantizedMatrix one = quantize_matrix(weight, format), many = quantize_matrix(weight, format, &pool);
    EXPECT_EQ(std::memcmp(one.codes.raw(), many.codes.raw(), one.codes.bytes()), 0);
    EXPECT_EQ(std::memcmp(one.scale.raw(), many.scale.raw(), one.scale.bytes()), 0);
  }
}

TEST(QuantizeWeights, NamesAWeightThatIsNotFinite) {
  Weights weights = two_layers();
  Tensor bad = random_tensor({32, 48}, 1);
  bad.data<float>()[77] = NAN;
  weights.replace("a.weight", bad);
  ThreadPool pool(2);
  try {
    quantize_weights(weights, "transformer", parse_quantization("fp8", ""), pool);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::model);
    EXPECT_NE(std::string(error.what()).find("'a.weight'"), std::string::npos) << error.what();
  }
}

TEST(PrepareWeights, FallsBackWhereTheDeviceLacksAFormat) {
  Backend lacking = cpu::backend();
  lacking.runnable = [](QuantFormat f) { return f == QuantFormat::fp8 ? QuantFormat::fp8_weights : f; };
  Runtime runtime;
  runtime.backend = &lacking;
  runtime.context = context(2);
  runtime.quantization = parse_quantization("fp8", "transformer.conv=int8");
  Weights weights = two_layers();
  testing::internal::CaptureStderr();
  prepare_weights(weights, "transformer", runtime);
  std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(weights.format("a.weight"), QuantFormat::fp8_weights);
  EXPECT_EQ(weights.format("conv.weight"), QuantFormat::int8);
  EXPECT_NE(said.find("no products of fp8"), std::string::npos) << said;
  prepare_weights(weights, "transformer", runtime);  // once is enough
}

TEST(PrepareWeights, QuantizesAsTheBackendDoes) {
  static int made;
  made = 0;
  Backend device = cpu::backend();
  device.quantizer = [](std::shared_ptr<Device>, std::shared_ptr<ThreadPool> pool) -> Quantizer {
    return [pool](const Tensor& weight, QuantFormat format) {
      ++made;
      return quantize_matrix(weight, format, pool.get());
    };
  };
  Runtime runtime;
  runtime.backend = &device;
  runtime.context = context(2);
  runtime.quantization = parse_quantization("int8", "");
  Weights weights = two_layers();
  prepare_weights(weights, "transformer", runtime);
  EXPECT_EQ(made, 2);
  EXPECT_EQ(weights.format("a.weight"), QuantFormat::int8);
}

// A file of two_layers in a format, after `damage` of its tensors and metadata.
using Tensors = std::vector<std::pair<std::string, Tensor>>;
using Metadata = std::map<std::string, std::string>;

class QuantizedFile : public testing::TestWithParam<const char*> {
 protected:
  Weights open(const std::function<void(Tensors&, Metadata&)>& damage) {
    Weights weights = two_layers();
    ThreadPool pool(1);
    quantize_weights(weights, "transformer", parse_quantization(GetParam(), ""), pool);
    FileQuantization described{GetParam(), {}};
    Tensors tensors;
    for (const std::string& name : weights.names()) {
      tensors.emplace_back(name, *weights.find(name));
      if (auto format = weights.format(name)) described.layers[name.substr(0, name.size() - 7)] = *format;
    }
    Metadata metadata;
    write_quantization(described, metadata);
    damage(tensors, metadata);
    write_safetensors(temp_.path("model.safetensors"), tensors, metadata);
    return open_weights(temp_.path(), "model");
  }
  void expect_refused(const std::function<void(Tensors&, Metadata&)>& damage, const std::string& word) {
    try {
      open(damage);
      ADD_FAILURE() << "not refused: " << word;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::model);
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  }
  static Tensor& find(Tensors& tensors, const std::string& name) {
    return std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.first == name; })->second;
  }
  TempFolder temp_;
};

TEST_P(QuantizedFile, IsReadBack) {
  Weights weights = open([](Tensors&, Metadata&) {}), made = two_layers();
  ThreadPool pool(1);
  quantize_weights(made, "transformer", parse_quantization(GetParam(), ""), pool);
  EXPECT_EQ(describe_quantization(weights), describe_quantization(made));
  Tensor a = run_layers(weights), b = run_layers(made);
  EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.bytes()), 0);
}

TEST_P(QuantizedFile, IsRefusedWhenDamaged) {
  bool blocks = std::string(GetParam()).starts_with("nvfp4");
  auto drop = [](const char* name) {
    return
        [name](Tensors& tensors, Metadata&) { std::erase_if(tensors, [&](const auto& t) { return t.first == name; }); };
  };
  expect_refused(drop("a.weight_scale"), "'a.weight_scale' of a weight quantized to");
  expect_refused(drop("a.weight"), "missing");
  if (blocks) expect_refused(drop("a.weight_scale_2"), "'a.weight_scale_2'");
  expect_refused(
      [&](Tensors& t, Metadata&) {
        Tensor& scale = find(t, "a.weight_scale");
        scale = scale.rows(0, 31);
      },
      "needs");
  expect_refused([&](Tensors& t, Metadata&) { find(t, "a.weight") = random_tensor({32, 48}, 1); }, "F32");
  for (float bad : {NAN, INFINITY, -1.0f}) {
    expect_refused(
        [&](Tensors& t, Metadata&) {
          Tensor scale = find(t, "a.weight_scale").clone();
          if (blocks) {
            static_cast<uint8_t*>(scale.raw())[5] = bad < 0 ? 0x90 : 0x7f;
          } else {
            scale.data<float>()[5] = bad;
          }
          find(t, "a.weight_scale") = scale;
        },
        "negative or not finite");
  }
  expect_refused([](Tensors&, Metadata& m) { m["quantization"] = "{"; }, "no object");
  expect_refused([](Tensors&, Metadata& m) { m["quantization"] = R"({"version":2,"layers":{}})"; }, "version");
  expect_refused([](Tensors&, Metadata& m) { m["quantization"] = R"({"version":1,"layers":{"a":"int3"}})"; }, "int3");
  expect_refused([](Tensors&, Metadata& m) { m["quantization"] = R"({"version":1,"layers":{"a":7}})"; }, "no format");
  expect_refused([](Tensors&, Metadata& m) { m["quantization"] = R"({"version":1,"layers":{"b":"fp8"}})"; }, "missing");
}

TEST_P(QuantizedFile, WithoutItsMetadataIsNoModel) {
  Weights weights = open([](Tensors&, Metadata& m) { m.clear(); });
  EXPECT_THROW(run_layers(weights), Error);
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedFile, testing::Values("int8", "fp8", "fp8-weights", "nvfp4", "nvfp4-both"),
                         [](const auto& p) { return std::string(p.param).substr(0, 3) + std::to_string(p.index); });

// Whole numbers whose largest is the format's: all scales are 1 and every sum is exact.
TEST(QuantizedProducts, SumsOfInt8AreExact) {
  constexpr int64_t kRows = 40, kOut = 24, kIn = 512;
  Tensor x(Shape{kRows, kIn}, DType::f32), w(Shape{kOut, kIn}, DType::f32);
  for (int64_t i = 0; i < x.numel(); ++i)
    x.data<float>()[i] = i % kIn == 0 ? 127 : static_cast<float>(i * 37 % 255 - 127);
  for (int64_t i = 0; i < w.numel(); ++i)
    w.data<float>()[i] = i % kIn == 1 ? -127 : static_cast<float>(i * 91 % 255 - 127);
  QuantizedMatrix q = quantize_matrix(w, QuantFormat::int8);
  Graph graph;
  QuantizedWeight weight{QuantFormat::int8, graph.parameter("w", q.codes), graph.parameter("s", q.scale), {}};
  graph.output("y", quantized_linear(graph.input("x", x.shape()), weight));
  Tensor y = run_graph(graph, {{"x", x}}).at("y");
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kOut; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < kIn; ++t) sum += double{x.data<float>()[i * kIn + t]} * w.data<float>()[j * kIn + t];
      ASSERT_EQ(y.data<float>()[i * kOut + j], static_cast<float>(sum)) << i << ", " << j;
    }
  }
}

TEST(QuantizeWeights, StoppedTheyAreAsBefore) {
  ThreadPool pool(1);
  Weights weights = two_layers();
  std::atomic<bool> stop{false};
  Quantizer once = [&](const Tensor& weight, QuantFormat format) {
    EXPECT_FALSE(stop.exchange(true));
    return quantize_matrix(weight, format, &pool);
  };
  Quantization int8 = parse_quantization("int8", "");
  try {
    quantize_weights(weights, "transformer", int8, pool, once, &stop);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::cancelled);
  }
  EXPECT_EQ(describe_quantization(weights), "");
  EXPECT_EQ(weights.find("a.weight")->dtype(), DType::f32);
  quantize_weights(weights, "transformer", int8, pool);
  EXPECT_EQ(describe_quantization(weights), "int8: 2 layers");
}

TEST(QuantizedProducts, OneQuantizationServesAllReaders) {
  ThreadPool pool(1);
  Weights weights = two_layers();
  weights.add("b.weight", random_tensor({16, 48}, 4));
  quantize_weights(weights, "transformer", parse_quantization("int8", ""), pool);
  Graph graph;
  Params params(graph, weights);
  Value x = graph.input("x", {2, 9, 48});
  graph.output("a", linear_layer(params / "a", x, 32, true));
  graph.output("b", linear_add_layer(params / "b", x, false, graph.input("r", {2, 9, 16})));
  Graph shared = share_quantized_rows(use_quantized_products(graph));
  int quantized = 0, products = 0;
  for (const Node& node : shared.nodes()) {
    quantized += node.op == &kQuantizeRows;
    products += node.op == &kQuantizedLinearRows;
    EXPECT_NE(node.op, &kDequantize);
  }
  EXPECT_EQ(quantized, 1);
  EXPECT_EQ(products, 2);
}

TEST(Golden, ConversionsAndProductsAreThoseOfPyTorch) {
  SafetensorsFile golden = SafetensorsFile::open(source_folder() + "/tests/golden/quantize.safetensors");
  Tensor codes = golden.tensor("e4m3_of_bf16"), values = golden.tensor("value_of_e4m3");
  for (int i = 0; i < 65536; ++i) {
    bf16 x;
    x.bits = static_cast<uint16_t>(i);
    auto value = static_cast<float>(x);
    uint8_t expected = codes.data<uint8_t>()[i];
    // What is too large becomes NaN there, the largest number here.
    if (!std::isnan(value) && (expected & 0x7f) == 0x7f) expected = static_cast<uint8_t>(value < 0 ? 0xfe : 0x7e);
    ASSERT_EQ(f8_e4m3(value).bits, expected) << value;
  }
  for (size_t i = 0; i < 256; ++i) {
    f8_e4m3 code;
    code.bits = static_cast<uint8_t>(i);
    float value = static_cast<float>(code), expected = values.data<float>()[i];
    ASSERT_TRUE(value == expected || (std::isnan(value) && std::isnan(expected))) << i;
  }

  Tensor x = golden.tensor("x");
  QuantizedMatrix a = quantize_matrix(x, QuantFormat::int8), w = quantize_matrix(golden.tensor("w"), QuantFormat::int8);
  for (const auto& [name, tensor] :
       {std::pair("x_codes", a.codes), {"x_scale", a.scale}, {"w_codes", w.codes}, {"w_scale", w.scale}}) {
    EXPECT_EQ(std::memcmp(tensor.raw(), golden.tensor(name).raw(), tensor.bytes()), 0) << name;
  }
  Graph graph;
  QuantizedWeight weight{QuantFormat::int8, graph.parameter("w", w.codes), graph.parameter("s", w.scale), {}};
  graph.output("y", quantized_linear(graph.input("x", x.shape()), weight));
  expect_close(run_graph(graph, {{"x", x}}).at("y"), golden.tensor("product"), DType::f32, 1, "product");
}

// The result of a row does not depend on the rows beside it.
TEST(QuantizedProducts, BitsDoNotDependOnTheBatch) {
  for (QuantFormat format :
       {QuantFormat::int8, QuantFormat::fp8, QuantFormat::int8_weights, QuantFormat::nvfp4, QuantFormat::nvfp4_both}) {
    QuantizedMatrix q = quantize_matrix(random_tensor({140, 96}, 3), format);
    auto run = [&](const Tensor& x) {
      Graph graph;
      QuantizedWeight weight{format, graph.parameter("w", q.codes), graph.parameter("s", q.scale), {}};
      if (q.scale_2.defined()) weight.scale_2 = graph.parameter("t", q.scale_2);
      graph.output("y", quantized_linear(graph.input("x", x.shape()), weight));
      return run_graph(graph, {{"x", x}}).at("y");
    };
    Tensor x = random_tensor({3, 70, 96}, 6);
    Tensor all = run(x), one = run(x.rows(1, 2));
    EXPECT_EQ(std::memcmp(all.rows(1, 2).raw(), one.raw(), one.bytes()), 0) << quant_format_name(format);
  }
}

}  // namespace
}  // namespace kinora::test
