// A device whose memory is the host's, to test what is done with devices where there is none.
#pragma once

#include <cstring>
#include <vector>

#include "graph/device.h"

namespace kinora::test {

class HostDevice : public Device {
 public:
  // Copies of the second queue are made when they are sent, or only when the first queue waits for them: whoever
  // forgets to wait then reads what was there before.
  enum class When { sent, awaited };
  explicit HostDevice(When when = When::sent, bool second_queue = true) : copies_(*this, when), second_(second_queue) {}

  size_t held = 0, peak = 0, sent = 0;  // bytes

  std::shared_ptr<void> allocate(size_t bytes) override {
    if (limit_ && held + bytes > limit_) fail(ErrorKind::resource, "over the limit");
    auto memory = allocate_bytes(bytes + 256);
    std::memset(memory.get(), 0xff, bytes);  // NaN
    held += bytes;
    peak = std::max(peak, held);
    void* start = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.get()) + 255) / 256 * 256);
    std::memset(start, 0xff, bytes);
    return {start, [this, memory, bytes](void*) { held -= bytes; }};
  }
  void upload(void* device, const void* host, size_t bytes, ThreadPool*) override { copy(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes, ThreadPool*) override { copy(host, device, bytes); }
  void copy(void* to, const void* from, size_t bytes) override {
    if (bytes) std::memcpy(to, from, bytes);
  }
  void download_after(Mark&, void* host, const void* device, size_t bytes) override { copy(host, device, bytes); }
  void clear(void* memory, size_t bytes) override {
    if (bytes) std::memset(memory, 0, bytes);
  }
  void wait() override {}
  std::unique_ptr<Mark> mark() override { return std::make_unique<HostMark>(0); }
  void after(Mark& mark) override { copies_.settle(dynamic_cast<HostMark&>(mark).copies); }
  Copies* copies() override { return second_ ? &copies_ : nullptr; }
  void limit(size_t bytes) override { limit_ = bytes; }
  void* queue() override { return nullptr; }
  std::unique_ptr<Recording> record(const std::function<void()>&) override { return nullptr; }

 private:
  struct HostMark : Mark {
    explicit HostMark(size_t count) : copies(count) {}
    void wait() override {}
    double seconds_after(Mark&) override { return 0; }
    size_t copies;  // of the second queue that lie before it
  };

  class HostCopies : public Copies {
   public:
    HostCopies(HostDevice& device, When when) : device_(device), when_(when) {}
    void after(Mark&) override {}
    void send(void* to, const void* from, size_t bytes, ThreadPool&) override {
      pending_.push_back({to, from, bytes});
      device_.sent += bytes;
      if (when_ == When::sent) settle(pending_.size());
    }
    std::unique_ptr<Mark> mark() override { return std::make_unique<HostMark>(pending_.size()); }
    void settle(size_t count) {
      for (; done_ < count; ++done_) std::memcpy(pending_[done_].to, pending_[done_].from, pending_[done_].bytes);
    }

   private:
    struct Pending {
      void* to;
      const void* from;
      size_t bytes;
    };
    HostDevice& device_;
    When when_;
    std::vector<Pending> pending_;
    size_t done_ = 0;
  };

  HostCopies copies_;
  bool second_;
  size_t limit_ = 0;
};

}  // namespace kinora::test
