// The threads of a step, and how they share and await its parts.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

namespace tritext {

// The threads of a step. A barrier of our own spins, whatever OMP_WAIT_POLICY says: sleeping costs more than the work
// between two barriers. It yields after a while, for when another process holds the other core.
class Team {
   public:
    void start(int size) { size_ = size, arrived_ = 0, claimed_ = 0; }
    int size() const { return size_; }

    // The next number that nobody has claimed since the last barrier.
    int claim() { return claimed_.fetch_add(1, std::memory_order_relaxed); }

    void barrier() {
        if (size_ == 1) {
            claimed_.store(0, std::memory_order_relaxed);
            return;
        }
        const int phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            claimed_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
            if (spins < 2000) _mm_pause();
            else sched_yield();
        }
    }

   private:
    int size_ = 1;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> claimed_{0};
    alignas(64) std::atomic<int> phase_{0};
};

struct Range {
    int begin, end;
};

// The part of 0..count that belongs to one of the threads.
inline Range share(int count, int thread, int threads) {
    return {int(int64_t(count) * thread / threads), int(int64_t(count) * (thread + 1) / threads)};
}

}  // namespace tritext
