// The searches of geode/lattice.py: the same names, and the same bits.
//
// Sums go over a run's numbers in order, as the definition's do. What is done at once is LANES runs, one in each
// lane of a vector. To be compiled with -ffp-contract=off, for a fused multiply-add rounds once where the
// definition rounds twice. Everything has internal linkage: each file that includes this keeps what was compiled
// for its own CPU.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(_MSC_VER)
#define INLINE __forceinline
#else
#define INLINE inline __attribute__((always_inline))
#endif

namespace geode {
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

#if defined(__GNUC__)
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t Mask __attribute__((vector_size(4 * LANES)));

INLINE V choose(Mask mask, V a, V b) { return mask ? a : b; }
INLINE V magnitude(V x) { return reinterpret_cast<V>(reinterpret_cast<Mask>(x) & 0x7fffffff); }
#else
struct Mask {
    bool at[LANES];
};

struct V {
    float at[LANES];
    float& operator[](int i) { return at[i]; }
};

template <class Out, class Each>
INLINE Out lanewise(Each&& each) {
    Out out;
    for (int i = 0; i < LANES; i++) out.at[i] = each(i);
    return out;
}

INLINE V spread(float x) { return lanewise<V>([&](int) { return x; }); }

#define GEODE_OPERATOR(OUT, SIGN)                                                                          \
    INLINE OUT operator SIGN(V a, V b) { return lanewise<OUT>([&](int i) { return a.at[i] SIGN b.at[i]; }); } \
    INLINE OUT operator SIGN(float a, V b) { return spread(a) SIGN b; }                                    \
    INLINE OUT operator SIGN(V a, float b) { return a SIGN spread(b); }
GEODE_OPERATOR(V, +)
GEODE_OPERATOR(V, -)
GEODE_OPERATOR(V, *)
GEODE_OPERATOR(V, /)
GEODE_OPERATOR(Mask, <)
GEODE_OPERATOR(Mask, >)
GEODE_OPERATOR(Mask, <=)
GEODE_OPERATOR(Mask, !=)
#undef GEODE_OPERATOR
INLINE V operator-(V a) { return lanewise<V>([&](int i) { return -a.at[i]; }); }
INLINE Mask operator&(Mask a, Mask b) { return lanewise<Mask>([&](int i) { return a.at[i] && b.at[i]; }); }
INLINE Mask operator|(Mask a, Mask b) { return lanewise<Mask>([&](int i) { return a.at[i] || b.at[i]; }); }
INLINE V& operator+=(V& a, V b) { return a = a + b; }
INLINE V choose(Mask mask, V a, V b) {
    return lanewise<V>([&](int i) { return mask.at[i] ? a.at[i] : b.at[i]; });
}
INLINE V magnitude(V x) { return lanewise<V>([&](int i) { return std::fabs(x.at[i]); }); }
#endif

INLINE V all(float x) { return V{} + x; }

INLINE V load(const float* x) {
    V v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

INLINE void store(V v, float* x) { std::memcpy(x, &v, sizeof v); }

constexpr float ROUNDER = 0x1.8p23f;  // float32 holds no fractions here: adding and subtracting it rounds
constexpr float FLAT = 1e-15f;        // runs with no number above this are zeros

// The nearest whole number, halves to even, in low … high; a NaN stays one.
INLINE V nearest(V x, float low, float high) {
    x = choose(x < low, all(low), x);
    x = choose(x > high, all(high), x);
    return x + ROUNDER - ROUNDER;
}

INLINE float nearest(float x, float low, float high) {
    x = x < low ? low : x;
    x = x > high ? high : x;
    return x + ROUNDER - ROUNDER;
}

// One run in each lane.
template <int Run>
struct Runs {
    V at[Run];
    INLINE V& operator[](int i) { return at[i]; }
    INLINE const V& operator[](int i) const { return at[i]; }
};

// LANES runs that follow each other.
template <int Run>
INLINE Runs<Run> in_lanes(const float* x) {
    float turned[Run][LANES];
    for (int n = 0; n < LANES; n++)
        for (int i = 0; i < Run; i++) turned[i][n] = x[n * Run + i];
    Runs<Run> runs;
    for (int i = 0; i < Run; i++) runs[i] = load(turned[i]);
    return runs;
}

template <int Run>
INLINE void from_lanes(const Runs<Run>& runs, float* x) {
    float turned[Run][LANES];
    for (int i = 0; i < Run; i++) store(runs[i], turned[i]);
    for (int n = 0; n < LANES; n++)
        for (int i = 0; i < Run; i++) x[n * Run + i] = turned[i][n];
}

template <int Run>
INLINE V total(const Runs<Run>& runs) {
    V sum = runs[0];
    for (int i = 1; i < Run; i++) sum += runs[i];
    return sum;
}

// ---- x ≈ scale·q - low, q in 0 … top (`affine`)

struct Tries {
    float first, by;
    int count;
};

// Errors are squared, or taken as they are (`Absolute`).
template <int Run, bool Absolute>
struct Affine {
    Runs<Run> x, weights, q;
    float top;
    V high, sum_w, sum_x;
    V sum_q, sum_qq, sum_xq;
    V scale, low, best;  // the best line so far and its loss
    V start, width;      // what its q were rounded by
    V tried, lowest;

    INLINE void measure() {
        high = x[0], low = choose(x[0] < 0.0f, x[0], all(0));
        sum_w = weights[0], sum_x = weights[0] * x[0];
        for (int i = 1; i < Run; i++) {
            high = choose(x[i] > high, x[i], high);
            low = choose(x[i] < low, x[i], low);
            sum_w += weights[i];
            sum_x += weights[i] * x[i];
        }
    }

    // q for a span of `steps`, and the sums that a line through them needs.
    INLINE void round(float steps) {
        const V inverse = steps / (high - low), bottom = low;
        V wq_sum = all(0), wqq_sum = wq_sum, wqx_sum = wq_sum;  // in registers
        for (int i = 0; i < Run; i++) {
            const V r = nearest(inverse * (x[i] - bottom), 0, top), wq = weights[i] * r;
            q[i] = r;
            wq_sum += wq;
            wqq_sum += wq * r;
            wqx_sum += wq * x[i];
        }
        sum_q = wq_sum, sum_qq = wqq_sum, sum_xq = wqx_sum;
    }

    INLINE V loss() const {
        V sum = all(0);
        const V slope = tried, bottom = lowest;
        for (int i = 0; i < Run; i++) {
            const V off = slope * q[i] + bottom - x[i];
            sum += weights[i] * (Absolute ? magnitude(off) : off * off);
        }
        return sum;
    }

    // Least squares; what is not determined gets no finite line, and so is never better.
    INLINE void fit() {
        const V determinant = sum_w * sum_qq - sum_q * sum_q;
        const V slope = (sum_w * sum_xq - sum_x * sum_q) / determinant;
        const V bottom = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
        lowest = choose(bottom > 0.0f, all(0), bottom);
        tried = choose(bottom > 0.0f, sum_xq / sum_qq, slope);
        tried = choose(determinant > 0.0f, tried, all(NAN));
    }

    INLINE void keep(V found, float steps) {
        const Mask better = found < best;
        best = choose(better, found, best);
        width = choose(better, all(steps), width);
        start = choose(better, low, start);
        scale = choose(better, tried, scale);
        low = choose(better, lowest, low);
    }

    // Leaves the scales in `scale` and the lows, turned positive, in `low`.
    INLINE void search(int highest, Tries tries) {
        top = static_cast<float>(highest);
        measure();
        const Mask spread = high > low;
        tried = scale = 1.0f / (top / (high - low)), lowest = start = low, width = all(top);
        round(top);
        best = loss();
        for (int step = 0; step < tries.count; step++) {
            const float steps = tries.first + tries.by * static_cast<float>(step) + top;
            round(steps);
            fit();
            keep(loss(), steps);
        }
        scale = choose(spread, scale, all(0));
        low = -low;
    }

    // The q that `scale` and `low` were fitted to, 0 where the scale is.
    INLINE const Runs<Run>& fitted() {
        const V inverse = width / (high - start);
        for (int i = 0; i < Run; i++)
            q[i] = choose(scale != 0.0f, nearest(inverse * (x[i] - start), 0, top), all(0));
        return q;
    }
};

// ---- x ≈ scale·q, q in -top … top - 1 (`peak`, `symmetric`, `descent`)

template <int Run>
INLINE V peak(const Runs<Run>& x) {
    V largest = x[0];
    for (int i = 1; i < Run; i++) largest = choose(magnitude(x[i]) > magnitude(largest), x[i], largest);
    return largest;
}

// The scale that was fitted; -largest / top where the sums were beyond float32; 0 for zeros.
INLINE V usable(V scale, V largest, float top) {
    const V fitted = choose(magnitude(scale) <= FLT_MAX, scale, largest / -top);
    return choose(magnitude(largest) < FLAT, all(0), fitted);
}

// q is filled where it is asked for.
template <int Run>
INLINE V symmetric(const Runs<Run>& x, const Runs<Run>& weights, int highest, Runs<Run>* q = nullptr) {
    const float top = static_cast<float>(highest);
    const V largest = peak(x);
    Runs<Run> wx;
    for (int i = 0; i < Run; i++) wx[i] = weights[i] * x[i];
    V scale = all(0), best = all(0), width = all(top);
    for (int step : {0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9}) {
        const float tried = top + 0.1f * static_cast<float>(step);
        const V inverse = -tried / largest;
        V sum_xq = all(0), sum_qq = all(0);
        for (int i = 0; i < Run; i++) {
            const V r = nearest(inverse * x[i], -top, top - 1);
            sum_xq += wx[i] * r;
            sum_qq += weights[i] * r * r;
        }
        const Mask gain = sum_xq * sum_xq > best * sum_qq;
        const Mask better = step ? (sum_qq > 0.0f) & gain : sum_qq > 0.0f;
        const V fitted = sum_xq / sum_qq;
        scale = choose(better, fitted, scale);
        best = choose(better, fitted * sum_xq, best);
        width = choose(better, all(tried), width);
    }
    const V inverse = -width / largest;
    for (int i = 0; q && i < Run; i++)
        (*q)[i] = choose(magnitude(largest) < FLAT, all(-top), nearest(inverse * x[i], -top, top - 1));
    return usable(scale, largest, top);
}

// The q of each lane and their sums, as they move, one after the other, to their best places.
template <int Run>
struct Moved {
    Runs<Run> q;
    V sum_xq, sum_qq;

    INLINE Moved(const Runs<Run>& x, const Runs<Run>& weights, V inverse, float low, float high) {
        sum_xq = sum_qq = all(0);
        for (int i = 0; i < Run; i++) {
            const V r = nearest(inverse * x[i], low, high);
            q[i] = r;
            sum_xq += weights[i] * x[i] * r;
            sum_qq += weights[i] * r * r;
        }
        for (int sweep = 0; sweep < 5; sweep++)
            for (int i = 0; i < Run; i++) move(i, x[i], weights[i], low, high);
    }

    // To where it is best, given all others, where that makes the fit better.
    INLINE void move(int i, V x, V weight, float low, float high) {
        const V wx = weight * x;
        const V others_x = sum_xq - wx * q[i], others_q = sum_qq - weight * q[i] * q[i];
        const V moved = nearest(x * others_q / others_x, low, high);
        const V now_x = others_x + wx * moved, now_q = others_q + weight * moved * moved;
        const Mask gain = now_x * now_x * sum_qq > sum_xq * sum_xq * now_q;
        const Mask better = (others_x > 0.0f) & (moved != q[i]) & (now_q > 0.0f) & gain;
        q[i] = choose(better, moved, q[i]);
        sum_xq = choose(better, now_x, sum_xq);
        sum_qq = choose(better, now_q, sum_qq);
    }
};

template <int Run>
INLINE V descent(const Runs<Run>& x, const Runs<Run>& weights, int highest) {
    const float top = static_cast<float>(highest);
    const V largest = peak(x);
    const Moved<Run> moved(x, weights, -top / largest, -top, top - 1);
    return usable(moved.sum_xq / moved.sum_qq, largest, top);
}

// ---- x ≈ scale·q for numbers ≥ 0, q in 0 … top (`from_zero`)

template <int Run>
INLINE V loss_from_zero(const Runs<Run>& x, const Runs<Run>& weights, V largest, float width, float top) {
    const V inverse = width / largest, scale = 1.0f / inverse;
    V sum = all(0);
    for (int i = 0; i < Run; i++) {
        const V off = x[i] - scale * nearest(inverse * x[i], 0, top);
        sum += weights[i] * off * off;
    }
    return sum;
}

template <int Run>
INLINE V from_zero(const Runs<Run>& x, const Runs<Run>& weights, int highest, Runs<Run>* q) {
    const float top = static_cast<float>(highest);
    V largest = all(0);
    for (int i = 0; i < Run; i++) largest = choose(x[i] > largest, x[i], largest);
    V width = all(top), best = loss_from_zero(x, weights, largest, top, top);
    for (int step : {-4, -3, -2, -1, 1, 2, 3, 4}) {
        const float tried = 0.1f * static_cast<float>(step) + top;
        const V found = loss_from_zero(x, weights, largest, tried, top);
        width = choose(found < best, all(tried), width);
        best = choose(found < best, found, best);
    }
    const Moved<Run> moved(x, weights, width / largest, 0, top);
    const Mask flat = largest < FLAT;
    for (int i = 0; i < Run; i++) (*q)[i] = choose(flat, all(0), moved.q[i]);
    const V scale = choose(moved.sum_qq > 0.0f, moved.sum_xq / moved.sum_qq, all(0));
    return choose(flat, all(0), scale);
}

}  // namespace
}  // namespace geode
