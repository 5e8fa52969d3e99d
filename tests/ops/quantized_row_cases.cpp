// Op cases of what gives quantized rows at once, each read by a product, and of products in shapes that fit no tile.
#include "ops/fuse_quantized.h"
#include "ops/op_cases.h"
#include "ops/quantize.h"
#include "ops/shaping.h"
#include "support.h"

namespace kinora::test {
namespace {

using In = std::span<const Value>;

constexpr QuantFormat kFormats[] = {QuantFormat::int8, QuantFormat::fp8};

QuantizedWeight random_weight(Graph& graph, QuantFormat format, int64_t n, int64_t k) {
  QuantizedMatrix q = quantize_matrix(random_tensor({n, k}, 72), format);
  QuantizedWeight weight{format, graph.parameter("codes", q.codes), graph.parameter("scale", q.scale), {}};
  if (q.scale_2.defined()) weight.scale_2 = graph.parameter("scale_2", q.scale_2);
  return weight;
}

// Rows [m·(k + 4)] times a weight [24, k].
Value product(Value rows, QuantFormat format, const Ints& leading, int64_t k, DType dtype) {
  return quantized_linear_rows(rows, random_weight(rows.graph(), format, 24, k), {}, leading, dtype);
}

std::string named(const char* op, QuantFormat format, const std::string& what = "") {
  return std::string(op) + "/" + std::string(quant_format_name(format)) + what;
}

void add_fused(std::vector<OpCase>& c, QuantFormat f) {
  c.push_back({.name = named("layer_norm_rows", f),
               .shapes = {{2, 5, 80}, {2, 1, 80}, {2, 1, 80}},
               .build =
                   [f](In x) {
                     return product(layer_norm_rows(x[0], f, 1e-6, x[1], x[2]), f, {2, 5}, 80, x[0].dtype());
                   },
               .terms = 80,
               .gradient = false});
  c.push_back({.name = named("layer_norm_rows", f, "_plain"),
               .shapes = {{3, 272}},
               .build = [f](In x) { return product(layer_norm_rows(x[0], f, 1e-6), f, {3}, 272, x[0].dtype()); },
               .terms = 272,
               .gradient = false});
  c.push_back(
      {.name = named("rms_norm_rows", f),
       .shapes = {{5, 48}, {48}},
       .build = [f](In x) { return product(rms_norm_rows(x[0], f, x[1], {}, 1e-5, 1), f, {5}, 48, x[0].dtype()); },
       .terms = 48,
       .gradient = false});
  c.push_back({.name = named("act_mul_rows", f),  // of slices, as merged products give them
               .shapes = {{2, 3, 96}},
               .build =
                   [f](In x) {
                     Value a = slice(x[0], 2, 0, 48), b = slice(x[0], 2, 48, 96);
                     return product(act_mul_rows(a, b, f, "gelu_tanh"), f, {2, 3}, 48, x[0].dtype());
                   },
               .terms = 48,
               .low = -3,
               .high = 3,
               .gradient = false});
  for (bool norm : {false, true}) {  // an odd number of rows, so that a gap comes before the codes
    c.push_back({.name = named("mul_add_rows", f, norm ? "_norm" : ""),
                 .shapes = {{3, 1, 48}, {3, 5, 48}, {3, 5, 48}, {3, 1, 48}, {3, 1, 48}},
                 .build =
                     [f, norm](In x) {
                       std::optional<RowNorm> how;
                       if (norm) how = RowNorm{1e-6, x[3], x[4]};
                       Value both = mul_add_rows(x[0], x[1], x[2], f, how);
                       Value sum = sum_of(both, x[2].shape(), x[2].dtype());
                       Value y = product(rows_of(both, x[2].shape(), x[2].dtype()), f, {3, 5}, 48, x[2].dtype());
                       return concat({y, sum}, 2);
                     },
                 .terms = 48,
                 .gradient = false});
  }
  c.push_back({.name = named("act_mul_rows", f, "_silu"),
               .shapes = {{7, 16}, {7, 16}},
               .build = [f](In x) { return product(act_mul_rows(x[0], x[1], f, "silu"), f, {7}, 16, x[0].dtype()); },
               .terms = 16,
               .low = -3,
               .high = 3,
               .gradient = false});
}

struct ProductCase {
  const char* what;
  int64_t m, n, k;
  const char* act;
};

void add_shapes(std::vector<OpCase>& c, QuantFormat f) {
  const ProductCase cases[] = {{"_one_row", 1, 16, 16, "none"},
                               {"_odd", 67, 35, 48, "relu"},
                               {"_narrow", 130, 8, 32, "gelu_tanh"},
                               {"_long", 33, 72, 1040, "none"},
                               {"_tiles", 300, 136, 80, "silu"}};
  for (const ProductCase& p : cases) {
    c.push_back({.name = named("quantized_linear", f, p.what),
                 .shapes = {{p.m, p.k}, {p.n}, {p.m, p.n}},
                 .build =
                     [f, p](In x) {
                       return quantized_linear(x[0], random_weight(x[0].graph(), f, p.n, p.k),
                                               {.bias = x[1], .act = p.act, .residual = x[2]});
                     },
                 .terms = p.k,
                 .gradient = false});
  }
}

// Of one row for each item, as modulations are.
void add_items(std::vector<OpCase>& c, QuantFormat f) {
  const ProductCase cases[] = {
      {"_item", 1, 33, 16, "silu"}, {"_items", 7, 50, 528, "none"}, {"_long_items", 3, 17, 3072, "gelu_tanh"}};
  for (const ProductCase& p : cases) {
    c.push_back({.name = named("quantized_linear", f, p.what),
                 .shapes = {{p.m, 1, p.k}, {p.n}},
                 .build =
                     [f, p](In x) {
                       return quantized_linear(x[0], random_weight(x[0].graph(), f, p.n, p.k),
                                               {.bias = x[1], .act = p.act});
                     },
                 .terms = p.k,
                 .gradient = false});
  }
}

// Columns of one wide result, which begin at multiples of 256 bytes and may be written where they belong.
void add_columns(std::vector<OpCase>& c, QuantFormat f) {
  for (int64_t tokens : {1, 9}) {
    c.push_back({.name = named("quantized_linear", f, tokens == 1 ? "_columns_of_items" : "_columns"),
                 .shapes = {{3, tokens, 48}, {256}, {3, 1, 40}, {3, tokens, 40}},
                 .build =
                     [f](In x) {
                       Value a = quantized_linear(x[0], random_weight(x[0].graph(), f, 256, 48),
                                                  {.bias = x[1], .act = "gelu_tanh"});
                       Value b = quantized_linear(x[0], random_weight(x[0].graph(), f, 40, 48),
                                                  {.gate = x[2], .residual = x[3]});
                       return concat({a, b}, 2);
                     },
                 .terms = 48,
                 .gradient = false});
  }
}

}  // namespace

void add_quantized_rows(std::vector<OpCase>& c) {
  for (QuantFormat f : kFormats) add_fused(c, f);
  for (QuantFormat f : {QuantFormat::int8, QuantFormat::int8_weights, QuantFormat::fp8, QuantFormat::fp8_weights,
                        QuantFormat::nvfp4, QuantFormat::nvfp4_both}) {
    add_shapes(c, f);
    add_items(c, f);
    add_columns(c, f);
  }
}

}  // namespace kinora::test
