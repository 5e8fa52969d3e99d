// The choice among cuBLASLt's plans: remembered, and without effect on results.
#include "cuda/tuned.h"

#include <cstring>
#include <fstream>

#include "core/rng.h"
#include "cuda_support.h"

namespace kinora::test {
namespace {

TEST(CudaTuned, PlansGiveTheFavouritesBitsAndAreRemembered) {
  KINORA_NEEDS_GPU();
  using cuda::Product;
  using cuda::ProductShape;
  std::shared_ptr<Device> device = cuda::open_device();
  ProductShape s{.m = 1030, .n = 1544, .k = 1536, .transpose_b = true, .bias = true, .dtype = DType::bf16};
  int suggestion = cuda::tuned_suggestion(s);
  EXPECT_EQ(cuda::tuned_suggestion(s), suggestion);
  if (!cuda::tuning_file().empty()) {
    std::ifstream file(cuda::tuning_file());
    std::string all{std::istreambuf_iterator<char>(file), {}};
    EXPECT_NE(all.find("1030 1544 1536"), std::string::npos);
  }
  CpuGenerator generator(3);
  auto random = [&](const Shape& shape) { return device->to_device(generator.randn(shape).to(DType::bf16)); };
  Tensor x = random({s.m, s.k}), w = random({s.n, s.k}), bias = random({s.n});
  auto workspace = device->allocate(size_t{32} << 20);
  auto run = [&](const Product& product) {
    auto out = device->allocate(static_cast<size_t>(s.m * s.n) * 2);
    product.run(x.raw(), w.raw(), bias.raw(), nullptr, out.get(), workspace.get(),
                static_cast<cudaStream_t>(device->queue()));
    return device->to_host(Tensor({s.m, s.n}, DType::bf16, out, out.get(), Place::device));
  };
  Tensor favourite = run(Product(s, 0)), tuned = run(Product(s));
  EXPECT_EQ(std::memcmp(favourite.raw(), tuned.raw(), favourite.bytes()), 0) << "suggestion " << suggestion;
}

}  // namespace
}  // namespace kinora::test
