#include "training.h"

#include <mutex>

namespace geode {

namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel

// The parts of one piece of work, taken by whoever comes next: OpenMP may send fewer threads than it was asked for.
struct Parts {
    size_t rows, size;
    const std::function<void(size_t, Range)>& work;
    std::atomic<size_t> next{0};

    void take() {
        for (size_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) * size < rows;)
            work(part, {part * size, std::min(rows, (part + 1) * size)});
    }
};

// Threads of ours, kept for the next call; one piece of work at a time.
void on_own_threads(int threads, Parts& parts) {
    static std::mutex busy;
    static Pool* pool = nullptr;  // never given back: at exit its threads may be gone already
    const std::lock_guard lock(busy);
    if (!pool || pool->size() != threads) {
        delete pool;
        pool = new Pool(threads);
    }
    pool->run([&](int) { parts.take(); });
}

}  // namespace

void in_parts(const Crew& crew, size_t rows, size_t size, const std::function<void(size_t, Range)>& work) {
    Parts parts{rows, size, work};
    if (crew.threads < 2 || rows <= size) return parts.take();
    if (!crew.parallel) return on_own_threads(crew.threads, parts);
    const auto take = [](void* parts) { static_cast<Parts*>(parts)->take(); };
    reinterpret_cast<Parallel>(crew.parallel)(take, &parts, static_cast<unsigned>(crew.threads), 0);
}

const Trainer& trainer(const std::string& isa) {
    if (isa == "amx" || isa == "avx512") return avx512_trainer();
    if (isa.rfind("avx", 0) == 0) return avx2_trainer();
    return isa.rfind("neon", 0) == 0 ? neon_trainer() : portable_trainer();
}

}  // namespace geode
