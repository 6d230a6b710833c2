// The kernels of the head, written once over a vector type S. What they compute, and why it is right: head.h.
#pragma once
#include "planes.h"

namespace geode {
namespace {

constexpr int HEAD_TILE = 8;  // rows of an activation that one pass over a panel serves

// One line of 16 rows, or what the end of the rows leaves of it.
struct Line {
    size_t first, blocks;  // blocks of the matrix [first, first + blocks)
    Line(const Planes& m, size_t index)
        : first(LINE_BLOCKS * index), blocks(std::min(LINE_BLOCKS, m.blocks - LINE_BLOCKS * index)) {}
    const uint8_t* scales(const Planes& m, size_t panel) const { return m.scale + (panel * m.blocks + first) * 2 * R; }
    const uint8_t* low(const Planes& m, size_t panel) const { return m.low + (panel * m.blocks + first) * 16 * R; }
};

static inline size_t lines_of(const Planes& m) { return (m.blocks + LINE_BLOCKS - 1) / LINE_BLOCKS; }

// The bounds of one panel for T rows of activations, and estimates of the logits where `middle` is given.
template <class S, int T, bool MIDDLE>
void bounds_tile(const Planes& m, size_t panel, const HeadActs& x, size_t row, float* upper, size_t ldu, float* middle,
                 size_t ldm) {
    const uint8_t *scales = m.scale + panel * m.blocks * 2 * R, *high = m.high + panel * m.blocks * 16 * R;
    typename S::F sums[T], spreads[T];
    for (int t = 0; t < T; t++) sums[t] = spreads[t] = S::zero();
    for (size_t b = 0; b < m.blocks; b++) {
        for (int line = 0; line < 16 * R; line += 64) prefetch(high + b * 16 * R + AHEAD + line);
        prefetch(scales + b * 2 * R + AHEAD);
        Block<S> block;
        load_nibbles<S>(high + b * 16 * R, block);
        const auto scale = S::load_f16(scales + b * 2 * R);
        for (int t = 0; t < T; t++) {
            const ActBlock a(x.acts, row + t, b);
            const size_t at = (row + t) * m.blocks + b;
            const auto dot = S::to_floats(S::template dot<4, 8>(S::ints(x.raise[at]), block.w, a.q));
            const auto factor = S::mul(S::mul(scale, S::set(*a.scale)), S::set(16));
            sums[t] = S::fma(factor, dot, sums[t]);
            if constexpr (MIDDLE) spreads[t] = S::fma(scale, S::set(x.spread[at]), spreads[t]);
        }
    }
    for (int t = 0; t < T; t++) S::store(upper + t * ldu, sums[t]);
    for (int t = 0; t < T && MIDDLE; t++) S::store(middle + t * ldm, S::sub(sums[t], spreads[t]));
}

template <class S, bool MIDDLE>
void bounds_of_panel(const Planes& m, size_t panel, const HeadActs& x, float* upper, size_t ldu, float* middle,
                     size_t ldm) {
    constexpr int T = S::TILE < HEAD_TILE ? S::TILE : HEAD_TILE;
    in_tiles<T>(x.acts.rows, [&](auto t, size_t row) {
        bounds_tile<S, t, MIDDLE>(m, panel, x, row, upper + row * ldu, ldu, MIDDLE ? middle + row * ldm : nullptr, ldm);
    });
}

template <class S>
void head_bounds(const Planes& m, size_t first, size_t count, const HeadActs& x, float* upper, size_t ldu,
                 float* middle, size_t ldm) {
    for (size_t p = 0; p < count; p++)
        bounds_of_panel<S, true>(m, first + p, x, upper + p * R, ldu, middle + p * R, ldm);
}

// 16 bytes at `offset` of each of 16 rows -> the first four of all rows, the second four, ..., as panels have them.
template <class S>
void collect(const uint8_t* const* rows, size_t offset, uint8_t* to) {
    if constexpr (requires { S::collect(rows, offset, to); })
        S::collect(rows, offset, to);
    else
        for (size_t row = 0; row < R; row++)
            for (size_t g = 0; g < 4; g++) std::memcpy(to + 64 * g + 4 * row, rows[row] + offset + 4 * g, 4);
}

// The low bits of one line of 16 rows, as panels have them.
template <class S>
struct alignas(64) Turned {
    uint8_t bytes[LINE_BLOCKS][16 * R];

    Turned(const Line& line, const uint8_t* const* rows) {
        for (size_t i = 0; i < line.blocks; i++) collect<S>(rows, 16 * i, bytes[i]);
    }
    Turned(const Line& line, const uint8_t* low) {
        const uint8_t* rows[R];
        for (size_t row = 0; row < R; row++) rows[row] = low + row * 16 * line.blocks;
        for (size_t i = 0; i < line.blocks; i++) collect<S>(rows, 16 * i, bytes[i]);
    }
};

// Takes from T rows of y what the low bits of one line take away. `scales` (blocks of the line, 16): halves.
template <class S, int T>
void lower_tile(const Line& line, const uint8_t* scales, const Turned<S>& low, size_t blocks, const HeadActs& x,
                size_t row, float* y, size_t ldy) {
    typename S::F sums[T];
    for (size_t i = 0; i < line.blocks; i++) {
        Block<S> block;
        load_nibbles<S>(low.bytes[i], block);
        const auto scale = S::load_f16(scales + i * 2 * R);
        for (int t = 0; t < T; t++) {
            const ActBlock a(x.acts, row + t, line.first + i);
            const auto start = S::ints(x.lower[(row + t) * blocks + line.first + i]);
            const auto dot = S::to_floats(S::template dot<4, 8>(start, block.w, a.q));
            const auto term = S::mul(S::mul(scale, S::set(*a.scale)), dot);
            sums[t] = i ? S::add(sums[t], term) : term;
        }
    }
    for (int t = 0; t < T; t++) S::store(y + t * ldy, S::add(S::load(y + t * ldy), sums[t]));
}

template <class S>
void head_product(const Planes& m, size_t first, size_t count, const HeadActs& x, float* y, size_t ldy) {
    constexpr int T = S::TILE < HEAD_TILE ? S::TILE : HEAD_TILE;
    for (size_t panel = first; panel < first + count; panel++, y += R) {
        bounds_of_panel<S, false>(m, panel, x, y, ldy, nullptr, 0);
        for (size_t i = 0; i < lines_of(m); i++) {
            const Line line(m, i);
            for (size_t at = 0; at < 16 * R * line.blocks; at += 64) prefetch(line.low(m, panel) + at + AHEAD);
            const Turned<S> low(line, line.low(m, panel));
            in_tiles<T>(x.acts.rows, [&](auto t, size_t row) {
                lower_tile<S, t>(line, line.scales(m, panel), low, m.blocks, x, row, y + row * ldy, ldy);
            });
        }
    }
}

template <class S>
void head_panel(const Planes& m, size_t panel, uint8_t* out) {
    for (size_t i = 0; i < lines_of(m); i++) {
        const Line line(m, i);
        const Turned<S> turned(line, line.low(m, panel));
        for (size_t b = 0; b < line.blocks; b++, out += Q8_0<S>::BYTES) {
            Block<S> low, high;
            load_nibbles<S>(turned.bytes[b], low);
            load_nibbles<S>(m.high + (panel * m.blocks + line.first + b) * 16 * R, high);
            std::memcpy(out, line.scales(m, panel) + b * 2 * R, 2 * R);
            for (int g = 0; g < 8; g++)
                S::store_bytes(out + 2 * R + 64 * g, S::template join<4>(low.w[g], high.w[g]));
        }
    }
}

// ---- single rows ----

// One line of 16 rows from anywhere, side by side.
struct Scattered {
    const uint8_t* low[R];
    uint16_t scales[LINE_BLOCKS][R];
    float y[R];

    // `count` rows; the last stands in for those that lack.
    Scattered(const Planes& m, const Line& line, const uint32_t* rows, size_t count, const float* upper) {
        for (size_t i = 0; i < R; i++) {
            const size_t row = rows[std::min(i, count - 1)], panel = row / R, inside = row % R;
            const uint8_t* from = line.scales(m, panel) + 2 * inside;
            low[i] = line.low(m, panel) + inside * 16 * line.blocks;
            for (size_t b = 0; b < line.blocks; b++) std::memcpy(&scales[b][i], from + b * 2 * R, 2);
            y[i] = upper[row];
        }
    }
};

static inline void prefetch_line(const Planes& m, const Line& line, size_t row) {
    const uint8_t* scales = line.scales(m, row / R);
    prefetch(line.low(m, row / R) + row % R * 16 * line.blocks);
    prefetch(scales);
    prefetch(scales + 64);
}

// Takes one line of each of `count` rows from their bounds; keeps in `rows` those that still reach `floor`.
template <class S>
size_t lower_rows(const Planes& m, const Line& line, const HeadActs& x, size_t act, uint32_t* rows, size_t count,
                  float floor, float* upper) {
    constexpr size_t NEXT = 2 * R;
    size_t kept = 0;
    for (size_t i = 0; i < std::min(NEXT, count); i++) prefetch_line(m, line, rows[i]);
    for (size_t at = 0; at < count; at += R) {
        const size_t some = std::min<size_t>(R, count - at);
        for (size_t i = at + NEXT; i < std::min(at + NEXT + R, count); i++) prefetch_line(m, line, rows[i]);
        Scattered lines(m, line, rows + at, some, upper);
        const Turned<S> low(line, lines.low);
        lower_tile<S, 1>(line, reinterpret_cast<const uint8_t*>(lines.scales), low, m.blocks, x, act, lines.y, 0);
        for (size_t i = 0; i < some; i++) {
            const uint32_t row = rows[at + i];
            upper[row] = lines.y[i];
            rows[kept] = row;
            kept += !(lines.y[i] < floor);
        }
    }
    return kept;
}

// What lower_rows reads: the low bits of the rows, and the scales of their panels.
static inline size_t bytes_of(const Line& line, const uint32_t* rows, size_t count) {
    size_t panels = 0;
    for (size_t i = 0; i < count; i++) panels += i == 0 || rows[i] / R != rows[i - 1] / R;
    return line.blocks * (16 * count + 2 * R * panels);
}

template <class S>
size_t head_rows(const Planes& m, const HeadActs& x, size_t act, uint32_t* rows, size_t& count, float floor,
                 float* upper) {
    constexpr size_t STEP = 512;  // what is kept of so many rows is still in a cache when their next line comes
    size_t kept = 0, bytes = 0;
    for (size_t at = 0; at < count; at += STEP) {
        size_t some = std::min(STEP, count - at);
        for (size_t i = 0; i < lines_of(m) && some; i++) {
            const Line line(m, i);
            bytes += bytes_of(line, rows + at, some);
            some = lower_rows<S>(m, line, x, act, rows + at, some, floor, upper);
        }
        std::copy(rows + at, rows + at + some, rows + kept);
        kept += some;
    }
    count = kept;
    return bytes;
}

}  // namespace
}  // namespace geode
