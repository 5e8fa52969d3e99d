#include "core/threads.h"

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace kinora {

namespace {

// A graph's loops follow one another within microseconds, so threads look for the next one a while before they sleep.
constexpr int kLooks = 1000;

template <class Condition>
void look(const Condition& condition) {
  for (int i = 0; i < kLooks && !condition(); ++i) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::condition_variable wake, done;
  std::atomic<uint64_t> round{0};
  std::atomic<int> busy{0};
  std::atomic<bool> stop{false};
  const std::function<void(int64_t, int)>* body = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;

  void work(int worker) {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) (*body)(i, worker);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      next = count;
    }
  }

  void loop(int worker) {
    uint64_t seen = 0;
    auto called = [&] { return stop || round != seen; };
    for (;;) {
      look(called);
      std::unique_lock lock(mutex);
      wake.wait(lock, called);
      if (stop) return;
      seen = round;
      lock.unlock();
      work(worker);
      lock.lock();
      if (--busy == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  if (threads <= 0) threads = physical_cores();
  for (int i = 1; i < threads; ++i) state_->threads.emplace_back([this, i] { state_->loop(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

int ThreadPool::size() const { return static_cast<int>(state_->threads.size()) + 1; }

void ThreadPool::run(int64_t count, const std::function<void(int64_t, int)>& body) {
  if (count <= 0) return;
  State& s = *state_;
  if (s.threads.empty() || count == 1) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  {
    std::lock_guard lock(s.mutex);
    s.body = &body;
    s.count = count;
    s.next = 0;
    s.error = nullptr;
    s.busy = static_cast<int>(s.threads.size());
    ++s.round;
  }
  s.wake.notify_all();
  s.work(0);
  auto finished = [&] { return s.busy == 0; };
  look(finished);
  std::unique_lock lock(s.mutex);
  s.done.wait(lock, finished);
  if (s.error) std::rethrow_exception(s.error);
}

int physical_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return static_cast<int>(std::thread::hardware_concurrency());
  std::set<std::string> cores;
  int logical = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    ++logical;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    if (std::getline(file, siblings)) cores.insert(siblings);
  }
  return cores.empty() ? std::max(1, logical) : static_cast<int>(cores.size());
}

}  // namespace kinora
