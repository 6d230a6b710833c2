// Threads that wait for work, spinning a while before they sleep, and a barrier among them.
#pragma once
#include <atomic>
#include <algorithm>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace geode {

class Pool {
public:
    explicit Pool(int threads);  // the caller's own is one of them
    ~Pool();

    int size() const { return threads_; }

    // work(thread) once on every thread; returns when all are done. The work must not throw.
    void run(const std::function<void(int)>& work);

    // Inside `run`: returns once every thread has called it.
    void barrier();

    // For i in [0, count), shared out in consecutive parts.
    void each(size_t count, const std::function<void(size_t)>& work);

private:
    struct Team;
    void restart_after_fork();

    int threads_;
    long process_;
    std::unique_ptr<Team> team_;
};

// The part of `count` things that thread `index` of `threads` does: [begin, end), in units of `unit`.
struct Range {
    size_t begin, end;
};

inline Range share(size_t count, int index, int threads, size_t unit = 1) {
    const size_t units = (count + unit - 1) / unit;
    const auto at = [&](size_t i) { return std::min(count, units * i / threads * unit); };
    return {at(index), at(index + 1)};
}

// Cores that this process may run on, counted once where two threads share one, and bounded by a container's quota.
int usable_cores();

}  // namespace geode
