#include "graph/profile.h"

#include <algorithm>
#include <cstdio>
#include <vector>

namespace kinora {
namespace {

struct Sum {
  std::string kind;
  double seconds = 0;
  int count = 0;
};

std::string kind_of(const Graph& g, const Node& node) {
  std::string kind(node.op->name);
  for (NodeId id : node.inputs) kind += " " + g.node(id).spec.shape.str();
  return kind + " -> " + node.spec.shape.str();
}

}  // namespace

std::string profile_table(const std::string& name, const Executable& executable,
                          const std::map<std::string, Tensor>& inputs) {
  std::map<std::string, Sum> sums;
  double total = 0;
  for (const Executable::StepTime& step : executable.profile(inputs)) {
    std::string kind = kind_of(executable.graph(), executable.graph().node(step.node));
    Sum& sum = sums[kind];
    sum.kind = std::move(kind);
    sum.seconds += step.seconds;
    ++sum.count;
    total += step.seconds;
  }
  std::vector<Sum> rows;
  for (auto& [kind, sum] : sums) rows.push_back(std::move(sum));
  std::stable_sort(rows.begin(), rows.end(), [](const Sum& a, const Sum& b) { return a.seconds > b.seconds; });
  char line[100];
  std::snprintf(line, sizeof line, ": %.3f ms in %zu kinds of steps\n", total * 1000, rows.size());
  std::string text = name + line;
  for (const Sum& sum : rows) {
    std::snprintf(line, sizeof line, "  %9.3f ms  %4.1f %%  %4d x %9.2f us  ", sum.seconds * 1000,
                  total > 0 ? 100 * sum.seconds / total : 0, sum.count, sum.seconds * 1e6 / sum.count);
    text += line + sum.kind + "\n";
  }
  return text;
}

}  // namespace kinora
