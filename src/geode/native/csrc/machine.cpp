#include "machine.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "layout.h"
#include "work.h"

namespace geode {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Eight sums at a time, so that the reading is what takes the time.
uint64_t sum_of(const uint64_t* at, size_t n) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++) sums[j] += at[i + j];
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    return total;
}

}  // namespace

double read_bandwidth(Pool& pool) {
    constexpr size_t SIZE = size_t{1} << 29;
    Buffer memory(SIZE);
    volatile uint64_t sink = 0;
    double best = 0;
    pool.run([&](int thread) {
        const Range mine = share(SIZE, thread, pool.size(), 4096);
        std::memset(memory.bytes() + mine.begin, thread + 1, mine.end - mine.begin);
    });
    for (int round = 0; round < 4; round++) {
        const auto begin = Clock::now();
        pool.run([&](int thread) {
            const Range mine = share(SIZE, thread, pool.size(), 4096);
            sink = sink + sum_of(reinterpret_cast<const uint64_t*>(memory.bytes() + mine.begin),
                                 (mine.end - mine.begin) / sizeof(uint64_t));
        });
        best = std::max(best, SIZE / seconds_since(begin));
    }
    return best;
}

double peak_flops(Pool& pool, const Kernels& kernels, QType type) {
    constexpr size_t ROWS = 64, COLUMNS = 1024, PANELS = 4, ROUNDS = 200;
    const Matrix matrix = empty_matrix(type, PANELS * PANEL, COLUMNS);
    const auto product = kernels.matmul[static_cast<int>(type)];
    std::vector<ActBuffer> acts(pool.size());
    std::vector<Buffer> outs(pool.size());
    const std::vector<float> ones(COLUMNS, 1.0f);
    for (int thread = 0; thread < pool.size(); thread++) {
        acts[thread].resize(ROWS, COLUMNS, kernels.form[static_cast<int>(type)]);
        for (size_t row = 0; row < ROWS; row++) kernels.prepare(ones.data(), acts[thread].forms(), acts[thread].acts(), row);
        outs[thread] = Buffer(4 * ROWS * PANELS * PANEL);
    }
    double best = 0;
    for (int round = 0; round < 4; round++) {
        const auto begin = Clock::now();
        pool.run([&](int thread) {
            for (size_t i = 0; i < ROUNDS; i++)
                product(matrix.data.bytes(), PANELS, matrix.panel_bytes, acts[thread].acts(), outs[thread].floats(),
                        PANELS * PANEL, false);
        });
        best = std::max(best, 2.0 * ROWS * COLUMNS * PANELS * PANEL * ROUNDS * pool.size() / seconds_since(begin));
    }
    return best;
}

}  // namespace geode
