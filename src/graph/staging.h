// Copies between the host's memory and a device's through buffers that the device reads and writes by itself. One
// thread brings in and copies some 5 GB a second of a mapped file, and a bus takes ten times that: so threads share the
// parts of a copy, and each fills (or empties) buffers of its own while those before them travel.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "core/threads.h"

namespace kinora {

class Staging {
 public:
  static constexpr size_t kPart = size_t{1} << 20;  // bytes of a buffer
  static constexpr size_t kDepth = 3;               // buffers of a thread
  static constexpr size_t kMostThreads = 16;

  // A buffer as the device has it; each is used by one thread at a time.
  class Buffer {
   public:
    virtual ~Buffer() = default;
    virtual std::byte* memory() = 0;
    // Enqueues a copy between memory() and the device, in either direction.
    virtual void start(void* to, const void* from, size_t bytes) = 0;
    virtual void finish() = 0;  // waits for the last copy, if there was one
  };

  explicit Staging(std::function<std::unique_ptr<Buffer>()> make) : make_(std::move(make)) {}

  // Returns when the host bytes have been read; the last parts still travel. `pool` null: this thread alone.
  void send(void* device, const void* host, size_t bytes, ThreadPool* pool);
  // Returns when the host bytes are there.
  void receive(void* host, const void* device, size_t bytes, ThreadPool* pool);

 private:
  struct Lane {
    std::unique_ptr<Buffer> buffers[kDepth];
    size_t turn = 0;
    Buffer& next();  // after its last copy
  };
  // Calls body(lane, the next part that nobody has) on as many threads as are of use.
  void share(size_t parts, ThreadPool* pool, const std::function<void(Lane&, std::atomic<size_t>&)>& body);

  std::function<std::unique_ptr<Buffer>()> make_;
  std::vector<Lane> lanes_;
};

}  // namespace kinora
