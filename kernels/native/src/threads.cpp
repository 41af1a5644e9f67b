// The threads behind threads.h.
#include "threads.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace minimemo {
namespace {

struct Job {
  std::atomic<int64_t> next{0};
  int64_t count;
  Body body;
  void* context;

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(context, i);
  }
};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One job at a time. `state`: number of the job, whether it is open, how many may help, how many do. A helper that joins
// counts itself in before it reads the job; who owns the job closes it and waits for those counted.
class Pool {
 public:
  // False if another thread's job is running.
  bool run(Job& job, int helpers) {
    const std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner) return false;
    for (; created_ < helpers; created_++) std::thread([this] { help(); }).detach();
    job_ = &job;
    const uint64_t number = (state_.load() >> 32) + 1;
    state_.store(number << 32 | kOpen | uint64_t(helpers) << 16);
    if (sleepers_.load() > 0) {
      { const std::lock_guard<std::mutex> lock(sleep_); }
      wake_.notify_all();
    }
    job.work();
    state_.fetch_and(~kOpen);
    for (int spins = 0; state_.load(std::memory_order_acquire) & kHelping; spins++)
      spins < 4096 ? pause() : void(sched_yield());
    return true;
  }

 private:
  static constexpr uint64_t kOpen = 1u << 31, kMay = 0x7fff0000, kHelping = 0xffff;
  static constexpr std::chrono::microseconds kSpin{200};  // longer than what lies between two products of a layer

  bool open(uint64_t seen) const {
    const uint64_t state = state_.load();
    return state >> 32 != seen && state & kOpen;
  }

  void help() {
    for (uint64_t seen = 0;;) {
      wait(seen);
      uint64_t state = state_.load();
      bool joined = false;
      while (!joined && state & kOpen && state >> 32 != seen && (state & kHelping) < (state & kMay) >> 16)
        joined = state_.compare_exchange_weak(state, state + 1);
      seen = state >> 32;
      if (!joined) continue;
      job_->work();
      state_.fetch_sub(1, std::memory_order_release);
    }
  }

  void wait(uint64_t seen) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 64; i++) {
        if (open(seen)) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < end);
    std::unique_lock<std::mutex> lock(sleep_);
    sleepers_++;
    wake_.wait(lock, [&] { return open(seen); });
    sleepers_--;
  }

  std::mutex owner_, sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> state_{0};
  std::atomic<int> sleepers_{0};
  Job* job_ = nullptr;
  int created_ = 0;
};

using Parallel = void (*)(void (*body)(void*), void* argument, unsigned threads, unsigned flags);
std::atomic<Parallel> openmp{nullptr};
std::atomic<pid_t> home{0};

Pool& pool() {
  static Pool* const everlasting = new Pool;  // its threads may outlive static objects
  return *everlasting;
}

}  // namespace

void start_threads(void* parallel) {
  openmp = reinterpret_cast<Parallel>(parallel);
  home = getpid();
}

void run_parallel(Work work, int threads, int64_t count, Body body, void* context) {
  Job job;
  job.count = count;
  job.body = body;
  job.context = context;
  const int used = int(std::min<int64_t>({threads, count, 256}));
  const Parallel entry = openmp;
  if (used <= 1 || getpid() != home)  // a forked child has none of its parent's threads
    job.work();
  else if (work == Work::kLong && entry)
    entry([](void* argument) { static_cast<Job*>(argument)->work(); }, &job, unsigned(used), 0);
  else if (!pool().run(job, used - 1))
    job.work();
}

}  // namespace minimemo
