// Sampling of films against Open-Sora's own code: tests/golden/make_video_sampling.py made the file, with the models of
// make_mmdit.py.
#include <cstring>
#include <nlohmann/json.hpp>

#include "diffusion/video_prompt.h"
#include "diffusion/video_sampler.h"
#include "diffusion/video_times.h"
#include "models/mmdit_golden.h"

namespace kinora::test {
namespace {

using Json = nlohmann::json;

constexpr int64_t kSamplingTerms = 1 << 16;  // sums that follow one another through a whole trajectory

const SafetensorsFile& golden() {
  static SafetensorsFile file = SafetensorsFile::open(KINORA_SOURCE_DIR "/tests/golden/video_sampling.safetensors");
  return file;
}

const Json& facts() {
  static Json json = Json::parse(golden().header().metadata.at("config"));
  return json;
}

VideoDenoiser& model(const std::string& name) {
  static std::map<std::string, VideoDenoiser> models;
  auto found = models.find(name);
  return found != models.end() ? found->second : models.emplace(name, MmditGolden(name).model()).first->second;
}

// One of the golden's cases: what sample_film needs for it.
struct Case {
  VideoDenoiser* transformer;
  VideoShape shape;
  std::vector<Tensor> references;
  VideoSampleInputs in;
  VideoSampleOptions options;
  Tensor expected;

  explicit Case(const Json& j) {
    std::string name = j["name"];
    bool distilled = j["method"] == "distill";
    transformer = &model(distilled ? "mmdit_flux" : j["patch"] == 1 ? "mmdit_patch1" : "mmdit_opensora");
    const MmditConfig& config = transformer->config();
    VideoLayout layout{config.latent_channels(), 4, j["spatial"], j["patch"], j["patch"] == 2};
    shape = video_shape(layout, j["width"], j["height"], j["num_frames"]);
    for (int i = 0; i < j["references"]; ++i) {
      references.push_back(golden().tensor(name + ".reference" + std::to_string(i)).permuted({0, 2, 3, 4, 1}));
    }
    in.latents = pack_latents(video_noise(shape, j["seed"]), layout.patch);
    Tensor hidden = golden().tensor(name + ".hidden"), pooled = golden().tensor(name + ".pooled");
    in.prompt = {hidden.rows(0, 1), pooled.rows(0, 1)};
    if (!distilled) in.negative = {hidden.rows(1, 2), pooled.rows(1, 2)};
    if (!distilled) in.condition = video_condition(video_task(j["task"]), shape, references);
    in.positions = MmditPositions::grid(shape.latent_frames, shape.rows(), shape.columns());
    double shift = !j.value("shift", true)    ? 1
                   : j.contains("flow_shift") ? j["flow_shift"].get<double>()
                                              : flow_shift(shape.tokens_per_frame(), shape.latent_frames);
    options.levels = flow_levels(j["num_steps"], shift);
    GuidanceOptions guidance{j["guidance"], j["guidance_img"], j["text_osci"], j["image_osci"],
                             j["scale_temporal_osci"]};
    if (!distilled) {
      options.guidance = guidance_steps(guidance, j["num_steps"], shape.latent_frames, in.condition);
    }
    expected = golden().tensor(name + ".latents").permuted({0, 2, 3, 4, 1});
  }

  Tensor run(bool skip) {
    options.skip = skip;
    Tensor latents = unpack_latents(sample_film(*transformer, in, options).latents, shape);
    restore_pictures(latents, in.condition.task, references);
    return latents;
  }
};

Case case_named(const std::string& name) {
  for (const Json& j : facts()["cases"]) {
    if (j["name"] == name) return Case(j);
  }
  throw std::runtime_error("no case " + name);
}

TEST(VideoSampling, WholeTrajectoriesEqualTheReference) {
  for (const Json& j : facts()["cases"]) {
    Case c(j);
    expect_close(c.run(true), c.expected, DType::f32, kSamplingTerms, j["name"].get<std::string>());
  }
}

TEST(VideoSampling, SkippedRunsDoNotChangeABit) {
  for (const Json& j : facts()["cases"]) {
    Case c(j);
    Tensor skipped = c.run(true), whole = c.run(false);
    EXPECT_EQ(std::memcmp(skipped.raw(), whole.raw(), whole.bytes()), 0) << j["name"];
  }
}

// Counts, without a model.
class CountingModel : public VideoModel {
 public:
  const MmditConfig& config() const override { return config_; }
  Tensor predict(const VideoModelInputs& in) override {
    ++runs;
    return Tensor::zeros(in.latents.shape());
  }
  int64_t runs = 0;

 private:
  MmditConfig config_{.in_channels = 4, .patch_size = 2};
};

TEST(VideoSampling, RunsTheModelAsOftenAsItMust) {
  auto runs = [](const char* task, bool skip, const std::function<void(GuidanceOptions&)>& edit = {}) {
    CountingModel counting;
    VideoShape shape = video_shape({1, 4, 8, 2, true}, 16, 16, 9);
    std::vector<Tensor> references(std::string(task) == "t2v" ? 0 : 1, Tensor::zeros({1, 1, 2, 2, 1}));
    VideoSampleInputs in;
    in.latents = Tensor::zeros({1, 3, 4});
    in.condition = video_condition(video_task(task), shape, references);
    in.positions = MmditPositions::grid(3, 1, 1);
    GuidanceOptions guidance;
    if (edit) edit(guidance);
    VideoSampleOptions options;
    options.levels = flow_levels(50, 2);
    options.guidance = guidance_steps(guidance, 50, 3, in.condition);
    options.skip = skip;
    int64_t reported = 0, planned = 0;
    options.on_step = [&](const VideoStepReport& r) { reported = r.forwards, planned = r.planned; };
    EXPECT_EQ(sample_film(counting, in, options).forwards, counting.runs);
    EXPECT_EQ(reported, counting.runs);
    EXPECT_EQ(planned, counting.runs);
    return counting.runs;
  };
  EXPECT_EQ(runs("t2v", false), 150);
  EXPECT_EQ(runs("t2v", true), 80);
  EXPECT_EQ(runs("i2v_head", false), 150);
  EXPECT_EQ(runs("i2v_head", true), 110);
  EXPECT_EQ(runs("t2v", true, [](GuidanceOptions& g) { g.text_oscillation = false; }), 100);
  EXPECT_EQ(runs("i2v_tail", true, [](GuidanceOptions& g) { g.image = 1; }), 80);
  EXPECT_EQ(runs("i2v_tail", true, [](GuidanceOptions& g) { g.text = 1; }), 110);
  EXPECT_EQ(runs("t2v", true, [](GuidanceOptions& g) { g.text = 1; }), 50);
}

TEST(VideoSampling, ThreadsDoNotChangeABit) {
  MmditGolden file("mmdit_opensora");
  VideoDenoiser one = file.model(1), three = file.model(3);
  Case c = case_named("head");
  std::vector<Tensor> results;
  for (VideoDenoiser* m : {&one, &three}) {
    c.transformer = m;
    results.push_back(c.run(true));
  }
  EXPECT_EQ(std::memcmp(results[0].raw(), results[1].raw(), results[0].bytes()), 0);
}

// A film begun at step k with the latents of a whole run at step k ends alike; guidance may differ at each step.
TEST(VideoSampling, BeginsAtAnyStep) {
  Case c = case_named("head");
  c.options.guidance[6] = {2.5f, {1.5f}};
  Tensor half;
  c.options.on_step = [&](const VideoStepReport& r) {
    if (r.step == 5) half = r.latents.clone();
  };
  Tensor whole = c.run(true);
  c.in.latents = half;
  c.options.first_step = 5;
  c.options.on_step = {};
  Tensor rest = c.run(true);
  EXPECT_EQ(std::memcmp(whole.raw(), rest.raw(), whole.bytes()), 0);
  EXPECT_EQ(count_forwards(c.transformer->config(), c.in.condition, c.options), 7 * 3 + 1);
}

TEST(VideoSampling, FlowNoiseAndTheCleanFilmAreInverse) {
  Tensor clean = random_tensor({1, 4, 3}, 1), noise = random_tensor({1, 4, 3}, 2), velocity({1, 4, 3}, DType::f32);
  for (int64_t i = 0; i < 12; ++i) velocity.data<float>()[i] = noise.data<float>()[i] - clean.data<float>()[i];
  Tensor mixed = add_flow_noise(clean, noise, 0.3f);
  expect_close(VideoStepReport{1, 2, 1, 2, mixed, velocity, 0.3f}.clean(), clean, DType::f32, 4, "clean");
}

TEST(VideoSampling, NamesAPredictionThatIsNotFinite) {
  Case c = case_named("text_plain");
  c.in.prompt.hidden = c.in.prompt.hidden.clone();
  c.in.prompt.hidden.data<float>()[3] = INFINITY;
  try {
    c.run(true);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::model);
    EXPECT_NE(std::string(error.what()).find("not finite"), std::string::npos);
  }
}

TEST(VideoSchedule, EqualsTheReference) {
  int i = 0;
  for (const Json& j : facts()["schedules"]) {
    double shift = j["alpha"].is_null() ? flow_shift(j["tokens"], j["frames"]) : j["alpha"].get<double>();
    std::vector<float> levels = flow_levels(j["steps"], shift);
    expect_close(Tensor::from({static_cast<int64_t>(levels.size())}, levels),
                 golden().tensor("schedule" + std::to_string(i++)), DType::f32, 1, j.dump());
    EXPECT_EQ(levels.front(), 1);
    EXPECT_EQ(levels.back(), 0);
  }
  EXPECT_THROW(flow_levels(0, 1), Error);
  EXPECT_THROW(flow_levels(1001, 1), Error);
  EXPECT_THROW(flow_levels(5, 0), Error);
  EXPECT_THROW(flow_levels(5, NAN), Error);
  EXPECT_THROW(flow_levels(5, 1e300), Error);
}

TEST(VideoSchedule, FindsTheStepOfAStrength) {
  std::vector<float> levels = flow_levels(4, 1);  // 1 0.75 0.5 0.25 0
  EXPECT_EQ(first_step_at(levels, 1), 0u);
  EXPECT_EQ(first_step_at(levels, 0.75), 1u);
  EXPECT_EQ(first_step_at(levels, 0.6), 2u);
  EXPECT_EQ(first_step_at(levels, 0.01), 3u);
  EXPECT_THROW(first_step_at(levels, 0), Error);
  EXPECT_THROW(first_step_at(levels, 1.5), Error);
}

TEST(VideoGuidance, OscillatesAndRampsOverTimeAsTheReference) {
  VideoCondition none, picture{VideoTask::head, {}}, film{VideoTask::extend_head, {}};
  auto steps = guidance_steps({}, 50, 5, picture);
  EXPECT_EQ(steps[9].text, 7.5f);
  EXPECT_EQ(steps[10].text, 7.5f);
  EXPECT_EQ(steps[11].text, 1);
  EXPECT_EQ(steps[11].image, std::vector<float>{1});
  EXPECT_EQ(steps[0].image, (std::vector<float>{1, 1.5f, 2, 2.5f, 3}));
  ASSERT_EQ(steps[10].image.size(), 5u);
  EXPECT_NEAR(steps[10].image[4], 3 - 2 * 10 / 50.0, 1e-6);
  EXPECT_EQ(guidance_steps({}, 50, 5, none)[0].image, std::vector<float>{3});
  EXPECT_EQ(guidance_steps({}, 50, 5, film)[0].image, std::vector<float>{3});
  EXPECT_EQ(guidance_steps({.image = 0.5}, 50, 5, picture)[0].image, std::vector<float>{0.5f});
  EXPECT_THROW(guidance_steps({.text = INFINITY}, 50, 5, none), Error);
  EXPECT_THROW(guidance_steps({.image = 1e9}, 50, 5, none), Error);
}

TEST(VideoSize, NamesAndAspectsEqualTheReference) {
  for (const Json& j : facts()["sizes"]) {
    auto [width, height] = named_size(j[0], j[1], 16, j[2]);
    EXPECT_EQ(height, j[3]) << j;
    EXPECT_EQ(width, j[4]) << j;
  }
  // The training table leaves this one out.
  EXPECT_EQ(named_size("256px", "1.85:1", 16, true), (std::pair<int64_t, int64_t>{336, 192}));
  EXPECT_EQ(named_size("768px", "16:9", 32), (std::pair<int64_t, int64_t>{1024, 576}));
  for (const std::string& aspect : aspect_names()) EXPECT_NO_THROW(named_size("256px", aspect));
}

std::string usage_message(const std::function<void()>& body) { return message_of(body, ErrorKind::usage); }

TEST(VideoSize, RefusesWhatCannotBeMadeAndNamesWhatCan) {
  VideoLayout hunyuan, dc_ae{128, 4, 32, 1, false};
  VideoShape s = video_shape(hunyuan, 336, 192, 129);
  EXPECT_EQ(s.tokens_per_frame(), 252);
  EXPECT_EQ(s.tokens(), 8316);
  EXPECT_EQ(video_shape(dc_ae, 1024, 576, 128).tokens(), 18432);
  EXPECT_EQ(video_shape(hunyuan, 64, 64, 1).latent_frames, 1);
  auto says = [](const std::string& message, const std::string& words) {
    EXPECT_NE(message.find(words), std::string::npos) << message;
  };
  says(usage_message([&] { video_shape(hunyuan, 336, 192, 130); }), "129 or 133 (4·n + 1)");
  says(usage_message([&] { video_shape(hunyuan, 336, 192, 0); }), "the nearest: 1 ");
  says(usage_message([&] { video_shape(hunyuan, 336, 192, -5); }), "the nearest: 1 ");
  says(usage_message([&] { video_shape(hunyuan, 336, 192, INT64_MAX); }), "16381");
  says(usage_message([&] { video_shape(dc_ae, 1024, 576, 129); }), "128 or 132 (4·n)");
  says(usage_message([&] { video_shape(hunyuan, 340, 200, 129); }), "width 336 or 352, height 192 or 208");
  says(usage_message([&] { video_shape(hunyuan, 0, 192, 129); }), "width 16, height 192");
  says(usage_message([&] { video_shape(hunyuan, 192, 1 << 20, 129); }), "height 8192");
  says(usage_message([&] { named_size("large", "16:9"); }), "unknown resolution 'large'");
  says(usage_message([&] { named_size("99999px", "16:9"); }), "unknown resolution");
  says(usage_message([&] { named_size("256px", "7:5"); }), "16:9");
}

TEST(VideoPrompt, EndsAsTheReferenceEndsIt) {
  for (const Json& j : facts()["prompts"]) EXPECT_EQ(video_prompt(j[0]), j[1].get<std::string>());
  EXPECT_EQ(video_prompt("a", 12, 9), "a. 12 FPS. 9 motion score.");
  EXPECT_EQ(video_prompt("a", 24, {}), "a. 24 FPS.");
  EXPECT_THROW(video_prompt("a", 0), Error);
  EXPECT_THROW(video_prompt("a", 24, 16), Error);
  EXPECT_THROW(video_prompt("\xff"), Error);
}

TEST(VideoCondition, WantsAFilmLongerThanWhatIsGiven) {
  VideoLayout layout;
  auto least = [&](const char* task, int64_t frames) {
    VideoTaskInfo info = video_task(task);
    int64_t given = latent_frames_of(layout, reference_frames(info, layout));
    std::vector<Tensor> references(info.task == VideoTask::loop ? 2 : 1, Tensor::zeros({1, given, 2, 2, 16}));
    return usage_message([&] { video_condition(info, video_shape(layout, 16, 16, frames), references); });
  };
  EXPECT_NE(least("i2v_head", 1).find("5 frames or more"), std::string::npos) << least("i2v_head", 1);
  EXPECT_NE(least("i2v_loop", 5).find("9 frames or more"), std::string::npos);
  EXPECT_NE(least("v2v_tail", 33).find("37 frames or more"), std::string::npos);
  EXPECT_NE(least("v2v_head_easy", 65).find("69 frames or more"), std::string::npos);
  EXPECT_EQ(least("v2v_head_easy", 69), "no error");
  EXPECT_NE(usage_message([] { video_task("v2v_head_half"); }).find("v2v_head_easy"), std::string::npos);
  EXPECT_EQ(reference_frames(video_task("v2v_head"), {128, 4, 32, 1, false}), 32);
}

TEST(VideoNoise, EqualsTheReferenceToTheBit) {
  Tensor noise = video_noise(video_shape({}, 32, 48, 9), 42).permuted({0, 4, 1, 2, 3}),
         expected = golden().tensor("noise");
  ASSERT_EQ(noise.shape(), expected.shape());
  EXPECT_EQ(std::memcmp(noise.raw(), expected.raw(), noise.bytes()), 0);
}

TEST(VideoLatents, AreResizedAsInPyTorch) {
  Tensor small = golden().tensor("resize.small").permuted({0, 2, 3, 4, 1});
  for (const char* name : {"up", "odd", "down"}) {
    Tensor expected = golden().tensor(std::string("resize.") + name).permuted({0, 2, 3, 4, 1});
    expect_close(resize_latents(small, expected.shape()[2], expected.shape()[3]), expected, DType::f32, 4, name);
  }
}

TEST(VideoNoise, OfTheCudaGeneratorIsRoundedToBfloat16) {
  Tensor noise = video_noise(video_shape({}, 16, 16, 5), 3, NoiseKind::cuda);
  Tensor again = noise.to(DType::bf16).to(DType::f32);
  EXPECT_EQ(std::memcmp(noise.raw(), again.raw(), noise.bytes()), 0);
}

TEST(VideoTimes, UniformOnesAreWholePositions) {
  VideoShape s = video_shape({}, 16, 16, 17);
  EXPECT_EQ(uniform_positions(s), (std::vector<double>{0, 1, 2, 3, 4}));
  std::vector<double> times = frame_times(s, uniform_positions(s));
  ASSERT_EQ(times.size(), 17u);
  for (size_t i = 0; i < times.size(); ++i) EXPECT_EQ(times[i], static_cast<double>(i));
  VideoShape even = video_shape({128, 4, 32, 1, false}, 32, 32, 8);
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(frame_times(even, {0, 1})[i], static_cast<double>(i));
}

TEST(VideoTimes, AdaptiveOnesAreDenserAroundKeyFrames) {
  VideoShape s = video_shape({}, 16, 16, 129);
  std::vector<double> p = adaptive_positions(s, {64});
  ASSERT_EQ(p.size(), 33u);
  EXPECT_EQ(p.front(), 0);
  EXPECT_EQ(p.back(), 32);
  EXPECT_NEAR(p[16], 16, 1e-9);
  for (size_t i = 1; i < p.size(); ++i) EXPECT_GT(p[i], p[i - 1]);
  double near = p[17] - p[16], far = p[1] - p[0];
  EXPECT_NEAR(far / near, 4, 0.1);
  EXPECT_THROW(adaptive_positions(s, {}), Error);
  EXPECT_THROW(adaptive_positions(s, {129}), Error);
  EXPECT_EQ(adaptive_positions(video_shape({}, 16, 16, 1), {0}), std::vector<double>{0});
}

TEST(VideoTimes, AreReadFromAList) {
  VideoShape s = video_shape({}, 16, 16, 9);
  EXPECT_EQ(parse_positions(s, "# times\n0\n 2 # close\r\n\n10.5", "list"), (std::vector<double>{0, 0.5, 2.625}));
  EXPECT_EQ(parse_positions(s, "0\n1\n2\n3\n4\n5\n6\n7\n80\n", "list"), (std::vector<double>{0, 1, 20}));
  auto message = [&](const char* text) {
    return message_of([&] { parse_positions(s, text, "list"); }, ErrorKind::input);
  };
  EXPECT_NE(message("0\n1\n1\n").find("list, line 3"), std::string::npos);
  EXPECT_NE(message("0\nx\n").find("line 2"), std::string::npos);
  EXPECT_NE(message("nan\n").find("line 1"), std::string::npos);
  EXPECT_NE(message("0\n1\n").find("it has 2"), std::string::npos);
  EXPECT_NE(message("0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n").find("it has more"), std::string::npos);
  EXPECT_NE(message("").find("it has 0"), std::string::npos);
}

// One compiled graph serves any positions, and they matter.
TEST(VideoTimes, ChangeTheFilm) {
  Case c = case_named("text_plain");
  Tensor even = c.run(true);
  c.in.positions.frames = adaptive_positions(c.shape, {0});
  Tensor uneven = c.run(true);
  EXPECT_NE(std::memcmp(even.raw(), uneven.raw(), even.bytes()), 0);
}

TEST(VideoSize, OfDrafts) {
  using Size = std::pair<int64_t, int64_t>;
  EXPECT_EQ(draft_size("256px", 1024, 576, 16), (Size{336, 192}));  // as the table has it
  EXPECT_EQ(draft_size("256px", 576, 1024, 16), (Size{192, 336}));
  EXPECT_EQ(draft_size("256px", 768, 768, 16), (Size{256, 256}));
  EXPECT_EQ(draft_size("144p", 1024, 576, 16), (Size{256, 144}));
  EXPECT_EQ(draft_size("160x96", 1024, 576, 16), (Size{160, 96}));
  EXPECT_EQ(draft_size("16px", 8192, 16, 16), (Size{368, 16}));
}

}  // namespace
}  // namespace kinora::test
