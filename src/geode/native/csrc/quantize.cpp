// The searches of geode/lattice.py and the packing of geode/blocks.py: the same names, and the same bits.
//
// Sums go over a run's numbers in order, as the definition's do. What is done at once is all runs of a block,
// one in each of `N` lanes: the inner loops are over lanes, and compilers vectorise them. To be compiled with
// -ffp-contract=off, for a fused multiply-add rounds once where the definition rounds twice. The flags
// -fno-trapping-math and -fno-math-errno change no bit, and let GCC turn a choice of numbers into one of lanes.
#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"

namespace geode {

namespace {

// GCC unrolls loops over eight lanes before it looks for vectors, and then finds none.
#if defined(__GNUC__) && !defined(__clang__)
#define EACH_LANE _Pragma("GCC unroll 1") for (int n = 0; n < N; n++)
#else
#define EACH_LANE for (int n = 0; n < N; n++)
#endif

constexpr float ROUNDER = 0x1.8p23f;  // float32 holds no fractions here: adding and subtracting it rounds
constexpr float FLAT = 1e-15f;        // runs with no number above this are zeros

// The nearest whole number, halves to even, in low … high; a NaN stays one.
inline float nearest(float x, float low, float high) {
    x = x < low ? low : x;
    x = x > high ? high : x;
    return x + ROUNDER - ROUNDER;
}

inline float finite_or_zero(float x) { return std::isfinite(x) ? x : 0.0f; }

// One run in each lane: [number][lane].
template <int Run, int N>
using Runs = float[Run][N];

template <int Run, int N>
void transpose(const float* x, Runs<Run, N>& runs) {
    for (int i = 0; i < Run; i++)
        for (int n = 0; n < N; n++) runs[i][n] = x[n * Run + i];
}

// ---- x ≈ scale·q - low, q in 0 … top (`affine`)

// Errors are squared, or taken as they are (`Absolute`).
template <int Run, int N, bool Absolute>
struct Affine {
    Runs<Run, N> x, weights;
    float top, high[N], sum_w[N] = {}, sum_x[N] = {};
    float scale[N], low[N], best[N];  // the best line so far and its loss
    float q[Run][N], sum_q[N], sum_qq[N], sum_xq[N];
    float tried[N], lowest[N], found[N];

    void measure() {
        EACH_LANE high[n] = x[0][n], low[n] = std::min(x[0][n], 0.0f);
        for (int i = 0; i < Run; i++)
            EACH_LANE {
                high[n] = x[i][n] > high[n] ? x[i][n] : high[n];
                low[n] = x[i][n] < low[n] ? x[i][n] : low[n];
                sum_w[n] += weights[i][n];
                sum_x[n] += weights[i][n] * x[i][n];
            }
    }

    // q for a span of `width` steps, and the sums that a line through them needs.
    void round(float width) {
        float inverse[N];
        EACH_LANE inverse[n] = width / (high[n] - low[n]), sum_q[n] = sum_qq[n] = sum_xq[n] = 0;
        for (int i = 0; i < Run; i++)
            EACH_LANE {
                const float r = nearest(inverse[n] * (x[i][n] - low[n]), 0, top), wq = weights[i][n] * r;
                q[i][n] = r;
                sum_q[n] += wq;
                sum_qq[n] += wq * r;
                sum_xq[n] += wq * x[i][n];
            }
    }

    // The loss of the line `tried`, `lowest`.
    void lose() {
        EACH_LANE found[n] = 0;
        for (int i = 0; i < Run; i++)
            EACH_LANE {
                const float off = tried[n] * q[i][n] + lowest[n] - x[i][n];
                found[n] += weights[i][n] * (Absolute ? std::fabs(off) : off * off);
            }
    }

    // Least squares; what is not determined gets no finite line, and so is never better.
    void fit() {
        EACH_LANE {
            const float determinant = sum_w[n] * sum_qq[n] - sum_q[n] * sum_q[n];
            const float slope = (sum_w[n] * sum_xq[n] - sum_x[n] * sum_q[n]) / determinant;
            const float start = (sum_qq[n] * sum_x[n] - sum_q[n] * sum_xq[n]) / determinant;
            const float through_zero = sum_xq[n] / sum_qq[n];
            lowest[n] = start > 0 ? 0 : start;
            tried[n] = start > 0 ? through_zero : slope;
            tried[n] = determinant > 0 ? tried[n] : NAN;
        }
    }

    void keep() {
        EACH_LANE {
            const bool better = found[n] < best[n];
            best[n] = better ? found[n] : best[n];
            scale[n] = better ? tried[n] : scale[n];
            low[n] = better ? lowest[n] : low[n];
        }
    }

    // Leaves the scales in `scale` and the lows, turned positive, in `low`.
    void search(int highest, float first, int steps) {
        top = highest;
        measure();
        bool spread[N];
        EACH_LANE spread[n] = high[n] > low[n];
        EACH_LANE tried[n] = scale[n] = 1 / (top / (high[n] - low[n])), lowest[n] = low[n];
        round(top);
        lose();
        EACH_LANE best[n] = found[n];
        for (int step = 0; step <= steps; step++) {
            round(first + 0.1f * static_cast<float>(step) + top);
            fit();
            lose();
            keep();
        }
        EACH_LANE scale[n] = spread[n] ? scale[n] : 0, low[n] = -low[n];
    }
};

// ---- x ≈ scale·q, q in -top … top - 1 (`peak`, `symmetric`, `descent`)

template <int Run, int N>
void peak(const Runs<Run, N>& x, float* largest) {
    EACH_LANE largest[n] = x[0][n];
    for (int i = 1; i < Run; i++)
        EACH_LANE largest[n] = std::fabs(x[i][n]) > std::fabs(largest[n]) ? x[i][n] : largest[n];
}

// Sums for q at `width` steps between zero and the largest number; q itself where it is asked for.
template <int Run, int N>
void round(const Runs<Run, N>& x, const float* largest, float width, float top, float* sum_xq, float* sum_qq,
           float (*q)[N]) {
    float inverse[N], xq[N] = {}, qq[N] = {};
    EACH_LANE inverse[n] = -width / largest[n];
    for (int i = 0; i < Run; i++)
        EACH_LANE {
            const float r = nearest(inverse[n] * x[i][n], -top, top - 1), weight = x[i][n] * x[i][n];
            xq[n] += weight * x[i][n] * r;
            qq[n] += weight * r * r;
            if (q) q[i][n] = r;
        }
    EACH_LANE sum_xq[n] = xq[n], sum_qq[n] = qq[n];
}

// The scale that was fitted; -largest / top where the sums were beyond float32; 0 for zeros.
inline float usable(float scale, float largest, int top) {
    const float fitted = std::isfinite(scale) ? scale : largest / static_cast<float>(-top);
    return std::fabs(largest) < FLAT ? 0 : fitted;
}

template <int Run, int N>
void symmetric(const Runs<Run, N>& x, int top, float* scale) {
    float largest[N], best[N] = {}, sum_xq[N], sum_qq[N];
    peak(x, largest);
    EACH_LANE scale[n] = 0;
    for (int step : {0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9}) {
        round<Run, N>(x, largest, top + 0.1f * static_cast<float>(step), top, sum_xq, sum_qq, nullptr);
        EACH_LANE {
            const bool gain = (step == 0) | (sum_xq[n] * sum_xq[n] > best[n] * sum_qq[n]);
            const bool better = (sum_qq[n] > 0) & gain;
            const float fitted = sum_xq[n] / sum_qq[n];
            scale[n] = better ? fitted : scale[n];
            best[n] = better ? fitted * sum_xq[n] : best[n];
        }
    }
    EACH_LANE scale[n] = usable(scale[n], largest[n], top);
}

// One q of each lane moves to its best place, given all others, where that makes the fit better.
template <int N>
void move(const float* x, float top, float* q, float* sum_xq, float* sum_qq) {
    EACH_LANE {
        const float weight = x[n] * x[n], wx = weight * x[n];
        const float others_x = sum_xq[n] - wx * q[n], others_q = sum_qq[n] - weight * q[n] * q[n];
        const float moved = nearest(x[n] * others_q / others_x, -top, top - 1);
        const float now_x = others_x + wx * moved, now_q = others_q + weight * moved * moved;
        const bool gain = now_x * now_x * sum_qq[n] > sum_xq[n] * sum_xq[n] * now_q;
        const bool better = (others_x > 0) & (moved != q[n]) & (now_q > 0) & gain;
        q[n] = better ? moved : q[n];
        sum_xq[n] = better ? now_x : sum_xq[n];
        sum_qq[n] = better ? now_q : sum_qq[n];
    }
}

template <int Run, int N>
void descent(const Runs<Run, N>& x, int top, float* scale) {
    float largest[N], q[Run][N], sum_xq[N], sum_qq[N];
    peak(x, largest);
    round<Run, N>(x, largest, top, top, sum_xq, sum_qq, q);
    for (int sweep = 0; sweep < 5; sweep++)
        for (int i = 0; i < Run; i++) move<N>(x[i], top, q[i], sum_xq, sum_qq);
    EACH_LANE scale[n] = usable(sum_xq[n] / sum_qq[n], largest[n], top);
}

// ---- bytes

// False when the number is beyond half precision.
inline bool put_half(float x, uint8_t* out) {
    const uint16_t half = to_half(x);
    std::memcpy(out, &half, 2);
    return (half & 0x7c00) != 0x7c00;
}

inline float halved(float x) { return from_half(to_half(x)); }

// Fields of `Bits` bits into bytes: of `Width` bytes first all lowest fields, then all next ones.
template <int Bytes, int Width, int Bits>
void put_fields(const uint8_t* q, int shift, uint8_t* out) {
    constexpr int PER = 8 / Bits;
    for (int at = 0; at < Bytes; at += Width)
        for (int i = 0; i < Width; i++) {
            int byte = 0;
            for (int field = 0; field < PER; field++)
                byte |= (q[at * PER + field * Width + i] >> shift & ((1 << Bits) - 1)) << field * Bits;
            out[at + i] = static_cast<uint8_t>(byte);
        }
}

// ---- blocks of 32

// The number farthest from zero; of two the first. Bits without the sign stand in order of size.
float farthest(const float* x) {
    const auto size = [x](int i) { return static_cast<int32_t>(bits_of(x[i]) & 0x7fffffff); };
    int32_t largest = 0;
    for (int i = 0; i < 32; i++) largest = std::max(largest, size(i));
    int at = 0;
    while (size(at) != largest) at++;
    return x[at];
}

bool q8_0(const float* x, uint8_t* out) {
    const float d = std::fabs(farthest(x)) / 127, inverse = finite_or_zero(1 / d);
    for (int i = 0; i < 32; i++) {
        const float q = x[i] * inverse;
        const int whole = static_cast<int>(q);
        const float rest = q - static_cast<float>(whole);
        out[2 + i] = static_cast<uint8_t>(whole + (rest >= 0.5f) - (rest <= -0.5f));
    }
    return put_half(d, out);
}

inline uint8_t floored(float x, float top) {
    return static_cast<uint8_t>(static_cast<int>(std::min(std::max(x, 0.0f), top)));
}

// x ≈ d·(q - top), the number farthest from zero at q = 0.
float around_zero(const float* x, int top, uint8_t* q) {
    const float d = farthest(x) / static_cast<float>(-top), inverse = finite_or_zero(1 / d);
    for (int i = 0; i < 32; i++) q[i] = floored(x[i] * inverse + (top + 0.5f), 2 * top - 1);
    return d;
}

// x ≈ d·q + m from the least number to the greatest. False when d or m is beyond half precision.
bool from_minimum(const float* x, int top, uint8_t* q, uint8_t* out) {
    float low = x[0], high = x[0];
    for (int i = 1; i < 32; i++) low = std::min(low, x[i]), high = std::max(high, x[i]);
    const float m = low + 0.0f, d = (high + 0.0f - m) / static_cast<float>(top);  // 0 and not -0
    const float inverse = finite_or_zero(1 / d);
    if (!put_half(d, out) || !put_half(m, out + 2)) return false;
    for (int i = 0; i < 32; i++) q[i] = floored((x[i] - m) * inverse + 0.5f, top);
    return true;
}

void put_five_bits(const uint8_t* q, uint8_t* out) {
    put_fields<4, 1, 1>(q, 4, out);
    put_fields<16, 16, 4>(q, 0, out + 4);
}

bool q4_0(const float* x, uint8_t* out) {
    uint8_t q[32];
    const float d = around_zero(x, 8, q);
    put_fields<16, 16, 4>(q, 0, out + 2);
    return put_half(d, out);
}

bool q4_1(const float* x, uint8_t* out) {
    uint8_t q[32];
    if (!from_minimum(x, 15, q, out)) return false;
    put_fields<16, 16, 4>(q, 0, out + 4);
    return true;
}

bool q5_0(const float* x, uint8_t* out) {
    uint8_t q[32];
    const float d = around_zero(x, 16, q);
    put_five_bits(q, out + 2);
    return put_half(d, out);
}

bool q5_1(const float* x, uint8_t* out) {
    uint8_t q[32];
    if (!from_minimum(x, 31, q, out)) return false;
    put_five_bits(q, out + 4);
    return true;
}

// ---- blocks of 256

// Values ≥ 0 ≈ d·s, s in 0 … top: returns d.
template <int N>
float rounded_up_from_zero(const float* values, int top, float* s) {
    float largest = 0;
    for (int n = 0; n < N; n++) largest = std::max(largest, values[n]);
    const float inverse = finite_or_zero(static_cast<float>(top) / largest);
    for (int n = 0; n < N; n++) s[n] = nearest(inverse * values[n], 0, top);
    return largest / static_cast<float>(top);
}

// Values ≈ d·s, s in -top … top - 1: returns d.
template <int N>
float rounded_around_zero(const float* values, int top, float* s) {
    float largest = values[0];
    for (int n = 1; n < N; n++) largest = std::fabs(values[n]) > std::fabs(largest) ? values[n] : largest;
    const float ratio = finite_or_zero(static_cast<float>(-top) / largest);
    const float inverse = std::fabs(largest) < FLAT ? 0 : ratio;
    for (int n = 0; n < N; n++) s[n] = nearest(inverse * values[n], -top, top - 1);
    return finite_or_zero(1 / inverse);
}

// The q - low of x + m ≈ d·q, q in low … high; 0 where d is 0.
template <int Run>
void rounded(const float* x, float d, float m, int low, int high, uint8_t* q) {
    if (d == 0) {
        std::memset(q, 0, Run);
        return;
    }
    for (int i = 0; i < Run; i++)
        q[i] = static_cast<uint8_t>(static_cast<int>(nearest((x[i] + m) / d, low, high)) - low);
}

// Scales around zero, for runs of 16: fills s and q, and puts d at `out`. False when that cannot hold it.
bool sixteen(const float* x, const float* scales, int scale_top, int top, float* s, uint8_t* q, uint8_t* out) {
    const float d = rounded_around_zero<16>(scales, scale_top, s);
    if (!put_half(d, out)) return false;
    for (int n = 0; n < 16; n++) rounded<16>(x + 16 * n, halved(d) * s[n], 0, -top, top - 1, q + 16 * n);
    return true;
}

bool q2_k(const float* x, uint8_t* out) {
    Affine<16, 16, true> lines;
    transpose<16, 16>(x, lines.x);
    for (int i = 0; i < 16; i++)
        for (int n = 0; n < 16; n++) lines.weights[i][n] = std::fabs(lines.x[i][n]);
    lines.search(3, -0.5f, 15);
    float s[16], m[16];
    uint8_t q[256];
    const float d = rounded_up_from_zero<16>(lines.scale, 15, s);
    const float dmin = rounded_up_from_zero<16>(lines.low, 15, m);
    if (!put_half(d, out + 80) || !put_half(dmin, out + 82)) return false;
    for (int n = 0; n < 16; n++) {
        rounded<16>(x + 16 * n, halved(d) * s[n], halved(dmin) * m[n], 0, 3, q + 16 * n);
        out[n] = static_cast<uint8_t>(static_cast<int>(s[n]) | static_cast<int>(m[n]) << 4);
    }
    put_fields<64, 32, 2>(q, 0, out + 16);
    return true;
}

bool q3_k(const float* x, uint8_t* out) {
    Runs<16, 16> runs;
    transpose<16, 16>(x, runs);
    float scales[16], s[16];
    uint8_t q[256], levels[16];
    descent<16, 16>(runs, 4, scales);
    if (!sixteen(x, scales, 32, 4, s, q, out + 108)) return false;
    for (int n = 0; n < 16; n++) levels[n] = static_cast<uint8_t>(s[n] + 32);
    put_fields<32, 32, 1>(q, 2, out);
    put_fields<64, 32, 2>(q, 0, out + 32);
    put_fields<8, 8, 4>(levels, 0, out + 96);
    put_fields<4, 4, 2>(levels, 4, out + 104);
    return true;
}

// The head that Q4_K and Q5_K share, at `out`, and q in 0 … top. Errors count by a number's size beside the
// run's root mean square.
bool scales_and_mins(const float* x, int top, float first, int steps, uint8_t* out, uint8_t* q) {
    Affine<32, 8, false> lines;
    float size[8] = {}, s[8], m[8];
    transpose<32, 8>(x, lines.x);
    for (int i = 0; i < 32; i++)
        for (int n = 0; n < 8; n++) size[n] += lines.x[i][n] * lines.x[i][n];
    for (int n = 0; n < 8; n++) size[n] = std::sqrt(size[n] / 32);
    for (int i = 0; i < 32; i++)
        for (int n = 0; n < 8; n++) lines.weights[i][n] = size[n] + std::fabs(lines.x[i][n]);
    lines.search(top, first, steps);
    const float d = rounded_up_from_zero<8>(lines.scale, 63, s);
    const float dmin = rounded_up_from_zero<8>(lines.low, 63, m);
    if (!put_half(d, out) || !put_half(dmin, out + 2)) return false;
    for (int n = 0; n < 8; n++)
        rounded<32>(x + 32 * n, halved(d) * s[n], halved(dmin) * m[n], 0, top, q + 32 * n);
    for (int n = 0; n < 4; n++) {
        const int s0 = static_cast<int>(s[n]), s4 = static_cast<int>(s[4 + n]);
        const int m0 = static_cast<int>(m[n]), m4 = static_cast<int>(m[4 + n]);
        out[4 + n] = static_cast<uint8_t>(s0 | s4 >> 4 << 6);
        out[8 + n] = static_cast<uint8_t>(m0 | m4 >> 4 << 6);
        out[12 + n] = static_cast<uint8_t>((s4 & 15) | m4 << 4);
    }
    return true;
}

bool q4_k(const float* x, uint8_t* out) {
    uint8_t q[256];
    if (!scales_and_mins(x, 15, -1, 20, out, q)) return false;
    put_fields<128, 32, 4>(q, 0, out + 16);
    return true;
}

bool q5_k(const float* x, uint8_t* out) {
    uint8_t q[256];
    if (!scales_and_mins(x, 31, -0.5f, 15, out, q)) return false;
    put_fields<32, 32, 1>(q, 4, out + 16);
    put_fields<128, 32, 4>(q, 0, out + 48);
    return true;
}

bool q6_k(const float* x, uint8_t* out) {
    Runs<16, 16> runs;
    transpose<16, 16>(x, runs);
    float scales[16], s[16];
    uint8_t q[256];
    symmetric<16, 16>(runs, 32, scales);
    if (!sixteen(x, scales, 128, 32, s, q, out + 208)) return false;
    put_fields<128, 64, 4>(q, 0, out);
    put_fields<64, 32, 2>(q, 4, out + 128);
    for (int n = 0; n < 16; n++) out[192 + n] = static_cast<uint8_t>(static_cast<int>(s[n]));
    return true;
}

// ---- one number, two or four bytes

bool f32(const float* x, uint8_t* out) {
    std::memcpy(out, x, 4);
    return true;
}

bool f16(const float* x, uint8_t* out) { return put_half(*x, out); }

bool bf16(const float* x, uint8_t* out) {
    const uint16_t bits = to_bfloat(*x);
    std::memcpy(out, &bits, 2);
    return (bits & 0x7f80) != 0x7f80;
}

using Pack = bool (*)(const float*, uint8_t*);
constexpr Pack PACK[TYPES] = {f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k};

bool finite(const float* x, int count) {
    uint32_t beyond = 0;
    for (int i = 0; i < count; i++) beyond |= (bits_of(x[i]) & 0x7f800000) == 0x7f800000;
    return !beyond;
}

}  // namespace

bool quantize_rows(QType type, const float* x, size_t rows, size_t columns, uint8_t* out) {
    const BlockInfo info = type == QType::BF16 ? BlockInfo{"", 1, 2} : block_info(type);
    const Pack pack = PACK[static_cast<int>(type)];
    const float* end = x + rows * columns;
    bool fits = true;
    for (; x != end; x += info.elements, out += info.nbytes) fits &= finite(x, info.elements) && pack(x, out);
    return fits;
}

}  // namespace geode
