// A pool of threads that share the iterations of a loop. Which thread runs an iteration is not determined;
// kernels must make each iteration's result independent of that, so that any number of threads gives the same bits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace kinora {

class ThreadPool {
 public:
  // `threads` includes the calling thread; 0 means one per physical core that this process may use.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;
  // Calls body(i, worker) for every i in [0, count); worker < size() names the thread, for scratch memory.
  // Returns when all are done. The first exception of a body is rethrown here. Not re-entrant.
  void run(int64_t count, const std::function<void(int64_t index, int worker)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

int physical_cores();

}  // namespace kinora
