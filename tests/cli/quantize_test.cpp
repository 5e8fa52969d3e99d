// kinora quantize and --quantize, from the command line.
#include <algorithm>

#include "cli/cli.h"
#include "diffusion/quantize_model.h"
#include "film_folder.h"
#include "golden.h"
#include "io/image.h"
#include "io/safetensors.h"

namespace kinora::test {
namespace {

namespace fs = std::filesystem;

class CliQuantize : public Cli {
 protected:
  std::string tiny() {
    if (!fs::exists(temp_.path("tiny"))) copy_tiny_sprint(temp_.path("tiny"));
    return "tiny";
  }
};

TEST_F(CliQuantize, AFolderDrawsWhatLoadingDraws) {
  for (std::string format : {"int8", "nvfp4"}) {
    Outcome o = run("quantize " + tiny() + " --to " + format + " -o " + format);
    ASSERT_EQ(o.status, 0) << o.err;
    EXPECT_NE(o.out.find("transformer.transformer_blocks.0.attn1.to_q"), std::string::npos) << o.out;
    EXPECT_NE(o.out.find("layers quantized"), std::string::npos);
    ASSERT_EQ(run("generate 'a cat' --steps 2 -o a.png --model " + format).status, 0);
    ASSERT_EQ(run("generate 'a cat' --steps 2 -o b.png --model tiny --quantize " + format).status, 0);
    ASSERT_EQ(run("generate --from b.png -o c.png --threads 1").status, 0);
    EXPECT_EQ(load_image(temp_.path("a.png")).rgb, load_image(temp_.path("b.png")).rgb) << format;
    EXPECT_EQ(text("b.png"), text("c.png")) << format;
    o = run("inspect " + format);
    EXPECT_NE(o.out.find("; " + format + ": "), std::string::npos) << o.out << o.err;
    for (const char* made : {"a.png", "b.png", "c.png"}) fs::remove(temp_.path(made));
    expect_error("generate cat --model " + format + " --quantize fp8 -o d.png", 2, "is quantized already");
    expect_error("quantize " + format + " --to fp8 -o again", 2, "is quantized already");
  }
  EXPECT_FALSE(fs::exists(temp_.path("again")));
}

TEST_F(CliQuantize, KeepsWhatItIsTold) {
  tiny();
  Outcome o = run("quantize tiny --to fp8 -o out --keep '*attn1*' --layers 'transformer.*attn2*=int8'");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out.find("attn1"), std::string::npos) << o.out;
  Weights weights = open_weights(temp_.path("out/transformer"), "diffusion_pytorch_model");
  EXPECT_EQ(weights.format("transformer_blocks.0.attn2.to_q.weight"), QuantFormat::int8);
  EXPECT_FALSE(weights.format("transformer_blocks.0.attn1.to_q.weight"));
  EXPECT_NE(text("out/transformer/config.json").find("\"quant_method\": \"kinora\""), std::string::npos);
  EXPECT_EQ(text("out/vae/config.json"), text("tiny/vae/config.json"));
}

TEST_F(CliQuantize, FilesOfOpenSora) {
  FilmFolder folder(temp_.path("film"));
  std::string film = "generate cat --video --seed 3 --quiet ";
  Outcome o = run("quantize film --to int8 -o out");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_TRUE(fs::exists(temp_.path("out/Open_Sora_v2.safetensors")));
  EXPECT_NE(o.out.find("t5 "), std::string::npos) << o.out;
  ASSERT_EQ(run(film + "--model out -o a.webp").status, 0) << text("err.txt");
  ASSERT_EQ(run(film + "--model film --quantize int8 -o b.webp").status, 0) << text("err.txt");
  ASSERT_EQ(run("quantize film/Open_Sora_v2.safetensors --to int8 -o one -q").status, 0) << text("err.txt");
  EXPECT_EQ(text("one/Open_Sora_v2.safetensors"), text("out/Open_Sora_v2.safetensors"));
}

// From "median error: ", without calibration and with it.
std::pair<double, double> errors_of(const std::string& out) {
  double plain = 0, calibrated = 0;
  size_t at = out.find("median error: ");
  if (at != std::string::npos) {
    std::sscanf(out.c_str() + at, "median error: %lf %% without calibration, %lf", &plain, &calibrated);
  }
  return {plain, calibrated};
}

TEST_F(CliQuantize, CalibratesOnPrompts) {
  tiny();
  temp_.write("prompts.jsonl", "{\"prompt\": \"a cat\", \"steps\": 2}\n{\"prompt\": \"two dogs\", \"seed\": [3, 4]}\n");
  Outcome o = run("quantize tiny --to nvfp4 -o out --calibrate prompts.jsonl --calibrate-steps 1");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.err.find("picture 3/3"), std::string::npos) << o.err;
  auto [plain, calibrated] = errors_of(o.out);
  EXPECT_LT(calibrated, plain);
  ASSERT_EQ(run("quantize tiny --to nvfp4 -o plain -q").status, 0);
  EXPECT_EQ(fs::file_size(temp_.path("out/transformer/diffusion_pytorch_model.safetensors")),
            fs::file_size(temp_.path("plain/transformer/diffusion_pytorch_model.safetensors")));
  EXPECT_EQ(text("out/transformer/config.json"), text("plain/transformer/config.json"));
  ASSERT_EQ(run("generate 'a cat' --steps 2 -o a.png --model out").status, 0) << text("err.txt");
  fs::remove(temp_.path("a.png"));

  temp_.write("empty.txt", "\n \n");
  temp_.write("bad.jsonl", "{\"prompt\": \"cat\", \"width\": 63}\n");
  std::string quantize = "quantize tiny --to int8 -o again --calibrate ";
  expect_error(quantize + "empty.txt", 3, "holds no prompt");
  expect_error(quantize + "none.txt", 5, "none.txt");
  expect_error(quantize + "bad.jsonl", 2, "picture 1 to calibrate with: width");
  expect_error("quantize out --to int8 -o again --calibrate prompts.jsonl", 2, "is quantized already");
  expect_error("quantize tiny/text_encoder --to int8 -o again --calibrate prompts.jsonl", 2, "model_index.json");
  expect_error("quantize tiny --to int8 -o again --calibrate-steps 2", 2, "--calibrate");
  EXPECT_FALSE(fs::exists(temp_.path("again")));
}

TEST_F(CliQuantize, CalibratesFilmsOnPrompts) {
  FilmFolder folder(temp_.path("film"));
  save_image(temp_.path("given.jpg"), {32, 32, std::vector<uint8_t>(32 * 32 * 3, 200)});
  temp_.write("prompts.jsonl",
              "{\"prompt\": \"a cat\", \"frames\": 9}\n"
              "{\"prompt\": \"two dogs\", \"init_image\": \"given.jpg\", \"seed\": [3, 4]}\n");
  Outcome o = run("quantize film --to nvfp4 -o out --calibrate prompts.jsonl --calibrate-steps 2");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.err.find("film 3/3"), std::string::npos) << o.err;
  auto [plain, calibrated] = errors_of(o.out);
  EXPECT_LT(calibrated, plain);
  EXPECT_NE(o.out.find("%  nvfp4         [128, 32]      transformer.single_blocks.0.v_mlp"), std::string::npos)
      << o.out;
  EXPECT_EQ(o.out.find("%           nvfp4"), std::string::npos) << o.out;
  ASSERT_EQ(run("quantize film --to nvfp4 -o plain -q").status, 0);
  for (const char* file : {"Open_Sora_v2.safetensors", "google/t5-v1_1-xxl/model.safetensors"}) {
    EXPECT_EQ(text(std::string("out/") + file).size(), text(std::string("plain/") + file).size());
    EXPECT_NE(text(std::string("out/") + file), text(std::string("plain/") + file));
  }
  ASSERT_EQ(run("generate cat --video --quiet --model out -o a.webp").status, 0) << text("err.txt");

  std::string quantize = "quantize film --to int8 -o again --calibrate ";
  temp_.write("drawn.jsonl", "{\"prompt\": \"cat\", \"first_picture\": \"auto\"}\n");
  temp_.write("longer.jsonl", "{\"prompt\": \"cat\", \"video_head\": \"a.webp\"}\n");
  temp_.write("picture.jsonl", "{\"prompt\": \"cat\", \"strength\": 0.5}\n");
  temp_.write("bad.jsonl", "{\"prompt\": \"cat\", \"width\": 33, \"height\": 32}\n");
  expect_error(quantize + "drawn.jsonl", 3, "drawn.jsonl:1: films to calibrate with");
  expect_error(quantize + "longer.jsonl", 3, "longer.jsonl:1: films to calibrate with");
  expect_error(quantize + "picture.jsonl", 3, "is for pictures, not for films");
  expect_error(quantize + "bad.jsonl", 2, "film 1 to calibrate with: ");
  expect_error("quantize film/Open_Sora_v2.safetensors --to int8 -o again --calibrate prompts.jsonl", 2,
               "whole folder");
  EXPECT_FALSE(fs::exists(temp_.path("again")));
}

TEST_F(CliQuantize, StatisticsServeSeveralFormats) {
  FilmFolder folder(temp_.path("film"));
  folder.add_flux();  // nothing is known of its layers, whose names are those of the film's
  temp_.write("prompts.txt", "a cat\n");
  std::string calibrate = " --calibrate prompts.txt -q";
  auto weights = [&](const std::string& name) {
    return text(name + "/Open_Sora_v2.safetensors") + text(name + "/flux1-dev.safetensors") +
           text(name + "/google/t5-v1_1-xxl/model.safetensors");
  };
  ASSERT_EQ(run("quantize film --to int8 -o first --save-statistics found.safetensors" + calibrate).status, 0);
  ASSERT_EQ(run("quantize film --to int8 -o int8" + calibrate).status, 0) << text("err.txt");
  EXPECT_EQ(weights("first"), weights("int8"));
  ASSERT_EQ(run("quantize film --to nvfp4 -o nvfp4" + calibrate).status, 0) << text("err.txt");
  Outcome o = run("quantize film --to nvfp4 -o again --statistics found.safetensors");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.err, "");
  EXPECT_EQ(weights("again"), weights("nvfp4"));
  EXPECT_LT(errors_of(o.out).second, errors_of(o.out).first);

  ASSERT_EQ(
      run("quantize film --to int8 --keep 'transformer.*' -o few --save-statistics few.safetensors" + calibrate).status,
      0);
  std::string quantize = "quantize film --to int8 -o other --statistics ";
  expect_error(quantize + "few.safetensors", 3, "few.safetensors has nothing about '");
  expect_error(quantize + "film/Open_Sora_v2.safetensors", 3, "holds no statistics");
  expect_error(quantize + "none.safetensors", 5, "none.safetensors");
  expect_error(quantize + "found.safetensors --calibrate prompts.txt", 2, "--calibrate");
  expect_error(quantize + "found.safetensors --save-statistics x.safetensors", 2, "--calibrate");
  expect_error("quantize film --to int8 -o other --calibrate prompts.txt --save-statistics no/x", 5, "create it first");
  EXPECT_FALSE(fs::exists(temp_.path("other")));
}

TEST_F(CliQuantize, Refusals) {
  tiny();
  expect_error("quantize tiny --to int3 -o out", 2, "unknown quantization format 'int3'");
  expect_error("quantize tiny --to none -o out", 2, "--to takes");
  expect_error("quantize tiny --to fp8 -o tiny", 2, "exists already");
  expect_error("quantize tiny --to fp8 -o tiny/inner", 2, "lies in the model's own folder");
  expect_error("quantize tiny --to fp8 -o no/where", 5, "create it first");
  expect_error("quantize tiny/vae --to fp8 -o out", 5, "nothing that can be quantized");
  expect_error("quantize tiny --to fp8 -o out --layers '=fp8'", 2, "no pattern");
  expect_error("generate cat -o x.png --quantize int3", 2, "int3");
  expect_error("generate cat -o x.png --quantize-layers 'a=fp8'", 2, "no format");
  EXPECT_FALSE(fs::exists(temp_.path("out")));
}

TEST_F(CliQuantize, WhatFailsOrIsStoppedHalfWayLeavesNothing) {
  tiny();
  expect_error("quantize tiny --to int8 -o out", 5, "", "ulimit -f 64 &&");
  std::atomic<bool> stop = false;
  QuantizeModelOptions options{.model = temp_.path("tiny"), .output = temp_.path("out")};
  options.quantization = parse_quantization("int8", "");
  options.stop = &stop;
  options.on_layer = [&](const LayerReport&) { stop = true; };
  ThreadPool pool(1);
  try {
    quantize_model(options, pool);
    ADD_FAILURE() << "not stopped";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::cancelled);
  }
  EXPECT_FALSE(fs::exists(temp_.path("out")));
  EXPECT_TRUE(std::none_of(fs::directory_iterator(temp_.path()), fs::directory_iterator(),
                           [](const auto& entry) { return entry.path().filename().string().starts_with(".kinora"); }));
}

}  // namespace
}  // namespace kinora::test
