// Moments that a tiny Sprint model gives.
#include "diffusion/calibrate.h"

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

std::vector<std::vector<float>> moments(CalibrationOptions o) {
  Calibration calibration(std::move(o));
  calibration.draw();
  calibration.begin("transformer", kLayers);
  std::vector<std::vector<float>> all;
  for (const std::string& layer : kLayers) {
    std::shared_ptr<const InputMoments> inputs = calibration.of(layer);
    all.emplace_back();
    if (inputs) all.back().assign(inputs->moments().values<float>().begin(), inputs->moments().values<float>().end());
  }
  return all;
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

}  // namespace
}  // namespace kinora::test
