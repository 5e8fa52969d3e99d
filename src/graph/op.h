// What an op is: its name, its checks and shape rule, its derivative, and its meaning in simpler ops.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/dtype.h"
#include "core/shape.h"

namespace kinora {

class Value;

using Ints = std::vector<int64_t>;
using Attr = std::variant<int64_t, double, Ints, std::string>;

// Named constants of a node. Reading one that is absent, or with the wrong type, is an internal error.
class Attrs {
 public:
  Attrs() = default;
  Attrs(std::initializer_list<std::pair<std::string, Attr>> entries) : entries_(entries) {}

  void set(std::string name, Attr value);
  bool has(std::string_view name) const;
  int64_t integer(std::string_view name) const;
  double real(std::string_view name) const;
  const Ints& ints(std::string_view name) const;
  const std::string& text(std::string_view name) const;
  std::string str() const;  // "axis=1 eps=1e-06"
  bool operator==(const Attrs&) const = default;

 private:
  const Attr& at(std::string_view name) const;
  std::vector<std::pair<std::string, Attr>> entries_;
};

struct TensorSpec {
  Shape shape;
  DType dtype = DType::f32;
  bool operator==(const TensorSpec&) const = default;
  size_t bytes() const { return static_cast<size_t>(shape.numel()) * dtype_size(dtype); }
};

// One row of the op table. `infer` throws Error(internal) when the inputs do not fit; the caller adds where.
struct OpDef {
  std::string_view name;
  TensorSpec (*infer)(std::span<const TensorSpec> inputs, const Attrs& attrs) = nullptr;
  // Gradients of the inputs (an undefined Value where there is none), given the node's own value and its gradient.
  // Null: differentiate the decomposition.
  std::vector<Value> (*grad)(std::span<const Value> inputs, const Attrs& attrs, Value output, Value grad) = nullptr;
  // The same result from simpler ops. Null: the op is primitive and every backend must have it.
  Value (*decompose)(std::span<const Value> inputs, const Attrs& attrs) = nullptr;
};

}  // namespace kinora
