// Weights that come and go: the plan, and runs on a device and on the host that must give the same bits.
#include "graph/streaming.h"

#include <atomic>
#include <cstring>
#include <fstream>
#include <thread>

#include "graph/host_device.h"
#include "io/safetensors.h"
#include "ops/matmul.h"
#include "ops/shaping.h"
#include "support.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

constexpr int64_t kWidth = 256, kLayers = 12;
constexpr size_t kMatrix = size_t{kWidth} * kWidth * 4;

std::vector<ReadParameter> matrices(int count, size_t bytes = 1000) {
  std::vector<ReadParameter> all;
  for (int i = 0; i < count; ++i) all.push_back({i, bytes, 100 + 10 * i, 105 + 10 * i});
  return all;
}

TEST(StreamPlan, HoldsWhatItMay) {
  EXPECT_TRUE(plan_stream(matrices(8), {.budget = 0}).chunks.empty());
  EXPECT_TRUE(plan_stream(matrices(8), {.budget = 8 * 1024}).chunks.empty());
  StreamOptions options{.budget = 5 * 1024, .chunk = 1024, .smallest = 10};
  StreamPlan plan = plan_stream(matrices(8), options);
  EXPECT_EQ(plan.chunks.size(), 4u);  // every other one stays; of the rest, one is there at a time
  EXPECT_EQ(plan.window, 1024u);
  EXPECT_EQ(plan.held, 5 * 1024u);
  options.budget = 1;
  plan = plan_stream(matrices(8), options);
  EXPECT_EQ(plan.chunks.size(), 8u);
  EXPECT_EQ(plan.held, 2 * 1024u);
  for (size_t k = 1; k < 8; ++k) {
    EXPECT_EQ(plan.chunks[k].begin, plan.chunks[k - 1].first);  // while the one before is at work
    EXPECT_NE(plan.chunks[k].offsets[0], plan.chunks[k - 1].offsets[0]);
  }
  options.chunk = 3 * 1024;
  EXPECT_EQ(plan_stream(matrices(8), options).chunks.size(), 3u);
  options.smallest = 2000;
  plan = plan_stream(matrices(8), options);
  EXPECT_TRUE(plan.chunks.empty());
  EXPECT_EQ(plan.held, 8 * 1024u);
}

TEST(StreamPlan, PartsNothingThatIsReadTogether) {
  std::vector<ReadParameter> all = matrices(4);
  all[1].first = all[2].first = all[0].first;
  all[3].last = 4000;  // read again much later
  StreamPlan plan = plan_stream(all, {.budget = 1, .chunk = 1024, .smallest = 10});
  ASSERT_EQ(plan.chunks.size(), 1u);
  EXPECT_EQ(plan.chunks[0].parameters.size(), 3u);
  EXPECT_EQ(plan.held, 4 * 1024u);
}

// A chain of layers; every other weight is joined of two halves, as passes join those that read the same.
Graph layers(const Weights& weights) {
  Graph g;
  Value x = g.input("x", {32, kWidth});
  for (int64_t i = 0; i < kLayers; ++i) {
    auto part = [&](const char* name) {
      std::string full = "layer" + std::to_string(i) + name;
      return g.parameter(full, *weights.find(full));
    };
    Value w = i % 2 ? concat({part(".top"), part(".bottom")}, 0) : part(".weight");
    x = linear(x, w, part(".bias"), "silu");
  }
  g.output("y", x);
  return g;
}

std::vector<std::pair<std::string, Tensor>> layer_tensors() {
  std::vector<std::pair<std::string, Tensor>> all;
  for (int64_t i = 0; i < kLayers; ++i) {
    auto add = [&](const std::string& name, Shape shape) {
      all.emplace_back("layer" + std::to_string(i) + name, random_tensor(shape, all.size() + 1, -0.1f, 0.1f));
    };
    if (i % 2) {
      add(".top", {kWidth / 2, kWidth});
      add(".bottom", {kWidth / 2, kWidth});
    } else {
      add(".weight", {kWidth, kWidth});
    }
    add(".bias", {kWidth});
  }
  return all;
}

class Streaming : public testing::Test {
 protected:
  Streaming() {
    write_safetensors(temp_.path("w.safetensors"), layer_tensors());
    weights_ = open_weights(temp_.path(), "w");
    x_ = random_tensor({32, kWidth}, 99);
    expected_ = run_graph(layers(weights_), {{"x", x_}}).at("y");
  }
  Tensor run(const Executable& exe) { return exe.run({{"x", x_}}).at("y"); }
  void expect_same(const Tensor& y) { EXPECT_EQ(std::memcmp(y.raw(), expected_.raw(), y.bytes()), 0); }

  TempFolder temp_;
  Weights weights_;
  Tensor x_, expected_;
};

TEST_F(Streaming, OnADeviceGivesTheSameBits) {
  for (HostDevice::When when : {HostDevice::When::sent, HostDevice::When::awaited}) {
    for (bool second : {true, false}) {
      for (size_t matrices : {3, 6, 9, 100}) {
        auto device = std::make_shared<HostDevice>(when, second);
        ExecutionContext c = context(2);
        c.device = device;
        c.stream = {.budget = matrices * kMatrix, .chunk = kMatrix, .smallest = 4096};
        {
          Executable exe = compile(layers(weights_), cpu::backend(), c);
          EXPECT_EQ(exe.stream().chunks.empty(), matrices == 100);
          for (int i = 0; i < 3; ++i) expect_same(run(exe));
          MemoryNeed need = memory_need(layers(weights_), cpu::backend(), c);
          EXPECT_EQ(need.least_weights <= 3 * kMatrix, true) << need.least_weights;
          EXPECT_LE(device->peak, std::min(matrices, size_t{kLayers} + 1) * kMatrix + need.streamed_working + 4096);
          if (second && matrices == 3) {
            EXPECT_GE(device->sent, 3 * (kLayers - 1) * kMatrix);
          }
        }
        c.device.reset();
        c.arena.reset();
        EXPECT_EQ(device->held, 0u);
      }
    }
  }
}

TEST_F(Streaming, TooSmallABudgetSaysSo) {
  ExecutionContext c = context(1);
  c.device = std::make_shared<HostDevice>();
  c.stream.budget = kMatrix;
  try {
    compile(layers(weights_), cpu::backend(), c);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::resource);
    EXPECT_NE(std::string(error.what()).find("MiB at a time"), std::string::npos) << error.what();
  }
}

TEST_F(Streaming, AStopEndsLoading) {
  std::atomic<bool> stop{true};
  for (auto device : {std::shared_ptr<HostDevice>(), std::make_shared<HostDevice>()}) {
    ExecutionContext c = context(1);
    c.device = device;
    c.stop = &stop;
    try {
      compile(layers(weights_), cpu::backend(), c);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::cancelled);
    }
    EXPECT_EQ(device ? device->held : 0, 0u);
  }
}

// Bytes of the weight file that lie in this process's memory.
size_t resident_bytes(const std::string& path) {
  std::ifstream maps("/proc/self/smaps");
  size_t total = 0;
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find('-') != std::string::npos && line.find(':') > line.find(' ')) inside = line.ends_with(path);
    if (inside && line.starts_with("Rss:")) total += std::stoull(line.substr(4)) * 1024;
  }
  return total;
}

// The most of them while `body` runs.
size_t peak_resident(const std::string& path, const std::function<void()>& body) {
  std::atomic<bool> done{false};
  size_t peak = 0;
  std::thread watcher([&] {
    while (!done) peak = std::max(peak, resident_bytes(path));
  });
  body();
  done = true;
  watcher.join();
  return peak;
}

TEST_F(Streaming, OnTheHostPagesAreGivenBack) {
  ExecutionContext c = context(2);
  c.stream = {.budget = 4 * kMatrix, .chunk = kMatrix, .smallest = 4096};
  Executable exe = compile(layers(weights_), cpu::backend(), c);
  std::string path = std::filesystem::canonical(temp_.path("w.safetensors"));
  weights_.release_pages();
  // The system maps some of a neighbour's pages with those that are read.
  constexpr size_t kSlack = 2 * kMatrix;
  size_t peak = peak_resident(path, [&] {
    for (int i = 0; i < 50; ++i) expect_same(run(exe));
  });
  EXPECT_LE(peak, 4 * kMatrix + kSlack);
  EXPECT_GT(peak, kMatrix);
  EXPECT_LE(resident_bytes(path), 3 * kMatrix + kSlack);                                   // what stays
  EXPECT_EQ(exe.profile({{"x", x_}}).size(), static_cast<size_t>(kLayers + kLayers / 2));  // with the joining

  c.stream.budget = 0;
  Executable plain = compile(layers(weights_), cpu::backend(), c);
  expect_same(run(plain));
  EXPECT_GE(resident_bytes(path), (kLayers - 1) * kMatrix);
  MemoryNeed need = memory_need(layers(weights_), cpu::backend(), c);
  EXPECT_GE(need.weights, kLayers * kMatrix);
  EXPECT_LT(need.least_weights, 4 * kMatrix);
  EXPECT_EQ(need.working, plain.arena_bytes());
}

}  // namespace
}  // namespace kinora::test
