// The film transformer: what the CUDA backend's passes make of it (needs no GPU), and its goldens on the GPU.
#include <cstring>

#include "cuda_support.h"
#include "graph/rewrite.h"
#include "graph/views.h"
#include "models/mmdit_golden.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/shaping.h"

namespace kinora::test {
namespace {

const char* const kGoldens[] = {"mmdit_opensora",     "mmdit_flux",        "mmdit_flux_unguided",
                                "mmdit_fused_halves", "mmdit_split_pairs", "mmdit_patch1"};

VideoModelInputs inputs_of(const MmditGolden& golden, const MmditConfig& config) {
  VideoModelInputs in;
  in.latents = golden.tensor("in.img");
  if (config.cond_embed) in.cond = golden.tensor("in.cond");
  in.text = golden.tensor("in.txt");
  in.pooled = golden.tensor("in.y_vec");
  in.timestep = golden.tensor("in.timesteps");
  if (config.guidance_embed) in.guidance = golden.tensor("in.guidance");
  in.positions = positions_of(golden.tensor("in.img_ids"));
  return in;
}

std::unique_ptr<Graph> as_on_the_gpu(const Graph& model) {
  std::unique_ptr<Graph> graph;
  for (Graph (*pass)(const Graph&) : cuda::backend().passes)
    graph = std::make_unique<Graph>(pass(graph ? *graph : model));
  return graph;
}

class CudaMmdit : public testing::TestWithParam<const char*> {
 protected:
  MmditGolden golden_{GetParam()};
  VideoDenoiser gpu_model(DType dtype) const {
    return VideoDenoiser(read_mmdit_config(golden_.config, golden_.weights), golden_.weights, gpu_runtime(dtype));
  }
};

TEST_P(CudaMmdit, PassesKeepTheGolden) {
  VideoDenoiser model = golden_.model();
  VideoModelInputs in = inputs_of(golden_, model.config());
  auto graph = as_on_the_gpu(model.graph(VideoDenoiser::extent_of(in)));
  expect_close(run_graph(*graph, model.feed(in)).at("velocity"), golden_.tensor("out.velocity"), DType::f32,
               kModelTerms, GetParam());
}

TEST_P(CudaMmdit, EqualsTheGolden) {
  KINORA_NEEDS_GPU();
  VideoDenoiser model = gpu_model(DType::f32);
  expect_close(model.predict(inputs_of(golden_, model.config())), golden_.tensor("out.velocity"), DType::f32,
               kModelTerms, GetParam());
}

TEST_P(CudaMmdit, Bfloat16IsNearFloat32) {
  KINORA_NEEDS_GPU();
  VideoDenoiser model = gpu_model(DType::bf16);
  Tensor got = model.predict(inputs_of(golden_, model.config()));
  expect_close(got, golden_.tensor("out.velocity"), DType::bf16, 64, GetParam());
}

TEST_P(CudaMmdit, BatchInvariant) {
  KINORA_NEEDS_GPU();
  VideoDenoiser model = gpu_model(DType::bf16);
  VideoModelInputs all = inputs_of(golden_, model.config());
  Tensor together = model.predict(all);
  for (int64_t i = 0; i < all.latents.shape()[0]; ++i) {
    VideoModelInputs one = all;
    for (Tensor* tensor : {&one.latents, &one.cond, &one.text, &one.pooled, &one.timestep, &one.guidance}) {
      if (tensor->defined()) *tensor = tensor->rows(i, i + 1);
    }
    Tensor alone = model.predict(one), same = together.rows(i, i + 1);
    EXPECT_EQ(std::memcmp(alone.raw(), same.raw(), alone.bytes()), 0) << GetParam() << ", item " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaMmdit, testing::ValuesIn(kGoldens));

// A model with heads and rows as wide as the published one's, in little: what is left to do in its blocks.
struct WideModel {
  Weights weights;
  MmditConfig config;

  WideModel() {
    constexpr int64_t kHidden = 256, kMlp = 512;
    add_linear("img_in", 256, 64), add_linear("cond_in", 256, 68), add_linear("txt_in", 256, 32);
    for (const char* name : {"time_in", "vector_in"}) {
      add_linear(std::string(name) + ".in_layer", kHidden, name[0] == 't' ? 256 : 16);
      add_linear(std::string(name) + ".out_layer", kHidden, kHidden);
    }
    for (const char* stream : {"img", "txt"}) {
      std::string block = "double_blocks.0." + std::string(stream);
      add_linear(block + "_mod.lin", 6 * kHidden, kHidden);
      for (const char* part : {"q_proj", "k_proj", "v_proj", "proj"})
        add_linear(block + "_attn." + part, kHidden, kHidden);
      add_norms(block + "_attn.norm");
      add_linear(block + "_mlp.0", kMlp, kHidden), add_linear(block + "_mlp.2", kHidden, kMlp);
    }
    add_linear("single_blocks.0.modulation.lin", 3 * kHidden, kHidden);
    add_linear("single_blocks.0.q_proj", kHidden, kHidden), add_linear("single_blocks.0.k_proj", kHidden, kHidden);
    add_linear("single_blocks.0.v_mlp", kHidden + kMlp, kHidden);
    add_linear("single_blocks.0.linear2", kHidden, kHidden + kMlp);
    add_norms("single_blocks.0.norm");
    add_linear("final_layer.adaLN_modulation.1", 2 * kHidden, kHidden), add_linear("final_layer.linear", 64, kHidden);
    config = infer_mmdit_config(weights);
  }

 private:
  void add(const std::string& name, const Shape& shape) {
    weights.add(name, random_tensor(shape, ++seed_, -0.1f, 0.1f), "memory");
  }
  void add_linear(const std::string& name, int64_t out, int64_t in) {
    add(name + ".weight", {out, in}), add(name + ".bias", {out});
  }
  void add_norms(const std::string& name) {
    add(name + ".query_norm.scale", {128}), add(name + ".key_norm.scale", {128});
  }
  uint64_t seed_ = 0;
};

VideoModelInputs random_inputs(int64_t batch) {
  VideoModelInputs in;
  in.positions = MmditPositions::grid(2, 2, 3);
  in.latents = random_tensor({batch, 12, 64}, 101);
  in.cond = random_tensor({batch, 12, 68}, 102);
  in.text = random_tensor({batch, 4, 32}, 103);
  in.pooled = random_tensor({batch, 16}, 104);
  in.timestep = random_tensor({batch}, 105, 0, 1);
  return in;
}

// Steps that a backend with the CUDA kernels' abilities runs, by op.
std::map<std::string, int> steps_of(const Graph& graph) {
  auto has = [](const Node& node, bool Kernel::*property) {
    return std::ranges::any_of(cuda::backend().kernels,
                               [&](const Kernel& row) { return row.op == node.op && row.*property; });
  };
  std::vector<bool> live = live_nodes(graph), fixed(live.size());
  for (size_t i = 0; i < fixed.size(); ++i) {
    const Node& n = graph.nodes()[i];
    fixed[i] = n.op != &kInputOp && std::ranges::all_of(n.inputs, [&](NodeId id) {
                 return static_cast<bool>(fixed[static_cast<size_t>(id)]);
               });
  }
  Views views = find_views(graph, {[&](const Node& node) { return has(node, &Kernel::strided); },
                                   [&](const Node& node) { return has(node, &Kernel::strided_out); },
                                   [&](NodeId id) { return static_cast<bool>(fixed[static_cast<size_t>(id)]); }});
  std::map<std::string, int> steps;
  for (size_t i = 0; i < live.size(); ++i) {
    if (live[i] && !fixed[i] && !views.idle[i] && !is_leaf(graph.nodes()[i]))
      ++steps[std::string(graph.nodes()[i].op->name)];
  }
  return steps;
}

TEST(CudaMmditSteps, NothingIsCopiedInItsBlocks) {
  WideModel wide;
  VideoDenoiser model(wide.config, wide.weights, make_runtime("cpu", "float32", 2, nullptr));
  VideoModelInputs in = random_inputs(1);
  Graph plain = model.graph(VideoDenoiser::extent_of(in));
  auto graph = as_on_the_gpu(plain);
  std::map<std::string, int> steps = steps_of(*graph);
  EXPECT_EQ(steps["attention"], 2);
  EXPECT_EQ(steps["rms_norm_rope"], 4);  // of image tokens, and in the one-stream block
  EXPECT_EQ(steps["rms_norm"], 2);       // of text tokens
  EXPECT_EQ(steps["rope"], 0);
  EXPECT_EQ(steps["mul_add_norm"], 2);  // between attention and MLP of the two streams
  EXPECT_EQ(steps["layer_norm"], 4);
  EXPECT_EQ(steps["mul_add"], 3);
  EXPECT_EQ(steps["slice"], 0);
  EXPECT_EQ(steps["permute"], 0);
  // The tables of positions and the features of time are made once a run.
  EXPECT_LE(steps["concat"], 7);
  // In the blocks: q, k and v at once, mlp.0 or v_mlp's second part, proj and mlp.2 or linear2.
  EXPECT_EQ(steps["linear"] + steps["linear_add"], 4 + 4 + 3 + 1 + 8);
  expect_close(run_graph(*graph, model.feed(in)).at("velocity"), run_graph(plain, model.feed(in)).at("velocity"),
               DType::f32, 1 << 10, "with the passes");

  Runtime half = make_runtime("cpu", "bfloat16", 2, nullptr);
  VideoDenoiser rounded(wide.config, wide.weights, half);
  auto in_half = as_on_the_gpu(rounded.graph(VideoDenoiser::extent_of(in)));
  EXPECT_EQ(steps_of(*in_half)["slice"], 0);
  expect_close(run_graph(*in_half, rounded.feed(in)).at("velocity"), run_graph(plain, model.feed(in)).at("velocity"),
               DType::bf16, 64, "with the passes, in bfloat16");
}

TEST(CudaMmditSteps, NothingIsCopiedWithQuantizedWeights) {
  WideModel wide;
  VideoModelInputs in = random_inputs(1);
  Runtime plain = make_runtime("cpu", "float32", 2, nullptr);
  VideoDenoiser exact(wide.config, wide.weights, plain);
  std::map<std::string, int> expected = steps_of(*as_on_the_gpu(exact.graph(VideoDenoiser::extent_of(in))));
  for (const char* format : {"fp8", "int8", "fp8-weights", "nvfp4"}) {
    Runtime runtime = plain;
    runtime.quantization = parse_quantization(format, "");
    VideoDenoiser model(wide.config, wide.weights, runtime);
    Graph before = model.graph(VideoDenoiser::extent_of(in));
    auto graph = as_on_the_gpu(before);
    std::map<std::string, int> steps = steps_of(*graph);
    bool rows = quantizes_rows(quant_format_from_name(format));
    EXPECT_EQ(steps["slice"], 0) << format;
    // Products of nvfp4 are not joined, so that v of text and picture are not columns of others.
    EXPECT_EQ(steps["concat"], expected["concat"]) << format;
    EXPECT_EQ(steps["mul_add_rows"], rows ? 2 : 0) << format;
    EXPECT_EQ(steps["mul_add_norm"], rows ? 0 : 2) << format;
    // What attention gives to the two streams and attention with the MLP; GELU's results.
    EXPECT_EQ(steps["quantize_rows"], rows ? 2 + 1 + 2 : 0) << format;
    expect_close(run_graph(*graph, model.feed(in)).at("velocity"), run_graph(before, model.feed(in)).at("velocity"),
                 rows ? DType::bf16 : DType::f32, rows ? 64 : 1 << 10, format);
  }
}

TEST(CudaMmditSteps, QuantizedWideModelOnTheGpu) {
  KINORA_NEEDS_GPU();
  WideModel wide;
  for (const char* format : {"fp8", "int8", "fp8-weights", "nvfp4"}) {
    for (int64_t batch : {1, 2}) {
      VideoModelInputs in = random_inputs(batch);
      Runtime cpu = make_runtime("cpu", "float32", 2, nullptr);
      cpu.quantization = parse_quantization(format, "");
      Tensor expected = VideoDenoiser(wide.config, wide.weights, cpu).predict(in);
      bool rows = quantizes_rows(quant_format_from_name(format));
      for (DType dtype : {DType::f32, DType::bf16}) {
        Runtime gpu = gpu_runtime(dtype);
        gpu.quantization = cpu.quantization;
        bool exact = dtype == DType::f32 && !rows;
        Tensor got = VideoDenoiser(wide.config, wide.weights, gpu).predict(in);
        expect_close(got, expected, exact ? DType::f32 : DType::bf16, exact ? 1 << 10 : 64, format);
      }
    }
  }
}

TEST(CudaMmditSteps, WideModelOnTheGpu) {
  KINORA_NEEDS_GPU();
  WideModel wide;
  VideoDenoiser cpu(wide.config, wide.weights, make_runtime("cpu", "float32", 2, nullptr));
  for (int64_t batch : {1, 2}) {
    VideoModelInputs in = random_inputs(batch);
    Tensor expected = cpu.predict(in);
    for (const char* attention : {"auto", "cudnn", "flash", "math"}) {
      for (DType dtype : {DType::f32, DType::bf16}) {
        Runtime runtime = make_runtime("cuda", "float32", 2, nullptr, attention);
        runtime.dtype = dtype;
        VideoDenoiser model(wide.config, wide.weights, runtime);
        expect_close(model.predict(in), expected, dtype, dtype == DType::f32 ? 1 << 10 : 64, attention);
      }
    }
  }
}

}  // namespace
}  // namespace kinora::test
