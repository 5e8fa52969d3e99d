// Copies through buffers, with a device whose copies are made as late as they may be.
#include "graph/staging.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "support.h"

namespace kinora::test {
namespace {

// Makes a copy when it is waited for, or when the device is: a buffer that is filled again too early, or read too
// early, holds something else. Bytes of the "device" are the host's.
struct LateDevice {
  struct Buffer : Staging::Buffer {
    explicit Buffer(LateDevice& owner) : device(owner) { owner.buffers.push_back(this); }
    std::byte* memory() override { return bytes.data(); }
    void start(void* destination, const void* source, size_t size) override {
      if (++device.started == device.fails_at) fail(ErrorKind::resource, "no more");
      EXPECT_EQ(count, 0u) << "a second copy before the first was waited for";
      to = destination;
      from = source;
      count = size;
    }
    void finish() override {
      if (count) std::memcpy(to, from, count);
      count = 0;
    }

    LateDevice& device;
    std::vector<std::byte> bytes = std::vector<std::byte>(Staging::kPart, std::byte{0xee});
    void* to = nullptr;
    const void* from = nullptr;
    size_t count = 0;
  };

  void settle() {
    for (Buffer* buffer : buffers) buffer->finish();
  }

  std::vector<Buffer*> buffers;
  std::atomic<int> started{0};
  int fails_at = -1;
  Staging staging{[this] { return std::make_unique<Buffer>(*this); }};
};

std::vector<std::byte> some_bytes(size_t count, uint64_t seed) {
  std::vector<std::byte> bytes(count);
  uint64_t x = seed;
  for (std::byte& byte : bytes) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<std::byte>(x >> 56);
  }
  return bytes;
}

constexpr size_t kSizes[] = {1, 4099, Staging::kPart, Staging::kPart + 1, 7 * Staging::kPart + 5};

TEST(Staging, SendsWhateverTheHostBytesBecomeAfterwards) {
  for (int threads : {0, 1, 2, 3, 20}) {  // 0: no pool
    std::unique_ptr<ThreadPool> pool = threads ? std::make_unique<ThreadPool>(threads) : nullptr;
    LateDevice device;
    std::vector<std::vector<std::byte>> expected, got;
    for (size_t size : kSizes) {
      expected.push_back(some_bytes(size, size));
      got.emplace_back(size);
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      std::vector<std::byte> host = expected[i];
      device.staging.send(got[i].data(), host.data(), host.size(), pool.get());
      std::memset(host.data(), 0x55, host.size());
    }
    device.settle();
    EXPECT_TRUE(got == expected) << threads << " threads";
    size_t used = std::clamp<size_t>(static_cast<size_t>(threads), 1, 8);  // the last of kSizes has 8 parts
    EXPECT_EQ(device.buffers.size(), used * Staging::kDepth) << threads << " threads";
  }
}

TEST(Staging, HasReceivedEverythingWhenItReturns) {
  for (int threads : {0, 1, 2, 3, 20}) {
    std::unique_ptr<ThreadPool> pool = threads ? std::make_unique<ThreadPool>(threads) : nullptr;
    LateDevice device;
    for (size_t size : kSizes) {
      std::vector<std::byte> there = some_bytes(size, size), sent(size), got(size);
      device.staging.send(sent.data(), there.data(), size, pool.get());  // still in the buffers
      device.staging.receive(got.data(), there.data(), size, pool.get());
      EXPECT_TRUE(got == there) << size << " bytes, " << threads << " threads";
      device.settle();
      EXPECT_TRUE(sent == there) << size << " bytes, " << threads << " threads";
    }
  }
}

TEST(Staging, PassesOnWhatFailsAndGoesOnAfterwards) {
  ThreadPool pool(3);
  LateDevice device;
  std::vector<std::byte> host = some_bytes(9 * Staging::kPart, 1), there(host.size()), back(host.size());
  device.fails_at = 5;
  EXPECT_THROW(device.staging.send(there.data(), host.data(), host.size(), &pool), Error);
  device.fails_at = device.started + 4;
  EXPECT_THROW(device.staging.receive(back.data(), host.data(), host.size(), &pool), Error);
  device.staging.send(there.data(), host.data(), host.size(), &pool);
  device.settle();
  EXPECT_TRUE(there == host);
}

}  // namespace
}  // namespace kinora::test
