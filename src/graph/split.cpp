#include "graph/split.h"

#include <algorithm>

#include "graph/rewrite.h"

namespace kinora {
namespace {

enum class Kind { fixed, held, varying };

class Splitter {
 public:
  Splitter(const Graph& graph, const std::set<std::string>& varying) : graph_(graph) {
    for (const Node& node : graph.nodes()) {
      Kind kind = Kind::fixed;
      if (node.op == &kInputOp) kind = varying.count(node.name) ? Kind::varying : Kind::held;
      for (NodeId input : node.inputs) kind = std::max(kind, kinds_[size_t(input)]);
      kinds_.push_back(kind);
    }
  }

  Split run() {
    find_cut();
    Split result;
    std::vector<Value> before = copy(
        result.before, [&](size_t i) { return wanted_before_[i]; }, false);
    for (size_t i = 0; i < cut_.size(); ++i) {
      if (!cut_[i].empty()) result.before.output(cut_[i], before[i]);
    }
    std::vector<Value> after = copy(
        result.after, [&](size_t i) { return wanted_after_[i]; }, true);
    for (const auto& [name, id] : graph_.outputs()) result.after.output(name, after[size_t(id)]);
    return result;
  }

 private:
  const Node& node(size_t i) const { return graph_.nodes()[i]; }

  // Whether node i, of the first half, is made again in the second rather than handed over.
  bool is_view(size_t i) const {
    const std::string_view op = node(i).op->name;
    return (op == "reshape" || op == "slice" || op == "part") && kinds_[size_t(node(i).inputs[0])] == Kind::held;
  }

  // From the outputs back: what the second half computes, what is handed over, and what that needs.
  void find_cut() {
    size_t count = graph_.nodes().size();
    cut_.resize(count);
    wanted_before_.assign(count, false);
    wanted_after_.assign(count, false);
    for (const auto& [name, id] : graph_.outputs()) wanted_after_[size_t(id)] = true;
    int handed = 0;
    for (size_t i = count; i-- > 0;) {
      bool cut = wanted_after_[i] && kinds_[i] == Kind::held && !is_leaf(node(i)) && !is_view(i);
      if (cut) {
        cut_[i] = "held." + std::to_string(handed++);
        wanted_before_[i] = true;
      }
      for (NodeId input : node(i).inputs) {
        if (wanted_before_[i]) wanted_before_[size_t(input)] = true;
        if (wanted_after_[i] && !cut) wanted_after_[size_t(input)] = true;
      }
    }
  }

  template <class Wanted>
  std::vector<Value> copy(Graph& target, const Wanted& wanted, bool second) const {
    std::vector<Value> values(graph_.nodes().size());
    for (size_t i = 0; i < values.size(); ++i) {
      if (!wanted(i)) continue;
      std::vector<Value> inputs;
      if (second && !cut_[i].empty()) {
        values[i] = target.input(cut_[i], node(i).spec.shape, node(i).spec.dtype);
        continue;
      }
      for (NodeId input : node(i).inputs) inputs.push_back(values[size_t(input)]);
      target.scope = is_leaf(node(i)) ? "" : node(i).name;
      values[i] = copy_node(target, node(i), inputs);
    }
    target.scope.clear();
    return values;
  }

  const Graph& graph_;
  std::vector<Kind> kinds_;
  std::vector<std::string> cut_;  // per node: the name under which it is handed over
  std::vector<bool> wanted_before_, wanted_after_;
};

}  // namespace

Split split(const Graph& graph, const std::set<std::string>& varying) { return Splitter(graph, varying).run(); }

}  // namespace kinora
