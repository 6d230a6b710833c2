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

}  // namespace

double read_bandwidth(Pool& pool, const Kernels& kernels) {
    constexpr size_t COLUMNS = 4096, PANELS = 2048;  // float32 panels of 256 KB: half a gigabyte
    Matrix matrix = empty_matrix(QType::F32, PANELS * PANEL, COLUMNS);
    ActBuffer acts;
    acts.resize(1, COLUMNS, FLOATS);
    Buffer out(4 * PANELS * PANEL);
    pool.run([&](int thread) {
        const Range mine = share(PANELS, thread, pool.size());
        std::memset(matrix.data.bytes() + mine.begin * matrix.panel_bytes, 0, (mine.end - mine.begin) * matrix.panel_bytes);
    });
    double best = 0;
    for (int round = 0; round < 5; round++) {
        const auto begin = Clock::now();
        pool.run([&](int thread) {
            const Range mine = share(PANELS, thread, pool.size());
            kernels.matmul[static_cast<int>(QType::F32)](matrix.panel(mine.begin), mine.end - mine.begin,
                                                         matrix.panel_bytes, acts.acts(),
                                                         out.floats() + mine.begin * PANEL, PANELS * PANEL, false);
        });
        best = std::max(best, matrix.data.size() / seconds_since(begin));
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
