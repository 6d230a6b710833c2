#include "pool.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <string>

#ifdef _WIN32
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace geode {

namespace {

constexpr int SPINS = 20000;  // about 200 µs: longer than sampling takes, shorter than anybody minds
constexpr int POLITE = 2000;  // after so many the core is offered to others between looks

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
    asm volatile("yield");
#endif
}

// Until `value` is no longer `seen`.
void wait_for_change(std::atomic<uint32_t>& value, uint32_t seen) {
    for (int i = 0; i < SPINS; i++) {
        if (value.load(std::memory_order_acquire) != seen) return;
        if (i > POLITE && i % 64 == 0)
            std::this_thread::yield();
        else
            pause();
    }
    while (value.load(std::memory_order_acquire) == seen) value.wait(seen, std::memory_order_acquire);
}

}  // namespace

struct Pool::Team {
    alignas(64) std::atomic<uint32_t> round{0};    // a change starts work
    alignas(64) std::atomic<uint32_t> arrived{0};  // at the barrier
    alignas(64) std::atomic<uint32_t> passed{0};   // barriers
    std::atomic<bool> stop{false};
    const std::function<void(int)>* work = nullptr;
    int threads;
    std::vector<std::thread> others;

    explicit Team(int count) : threads(count) {
        for (int i = 1; i < count; i++) others.emplace_back([this, i] { serve(i); });
    }

    void serve(int index) {
        for (uint32_t seen = 0;; seen++) {
            wait_for_change(round, seen);
            if (stop.load(std::memory_order_acquire)) return;
            (*work)(index);
            barrier();
        }
    }

    void barrier() {
        const uint32_t seen = passed.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 != static_cast<uint32_t>(threads))
            return wait_for_change(passed, seen);
        arrived.store(0, std::memory_order_relaxed);
        passed.store(seen + 1, std::memory_order_release);
        passed.notify_all();
    }

    void start() {
        round.fetch_add(1, std::memory_order_release);
        round.notify_all();
    }
};

Pool::Pool(int threads) : threads_(threads), process_(getpid()), team_(std::make_unique<Team>(threads)) {}

Pool::~Pool() {
    if (process_ != getpid()) {  // a fork has none of the threads that the object remembers
        (void)team_.release();
        return;
    }
    team_->stop.store(true, std::memory_order_release);
    team_->start();
    for (auto& thread : team_->others) thread.join();
}

void Pool::restart_after_fork() {
    if (process_ == getpid()) return;
    (void)team_.release();  // its threads live in the parent only
    team_ = std::make_unique<Team>(threads_);
    process_ = getpid();
}

void Pool::run(const std::function<void(int)>& work) {
    restart_after_fork();
    team_->work = &work;
    if (threads_ > 1) team_->start();
    work(0);
    if (threads_ > 1) team_->barrier();
}

void Pool::barrier() {
    if (threads_ > 1) team_->barrier();
}

void Pool::each(size_t count, const std::function<void(size_t)>& work) {
    run([&](int index) {
        const Range mine = share(count, index, threads_);
        for (size_t i = mine.begin; i < mine.end; i++) work(i);
    });
}

namespace {

#ifdef __linux__

std::string first_word(const std::string& path) {
    std::ifstream file(path);
    std::string word;
    file >> word;
    return word;
}

// Logical processors that share a core are listed together; the list names the core.
int physical(const cpu_set_t& allowed) {
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        const std::string place = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
        const std::string siblings = first_word(place + "thread_siblings_list");
        cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    return static_cast<int>(cores.size());
}

// Whole CPUs by the container's quota, version 2 or 1; 0 where there is none.
int quota() {
    std::ifstream file("/sys/fs/cgroup/cpu.max");
    std::string most;
    double period = 0;
    if (!(file >> most >> period)) {
        most = first_word("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
        const std::string text = first_word("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
        period = text.empty() ? 0 : std::atof(text.c_str());
    }
    const double limit = most.empty() || most == "max" ? 0 : std::atof(most.c_str());
    return limit > 0 && period > 0 ? std::max(1, static_cast<int>(limit / period + 0.5)) : 0;
}

#endif

}  // namespace

int usable_cores() {
    int cores = std::max(1u, std::thread::hardware_concurrency());
#ifdef __linux__
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) cores = std::max(1, physical(allowed));
    if (const int limit = quota()) cores = std::min(cores, limit);
#endif
    return cores;
}

}  // namespace geode
