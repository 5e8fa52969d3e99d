// Copies a graph node by node; the tool that passes are made of.
#pragma once

#include <functional>

#include "graph/graph.h"

namespace kinora {

// What becomes of one node: given the new graph's values of its inputs, returns its new value.
// An undefined result means: copy the node as it is.
using RewriteNode = std::function<Value(Graph& target, const Node& node, std::span<const Value> inputs)>;

// Rebuilds `graph`, leaving out nodes that no output needs (inputs are always kept).
Graph rewrite(const Graph& graph, const RewriteNode& node_rule);

// The same node in another graph, on values of that graph.
Value copy_node(Graph& target, const Node& node, std::span<const Value> inputs);

// The node that made a value, and what that node read as its input k: undefined when it has no such input.
const Node& node_of(const Value& value);
Value input_of(const Value& value, size_t k = 0);

// True for every node that an output depends on.
std::vector<bool> live_nodes(const Graph& graph);

// How many live nodes and outputs read each node.
std::vector<int> count_users(const Graph& graph);

// Replaces each node for which `replace` says so by its decomposition, and what that yields likewise.
Graph lower(const Graph& graph, const std::function<bool(const Graph&, const Node&)>& replace);

}  // namespace kinora
