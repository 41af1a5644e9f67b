// body(0) .. body(count - 1), in any order, on several threads.
#pragma once

#include <cstdint>

namespace minimemo {

// Short: on our own few threads, which help only while they are awake: who calls never waits for a thread that has not
// begun, so that a busy machine costs speed but no stalls of a scheduler's tick. Measured on two busy cores, products of
// 0.05 to 0.5 ms took 2 to 8 ms on OpenMP, whose barrier waits for everyone.
// Long: on the OpenMP library of the caller, whose idle workers would else spin on the cores that ours want.
enum class Work { kShort, kLong };

// Of so many activation rows: few are a decoding step, whose pieces take microseconds.
inline Work work_of(int64_t rows) { return rows > 16 ? Work::kLong : Work::kShort; }

using Body = void (*)(void* context, int64_t index);

// `parallel`: GOMP_parallel of the OpenMP library for long work, or null to use our own threads for that too.
void start_threads(void* parallel);

void run_parallel(Work work, int threads, int64_t count, Body body, void* context);

template <typename Function>
void for_each(Work work, int threads, int64_t count, Function function) {
  run_parallel(
      work, threads, count, [](void* context, int64_t index) { (*static_cast<Function*>(context))(index); }, &function);
}

}  // namespace minimemo
