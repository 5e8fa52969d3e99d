// Moments that a tiny Sprint model gives, and a tiny model of films.
#include "diffusion/calibrate.h"

#include <cmath>

#include "film_folder.h"
#include "support.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

class Calibrate : public testing::Test {
 protected:
  Calibrate() { copy_tiny_sprint(temp_.path("model")); }
  CalibrationOptions options(int threads = 1) const {
    CalibrationOptions o;
    o.folder = temp_.path("model");
    o.runtime = make_runtime("cpu", "float32", threads, nullptr);
    for (const char* prompt : {"a cat", "two dogs on a red sofa"}) {
      Request r;
      r.prompt = prompt;
      r.steps = 2;
      r.width = r.height = 64;
      o.pictures.push_back(r);
    }
    return o;
  }
  TempFolder temp_;
};

const std::vector<std::string> kLayers{
    "transformer_blocks.0.attn1.to_k.weight", "transformer_blocks.0.attn1.to_out.0.weight",
    "transformer_blocks.0.attn1.to_q.weight", "transformer_blocks.0.attn2.to_k.weight", "nobody.reads.this.weight"};

// Empty for a layer without.
std::vector<std::vector<float>> moments_of(Statistics& statistics, const std::vector<std::string>& layers) {
  std::vector<std::vector<float>> all;
  for (const std::string& layer : layers) {
    std::shared_ptr<const InputMoments> inputs = statistics.of(layer);
    all.emplace_back();
    if (inputs) all.back().assign(inputs->moments().values<float>().begin(), inputs->moments().values<float>().end());
  }
  return all;
}

std::vector<std::vector<float>> moments(CalibrationOptions o) {
  std::string folder = o.folder;
  Calibration calibration(std::move(o));
  calibration.draw();
  calibration.begin({"transformer", folder + "/transformer", "diffusion_pytorch_model"}, kLayers);
  return moments_of(calibration, kLayers);
}

TEST_F(Calibrate, DependsNeitherOnThreadsNorOnMemory) {
  int64_t steps = 0, groups = 0;
  CalibrationOptions o = options();
  o.on_layers = [&](const std::string&, size_t) { ++groups; };
  std::vector<std::vector<float>> all = moments(o);
  EXPECT_EQ(groups, 1);
  EXPECT_EQ(all[0], all[2]);  // q and k read the same
  EXPECT_NE(all[0], all[1]);
  EXPECT_FALSE(all[3].empty());
  EXPECT_TRUE(all[4].empty());
  EXPECT_EQ(moments(options(3)), all);
  o.memory = 1;
  EXPECT_EQ(moments(o), all);
  EXPECT_GT(groups, 3);
  o.steps = 1;
  o.on_stage = [&](const StageReport& report) { steps += report.stage == Stage::denoise && report.done > 0; };
  EXPECT_NE(moments(o), all);
  EXPECT_EQ(steps, 4);  // all are taken, half of them count
}

// Captions of one batch are as long as the longest, and what stands behind the others must not count.
TEST_F(Calibrate, PaddingDoesNotCount) {
  CalibrationOptions both = options(), first = options(), second = options();
  first.pictures.pop_back();
  second.pictures.erase(second.pictures.begin());
  both.steps = first.steps = second.steps = 2;
  std::vector<float> a = moments(first)[3], b = moments(second)[3], all = moments(both)[3];
  // Means over tokens: the same w for all numbers makes all = w·a + (1 - w)·b.
  double top = 0, bottom = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    top += double{all[i] - b[i]} * (a[i] - b[i]);
    bottom += double{a[i] - b[i]} * (a[i] - b[i]);
  }
  double w = top / bottom;
  EXPECT_GT(w, 0.1);
  EXPECT_LT(w, 0.5);  // the first prompt is shorter
  for (size_t i = 0; i < all.size(); ++i)
    ASSERT_NEAR(all[i], w * a[i] + (1 - w) * b[i], 1e-3 * std::abs(all[i]) + 1e-4);
}

// A group of layers at a time, whatever is held at once.
TEST_F(Calibrate, WhatIsSavedIsWhatWasFound) {
  std::vector<std::vector<float>> all = moments(options());
  CalibrationOptions o = options();
  o.memory = 1;
  QuantizablePart part{"transformer", o.folder + "/transformer", "diffusion_pytorch_model"};
  Calibration calibration(o);
  calibration.draw();
  calibration.save(temp_.path("found"), {{part, kLayers}});
  SavedStatistics saved(temp_.path("found"));
  saved.begin(part, kLayers);
  EXPECT_EQ(moments_of(saved, kLayers), all);
  EXPECT_EQ(SafetensorsFile::open(temp_.path("found")).header().entries.size(), 3u);  // one for q and k
  message_of([&] { saved.of("transformer_blocks.0.attn2.to_v.weight"); }, ErrorKind::input);
  part.base = "another";
  saved.begin(part, kLayers);
  message_of([&] { saved.of(kLayers[0]); }, ErrorKind::input);

  std::map<std::string, std::string> metadata = SavedStatistics::mark();
  for (const Shape& shape : {Shape{16, 32}, Shape{24, 24}, Shape{}}) {
    write_safetensors(temp_.path("bad"), {{"x", Tensor::zeros(shape)}}, metadata);
    EXPECT_NE(message_of([&] { SavedStatistics s(temp_.path("bad")); }, ErrorKind::input).find("damaged"),
              std::string::npos);
  }
  metadata[SavedStatistics::name(part, kLayers[0])] = "x";
  write_safetensors(temp_.path("bad"), {{"x", Tensor::from({16}, std::vector<float>(16, NAN))}}, metadata);
  SavedStatistics bad(temp_.path("bad"));
  bad.begin(part, kLayers);
  EXPECT_NE(message_of([&] { bad.of(kLayers[0]); }, ErrorKind::model).find("cannot be calibrated"), std::string::npos);
}

TEST_F(Calibrate, Refusals) {
  CalibrationOptions o = options();
  o.pictures.resize(Calibration::kMostPictures + 1, o.pictures[0]);
  EXPECT_NE(message_of([&] { Calibration c(o); }, ErrorKind::usage).find("too many"), std::string::npos);
  o = options();
  o.pictures.clear();
  EXPECT_NE(message_of([&] { Calibration c(o); }, ErrorKind::usage).find("no prompt"), std::string::npos);
  o = options();
  o.folder = temp_.path("model/transformer");
  EXPECT_NE(message_of([&] { Calibration c(o); }, ErrorKind::usage).find("model_index.json"), std::string::npos);
  std::atomic<bool> stop = true;
  o = options();
  o.runtime.context.stop = &stop;
  message_of([&] { moments(o); }, ErrorKind::cancelled);
}

class CalibrateFilms : public testing::Test {
 protected:
  CalibrateFilms() : model_(temp_.path("model")) {}
  CalibrationOptions options(int threads = 1) const {
    CalibrationOptions o;
    o.folder = model_.path();
    o.runtime = make_runtime("cpu", "float32", threads, nullptr);
    for (const char* prompt : {"a star", "two stars on a red sofa"}) {
      o.films.emplace_back();
      o.films.back().prompt = prompt;
    }
    return o;
  }
  static std::vector<std::vector<float>> moments(CalibrationOptions o) {
    std::string folder = o.folder;
    Calibration calibration(std::move(o));
    calibration.draw();
    calibration.begin({"transformer", folder, "Open_Sora_v2"}, kFilmLayers);
    std::vector<std::vector<float>> all = moments_of(calibration, kFilmLayers), text;
    calibration.begin({"t5", folder + "/google/t5-v1_1-xxl", "model"}, kTextLayers);
    text = moments_of(calibration, kTextLayers);
    all.insert(all.end(), text.begin(), text.end());
    return all;
  }
  static inline const std::vector<std::string> kFilmLayers{
      "double_blocks.0.img_attn.k_proj.weight", "double_blocks.0.img_attn.q_proj.weight",
      "double_blocks.0.txt_mlp.2.weight",       "single_blocks.0.linear2.weight",
      "single_blocks.1.modulation.lin.weight",  "single_blocks.1.v_mlp.weight"};
  static inline const std::vector<std::string> kTextLayers{"encoder.block.0.layer.0.SelfAttention.v.weight",
                                                           "encoder.block.0.layer.1.DenseReluDense.wo.weight"};
  TempFolder temp_;
  FilmFolder model_;
};

TEST_F(CalibrateFilms, DependsNeitherOnThreadsNorOnMemory) {
  int64_t steps = 0, decoded = 0, groups = 0;
  CalibrationOptions o = options();
  o.on_layers = [&](const std::string&, size_t) { ++groups; };
  std::vector<std::vector<float>> all = moments(o);
  EXPECT_EQ(groups, 2);
  for (const std::vector<float>& layer : all) EXPECT_FALSE(layer.empty());
  EXPECT_EQ(all[0], all[1]);
  EXPECT_NE(all[0], all[2]);
  EXPECT_EQ(moments(options(3)), all);
  o.memory = 1;
  EXPECT_EQ(moments(o), all);
  EXPECT_GT(groups, 5);
  o.steps = 1;
  o.on_stage = [&](const StageReport& report) {
    steps += report.stage == Stage::denoise && report.done > 0;
    decoded += report.stage == Stage::decode;
  };
  std::vector<std::vector<float>> fewer = moments(o);
  EXPECT_NE(fewer[0], all[0]);
  EXPECT_EQ(fewer.back(), all.back());  // texts count once
  EXPECT_EQ(steps, 6);                  // all are taken, a third of them counts
  EXPECT_EQ(decoded, 0);
  o.films[0].guidance = o.films[1].guidance = 1;  // no runs without the prompt, which would count too
  EXPECT_NE(moments(o)[0], fewer[0]);
}

TEST_F(CalibrateFilms, AreShortWhereNothingElseIsSaid) {
  for (bool causal : {true, false}) {
    FilmFolder folder(temp_.path(causal ? "causal" : "not"), causal);
    folder.write("kinora.json", R"({"width": 32, "height": 32, "steps": 50, "max_sequence_length": 24})");
    CalibrationOptions o = options(2), said = o;
    o.folder = said.folder = folder.path();
    int64_t steps = 0;
    o.on_stage = [&](const StageReport& r) { steps = r.stage == Stage::denoise ? r.total : steps; };
    for (FilmRequest& film : said.films) {
      film.frames = causal ? 33 : 32;
      film.steps = 16;
    }
    Calibration silent(o), explicit_size(said);
    std::vector<std::vector<float>> found[2];
    for (Calibration* c : {&silent, &explicit_size}) {
      c->draw();
      c->begin({"transformer", o.folder, causal ? "Open_Sora_v2" : "Open_Sora_v2_Video_DC_AE"}, {kFilmLayers[3]});
      found[c == &silent] = moments_of(*c, {kFilmLayers[3]});
    }
    EXPECT_EQ(steps, 16);
    EXPECT_FALSE(found[0][0].empty());
    EXPECT_EQ(found[0], found[1]);
  }
}

// Layers of Flux's transformer have the same names, and are none of those that were looked at.
TEST_F(CalibrateFilms, AnotherTransformerBesideGetsNothing) {
  model_.add_flux();
  CalibrationOptions o = options();
  Calibration calibration(o);
  calibration.draw();
  std::vector<std::string> layer{"single_blocks.0.linear2.weight"};
  calibration.begin({"transformer", o.folder, "flux1-dev"}, layer);
  EXPECT_EQ(calibration.of(layer[0]), nullptr);
  calibration.begin({"transformer", o.folder, "Open_Sora_v2"}, layer);
  EXPECT_NE(calibration.of(layer[0]), nullptr);
}

TEST_F(CalibrateFilms, Refusals) {
  CalibrationOptions o = options();
  o.films.clear();
  EXPECT_NE(message_of([&] { Calibration c(o); }, ErrorKind::usage).find("no prompt"), std::string::npos);
  o = options();
  o.films[1].width = o.films[1].height = 33;
  EXPECT_NE(message_of([&] { Calibration c(o); }, ErrorKind::usage).find("film 2 to calibrate with: "),
            std::string::npos);
  o = options();
  o.films[0].first_picture = o.folder;
  EXPECT_NE(message_of([&] { Calibration c(o); }, ErrorKind::usage).find("first picture"), std::string::npos);
  std::atomic<bool> stop = true;
  o = options();
  o.runtime.context.stop = &stop;
  message_of([&] { moments(o); }, ErrorKind::cancelled);
}

}  // namespace
}  // namespace kinora::test
