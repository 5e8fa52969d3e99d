// The one table of op tests. Each case builds a node from inputs; the modes in op_table_test.cpp do the rest.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace kinora::test {

struct OpCase {
  std::string name;  // "<op>" or "<op>/<variant>"
  std::vector<Shape> shapes;
  std::function<Value(std::span<const Value>)> build;
  int64_t terms = 1;  // length of the longest sum behind one result
  // The expected value of a primitive op, in float64; empty for ops with a decomposition, which is their truth.
  std::function<std::vector<double>(std::span<const Tensor>)> truth = {};
  float low = -1, high = 1;  // range of the inputs
  bool gradient = true;
  std::vector<int64_t> ids = {};  // when set, the last input holds these i32 values
};

const std::vector<OpCase>& op_cases();
// Its parts that have files of their own.
void add_conv_cases(std::vector<OpCase>& cases);
void add_norm_attention_cases(std::vector<OpCase>& cases);
void add_quantized(std::vector<OpCase>& cases);       // those of quantized_cases.cpp
void add_quantized_rows(std::vector<OpCase>& cases);  // those of quantized_row_cases.cpp

// Whether it is an attention with a bias.
bool has_bias(const OpCase& c);

using Feed = std::map<std::string, Tensor>;

Feed make_inputs(const OpCase& c);  // "x0", "x1", …
std::vector<Value> add_inputs(Graph& graph, const OpCase& c, DType dtype);
Graph build(const OpCase& c, DType dtype = DType::f32);  // output "y", float32; computed in `dtype`

}  // namespace kinora::test
