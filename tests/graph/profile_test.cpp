#include "graph/profile.h"

#include <sstream>

#include "cpu/backend.h"
#include "ops/shaping.h"
#include "support.h"

namespace kinora::test {
namespace {

TEST(Profile, ListsEveryKindOfStepWithItsCountAndShapes) {
  Graph g;
  Value x = g.input("x", {4, 6}), y = g.input("y", {4, 2});
  g.output("a", concat({x, y}, 1));
  g.output("b", concat({y, x}, 1));
  g.output("c", concat({x, x}, 0));
  g.output("d", concat({slice(x, 0, 0, 2), x}, 0));
  Executable exe = compile(g, cpu::backend(), {});
  std::map<std::string, Tensor> feed{{"x", Tensor::zeros({4, 6})}, {"y", Tensor::zeros({4, 2})}};
  std::istringstream text(profile_table("parts", exe, feed));
  std::string line, name;
  std::getline(text, line);
  size_t kinds = 0;
  EXPECT_EQ(std::sscanf(line.c_str(), "parts: %*f ms in %zu kinds of steps", &kinds), 1) << line;
  size_t lines = 0, steps = 0;
  double percent = 0, last = 100;
  std::string all;
  for (; std::getline(text, line); ++lines, all += line + "\n") {
    double share = 0;
    size_t count = 0;
    ASSERT_EQ(std::sscanf(line.c_str(), " %*f ms %lf %% %zu x", &share, &count), 2) << line;
    EXPECT_LE(share, last);
    last = share + 0.051;  // printed with one digit
    percent += share;
    steps += count;
  }
  EXPECT_EQ(lines, kinds);
  EXPECT_EQ(steps, exe.profile(feed).size());
  EXPECT_NEAR(percent, 100, 0.06 * static_cast<double>(lines));
  EXPECT_NE(all.find("concat [4, 6] [4, 2] -> [4, 8]"), std::string::npos) << all;
  EXPECT_NE(all.find("concat [4, 6] [4, 6] -> [8, 6]"), std::string::npos) << all;
}

}  // namespace
}  // namespace kinora::test
