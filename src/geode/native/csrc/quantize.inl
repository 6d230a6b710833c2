// The packing of geode/blocks.py: the same names, and the same bits. See lattice.inl for what it asks of a compiler.
//
// BATCH blocks are packed together, so that searches find a run, or a block's scales, for every lane of a vector.
#pragma once
#include "dequantize.inl"
#include "lattice.inl"
#include "quantize.h"

namespace geode {
namespace {

constexpr int BATCH = 16;
constexpr Tries WEIGHED = {-0.9f, 0.05f, 37};  // what is tried where weights say what counts

INLINE float finite_or_zero(float x) { return std::fabs(x) <= FLT_MAX ? x : 0.0f; }

// ---- bytes

// False when the number is beyond half precision.
INLINE bool put_half(float x, uint8_t* out) {
    const uint16_t half = to_half(x);
    std::memcpy(out, &half, 2);
    return (half & 0x7c00) != 0x7c00;
}

INLINE float halved(float x) { return from_half(to_half(x)); }

// Fields of `Bits` bits into bytes: of `Width` bytes first all lowest fields, then all next ones.
template <int Bytes, int Width, int Bits>
INLINE void put_fields(const uint8_t* q, int shift, uint8_t* out) {
    constexpr int PER = 8 / Bits;
    for (int at = 0; at < Bytes; at += Width)
        for (int i = 0; i < Width; i++) {
            int byte = 0;
            for (int field = 0; field < PER; field++)
                byte |= (q[at * PER + field * Width + i] >> shift & ((1 << Bits) - 1)) << field * Bits;
            out[at + i] = static_cast<uint8_t>(byte);
        }
}

INLINE void put_five_bits(const uint8_t* q, uint8_t* out) {
    put_fields<4, 1, 1>(q, 4, out);
    put_fields<16, 16, 4>(q, 0, out + 4);
}

template <int Top>  // 7 or 15: four bits, 15 or 31: five
INLINE void put_q(const uint8_t* q, uint8_t* out) {
    if (Top < 16)
        put_fields<16, 16, 4>(q, 0, out);
    else
        put_five_bits(q, out);
}

// ---- blocks of 32

// The number farthest from zero; of two the first. Bits without the sign stand in order of size.
INLINE float farthest(const float* x) {
    const auto size = [x](int i) { return static_cast<int32_t>(bits_of(x[i]) & 0x7fffffff); };
    int32_t largest = 0;
    for (int i = 0; i < 32; i++) largest = size(i) > largest ? size(i) : largest;
    int at = 0;
    while (size(at) != largest) at++;
    return x[at];
}

bool q8_0(const float* x, const float*, uint8_t* out) {
    bool fits = true;
    for (int b = 0; b < BATCH; b++, x += 32, out += 34) {
        int32_t largest = 0;
        for (int i = 0; i < 32; i++) {
            const int32_t size = static_cast<int32_t>(bits_of(x[i]) & 0x7fffffff);
            largest = size > largest ? size : largest;
        }
        const float d = float_of(static_cast<uint32_t>(largest)) / 127, inverse = finite_or_zero(1 / d);
        for (int i = 0; i < 32; i++) {
            const float q = x[i] * inverse;
            const int whole = static_cast<int>(q);
            const float rest = q - static_cast<float>(whole);  // halves away from zero
            out[2 + i] = static_cast<uint8_t>(whole + (rest >= 0.5f) - (rest <= -0.5f));
        }
        fits &= put_half(d, out);
    }
    return fits;
}

INLINE uint8_t floored(float x, float top) {
    x = x < 0 ? 0 : x;
    return static_cast<uint8_t>(static_cast<int>(x > top ? top : x));
}

// The weighted fit of BATCH blocks by `fit(x, weights, scales, q)`, LANES blocks at a time.
template <class Fit>
INLINE void by_lanes(const float* x, const float* weights, Fit&& fit) {
    for (int b = 0; b < BATCH; b += LANES) fit(b, in_lanes<32>(x + 32 * b), in_lanes<32>(weights + 32 * b));
}

// x ≈ d·(q - Top), the number farthest from zero at q = 0: Q4_0 and Q5_0.
template <int Top, int NBytes>
bool around_zero(const float* x, const float* weights, uint8_t* out) {
    float d[BATCH], found[BATCH * 32];
    if (weights)
        by_lanes(x, weights, [&](int b, const Runs<32>& runs, const Runs<32>& counts) {
            Runs<32> q;
            store(symmetric(runs, counts, Top, &q), d + b);
            from_lanes(q, found + 32 * b);
        });
    bool fits = true;
    for (int b = 0; b < BATCH; b++, x += 32, out += NBytes) {
        uint8_t q[32];
        if (weights) {
            for (int i = 0; i < 32; i++) q[i] = static_cast<uint8_t>(static_cast<int>(found[32 * b + i]) + Top);
        } else {
            d[b] = farthest(x) / static_cast<float>(-Top);
            const float inverse = finite_or_zero(1 / d[b]);
            for (int i = 0; i < 32; i++) q[i] = floored(x[i] * inverse + (Top + 0.5f), 2 * Top - 1);
        }
        put_q<Top * 2 - 1>(q, out + 2);
        fits &= put_half(d[b], out);
    }
    return fits;
}

// x ≈ d·q + m from the least number to the greatest: Q4_1 and Q5_1.
template <int Top, int NBytes>
bool from_minimum(const float* x, const float* weights, uint8_t* out) {
    float d[BATCH], m[BATCH], found[BATCH * 32];
    if (weights)
        by_lanes(x, weights, [&](int b, const Runs<32>& runs, const Runs<32>& counts) {
            Affine<32, false> line;
            line.x = runs, line.weights = counts;
            line.search(Top, WEIGHED);
            store(line.scale, d + b);
            store(0.0f - line.low, m + b);
            from_lanes(line.fitted(), found + 32 * b);
        });
    bool fits = true;
    for (int b = 0; b < BATCH; b++, x += 32, out += NBytes) {
        uint8_t q[32];
        if (weights) {
            for (int i = 0; i < 32; i++) q[i] = static_cast<uint8_t>(static_cast<int>(found[32 * b + i]));
        } else {
            float low = x[0], high = x[0];
            for (int i = 1; i < 32; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
            m[b] = low + 0.0f, d[b] = (high + 0.0f - m[b]) / static_cast<float>(Top);  // 0 and not -0
            const float inverse = finite_or_zero(1 / d[b]);
            for (int i = 0; i < 32; i++) q[i] = floored((x[i] - m[b]) * inverse + 0.5f, Top);
        }
        put_q<Top>(q, out + 4);
        fits &= put_half(d[b], out) & put_half(m[b], out + 2);
    }
    return fits;
}

// ---- blocks of 256

// One number for each run of a batch, and how much the run counts.
template <int Count>
struct Scales {
    float values[BATCH * Count], counts[BATCH * Count];
    float d[BATCH], s[BATCH * Count];  // values ≈ d·s
};

// Values ≥ 0 ≈ d·s, s in 0 … top.
template <int Count>
INLINE void round_up_from_zero(Scales<Count>& to, int top, bool weighted) {
    if (weighted) {
        for (int b = 0; b < BATCH; b += LANES) {
            Runs<Count> s;
            const Runs<Count> x = in_lanes<Count>(to.values + Count * b);
            const Runs<Count> counts = in_lanes<Count>(to.counts + Count * b);
            store(from_zero(x, counts, top, &s), to.d + b);
            from_lanes(s, to.s + Count * b);
        }
        return;
    }
    for (int b = 0; b < BATCH; b++) {
        const float* values = to.values + Count * b;
        float largest = 0;
        for (int n = 0; n < Count; n++) largest = values[n] > largest ? values[n] : largest;
        const float inverse = finite_or_zero(static_cast<float>(top) / largest);
        for (int n = 0; n < Count; n++) to.s[Count * b + n] = nearest(inverse * values[n], 0, top);
        to.d[b] = largest / static_cast<float>(top);
    }
}

// Values ≈ d·s, s in -top … top - 1.
INLINE void round_around_zero(Scales<16>& to, int top) {
    for (int b = 0; b < BATCH; b++) {
        const float* values = to.values + 16 * b;
        float largest = values[0];
        for (int n = 1; n < 16; n++) largest = std::fabs(values[n]) > std::fabs(largest) ? values[n] : largest;
        const float ratio = finite_or_zero(static_cast<float>(-top) / largest);
        const float inverse = std::fabs(largest) < FLAT ? 0 : ratio;
        for (int n = 0; n < 16; n++) to.s[16 * b + n] = nearest(inverse * values[n], -top, top - 1);
        to.d[b] = finite_or_zero(1 / inverse);
    }
}

// The q - low of x + m ≈ d·q, q in low … high; 0 where d is 0.
template <int Run>
INLINE void rounded(const float* x, float d, float m, int low, int high, uint8_t* q) {
    if (d == 0) {
        std::memset(q, 0, Run);
        return;
    }
    for (int i = 0; i < Run; i++)
        q[i] = static_cast<uint8_t>(static_cast<int>(nearest((x[i] + m) / d, low, high)) - low);
}

// The lines of all runs of a batch: their scales and lows, positive.
template <int Run, bool Absolute, class Weights>
INLINE void lines(const float* x, const float* weights, int top, Tries tries, Scales<256 / Run>& scales,
                  Scales<256 / Run>& lows, Weights&& own_weights) {
    for (int run = 0; run < BATCH * 256 / Run; run += LANES) {
        Affine<Run, Absolute> line;
        line.x = in_lanes<Run>(x + Run * run);
        line.weights = weights ? in_lanes<Run>(weights + Run * run) : own_weights(line.x);
        line.search(top, tries);
        store(line.scale, scales.values + run);
        store(line.low, lows.values + run);
        store(line.sum_w, scales.counts + run);
        store(line.sum_w, lows.counts + run);
    }
}

template <int Run>
INLINE Runs<Run> squares(const Runs<Run>& x) {
    Runs<Run> out;
    for (int i = 0; i < Run; i++) out[i] = x[i] * x[i];
    return out;
}

INLINE Runs<16> magnitudes(const Runs<16>& x) {
    Runs<16> out;
    for (int i = 0; i < 16; i++) out[i] = magnitude(x[i]);
    return out;
}

bool q2_k(const float* x, const float* weights, uint8_t* out) {
    Scales<16> scales, lows;
    if (weights)
        lines<16, false>(x, weights, 3, WEIGHED, scales, lows, magnitudes);
    else
        lines<16, true>(x, nullptr, 3, {-0.5f, 0.1f, 16}, scales, lows, magnitudes);
    round_up_from_zero(scales, 15, weights);
    round_up_from_zero(lows, 15, weights);
    bool fits = true;
    for (int b = 0; b < BATCH; b++, x += 256, out += 84) {
        const float *s = scales.s + 16 * b, *m = lows.s + 16 * b, d = halved(scales.d[b]), dmin = halved(lows.d[b]);
        uint8_t q[256] = {};
        fits &= put_half(d, out + 80) & put_half(dmin, out + 82);
        for (int n = 0; fits && n < 16; n++) {
            rounded<16>(x + 16 * n, d * s[n], dmin * m[n], 0, 3, q + 16 * n);
            out[n] = static_cast<uint8_t>(static_cast<int>(s[n]) | static_cast<int>(m[n]) << 4);
        }
        put_fields<64, 32, 2>(q, 0, out + 16);
    }
    return fits;
}

// The q of one block whose runs of 16 have scales around zero; puts d at `half`. False when that cannot hold it.
INLINE bool sixteen(const float* x, const Scales<16>& scales, int b, int top, uint8_t* q, uint8_t* half) {
    const float d = halved(scales.d[b]);
    if (!put_half(d, half)) return false;
    for (int n = 0; n < 16; n++) rounded<16>(x + 16 * n, d * scales.s[16 * b + n], 0, -top, top - 1, q + 16 * n);
    return true;
}

INLINE void scales_q3_k(const float* x, const float* weights, Scales<16>& scales) {
    for (int run = 0; run < BATCH * 16; run += LANES) {
        const Runs<16> runs = in_lanes<16>(x + 16 * run);
        if (!weights) {
            store(descent(runs, squares(runs), 4), scales.values + run);
            continue;
        }
        const Runs<16> counts = in_lanes<16>(weights + 16 * run);
        store(symmetric(runs, counts, 4), scales.values + run);
        store(total(counts), scales.counts + run);
    }
    if (!weights) return round_around_zero(scales, 32);
    for (int b = 0; b < BATCH; b += LANES) {
        Runs<16> s;
        const Runs<16> values = in_lanes<16>(scales.values + 16 * b), counts = in_lanes<16>(scales.counts + 16 * b);
        store(symmetric(values, counts, 32, &s), scales.d + b);
        from_lanes(s, scales.s + 16 * b);
    }
}

bool q3_k(const float* x, const float* weights, uint8_t* out) {
    Scales<16> scales;
    scales_q3_k(x, weights, scales);
    bool fits = true;
    for (int b = 0; b < BATCH; b++, x += 256, out += 110) {
        uint8_t q[256] = {}, levels[16];
        fits &= sixteen(x, scales, b, 4, q, out + 108);
        for (int n = 0; n < 16; n++) levels[n] = static_cast<uint8_t>(static_cast<int>(scales.s[16 * b + n]) + 32);
        put_fields<32, 32, 1>(q, 2, out);
        put_fields<64, 32, 2>(q, 0, out + 32);
        put_fields<8, 8, 4>(levels, 0, out + 96);
        put_fields<4, 4, 2>(levels, 4, out + 104);
    }
    return fits;
}

// Errors count by a number's size beside the run's root mean square.
INLINE Runs<32> by_size(const Runs<32>& x) {
    const V sum = total(squares(x));
    float size[LANES];
    store(sum, size);
    for (int n = 0; n < LANES; n++) size[n] = std::sqrt(size[n] / 32);
    Runs<32> out;
    for (int i = 0; i < 32; i++) out[i] = load(size) + magnitude(x[i]);
    return out;
}

// The head that Q4_K and Q5_K share.
INLINE void put_scales_and_mins(const float* s, const float* m, uint8_t* out) {
    for (int n = 0; n < 4; n++) {
        const int s0 = static_cast<int>(s[n]), s4 = static_cast<int>(s[4 + n]);
        const int m0 = static_cast<int>(m[n]), m4 = static_cast<int>(m[4 + n]);
        out[n] = static_cast<uint8_t>(s0 | s4 >> 4 << 6);
        out[4 + n] = static_cast<uint8_t>(m0 | m4 >> 4 << 6);
        out[8 + n] = static_cast<uint8_t>((s4 & 15) | m4 << 4);
    }
}

// Q4_K and Q5_K but for where q goes: `put(q, out)`.
template <int NBytes, class Put>
INLINE bool scales_and_mins(const float* x, const float* weights, int top, Tries tries, uint8_t* out, Put&& put) {
    Scales<8> scales, lows;
    lines<32, false>(x, weights, top, weights ? WEIGHED : tries, scales, lows, by_size);
    round_up_from_zero(scales, 63, weights);
    round_up_from_zero(lows, 63, weights);
    bool fits = true;
    for (int b = 0; b < BATCH; b++, x += 256, out += NBytes) {
        const float *s = scales.s + 8 * b, *m = lows.s + 8 * b, d = halved(scales.d[b]), dmin = halved(lows.d[b]);
        uint8_t q[256] = {};
        fits &= put_half(d, out) & put_half(dmin, out + 2);
        for (int n = 0; fits && n < 8; n++) rounded<32>(x + 32 * n, d * s[n], dmin * m[n], 0, top, q + 32 * n);
        put_scales_and_mins(s, m, out + 4);
        put(q, out + 16);
    }
    return fits;
}

bool q4_k(const float* x, const float* weights, uint8_t* out) {
    return scales_and_mins<144>(x, weights, 15, {-1, 0.1f, 21}, out,
                                [](const uint8_t* q, uint8_t* to) { put_fields<128, 32, 4>(q, 0, to); });
}

bool q5_k(const float* x, const float* weights, uint8_t* out) {
    return scales_and_mins<176>(x, weights, 31, {-0.5f, 0.1f, 16}, out, [](const uint8_t* q, uint8_t* to) {
        put_fields<32, 32, 1>(q, 4, to);
        put_fields<128, 32, 4>(q, 0, to + 32);
    });
}

bool q6_k(const float* x, const float* weights, uint8_t* out) {
    Scales<16> scales;
    for (int run = 0; run < BATCH * 16; run += LANES) {
        const Runs<16> runs = in_lanes<16>(x + 16 * run);
        store(symmetric(runs, weights ? in_lanes<16>(weights + 16 * run) : squares(runs), 32), scales.values + run);
    }
    round_around_zero(scales, 128);
    bool fits = true;
    for (int b = 0; b < BATCH; b++, x += 256, out += 210) {
        uint8_t q[256] = {};
        fits &= sixteen(x, scales, b, 32, q, out + 208);
        put_fields<128, 64, 4>(q, 0, out);
        put_fields<64, 32, 2>(q, 4, out + 128);
        for (int n = 0; n < 16; n++) out[192 + n] = static_cast<uint8_t>(static_cast<int>(scales.s[16 * b + n]));
    }
    return fits;
}

// ---- one number, two or four bytes

inline void put_floats(QType type, const float* x, size_t n, uint8_t* out) {
    if (type == QType::F32) {
        std::memcpy(out, x, 4 * n);
        return;
    }
    constexpr size_t PIECE = 256;  // copied last: the file's numbers may lie at any byte
    uint16_t bits[PIECE];
    for (size_t at = 0; at < n; at += PIECE) {
        const size_t some = n - at < PIECE ? n - at : PIECE;
        if (type == QType::F16)
            for (size_t i = 0; i < some; i++) bits[i] = to_half(x[at + i]);
        else
            for (size_t i = 0; i < some; i++) bits[i] = to_bfloat(x[at + i]);
        std::memcpy(out + 2 * at, bits, 2 * some);
    }
}

INLINE bool finite(const float* x, size_t n) {
    uint32_t beyond = 0;
    for (size_t i = 0; i < n; i++) beyond |= (bits_of(x[i]) & 0x7f800000) == 0x7f800000;
    return !beyond;
}

// ---- rows

// BATCH blocks of x, with weights of the same shape or without.
using Pack = bool (*)(const float*, const float*, uint8_t*);
constexpr Pack PACK[TYPES] = {nullptr, nullptr, nullptr, q8_0, around_zero<8, 18>, from_minimum<15, 20>,
                              around_zero<16, 22>, from_minimum<31, 24>, q2_k, q3_k, q4_k, q5_k, q6_k};

// What a number's size is seen beside, where its column's importance is known: nothing, its row, or so many times its
// block (`weigh` of each type).
enum Beside : int { NOTHING = -1, ROW = 0, BLOCK = 1, TWICE_BLOCK = 2 };
constexpr int BESIDE[TYPES] = {NOTHING, NOTHING, NOTHING, NOTHING,     ROW,         ROW,         ROW,
                               ROW,     BLOCK,   TWICE_BLOCK, TWICE_BLOCK, TWICE_BLOCK, NOTHING};

// Adds the squares of `n` numbers of BATCH rows, `stride` apart, each row in order.
INLINE void add_squares(const float* x, size_t stride, size_t n, float* sums) {
    for (size_t i = 0; i < n; i++)
        for (int row = 0; row < BATCH; row++) sums[row] += x[row * stride + i] * x[row * stride + i];
}

inline size_t bytes_of(QType type) { return type == QType::F32 ? 4 : 2; }

// Up to BATCH rows that are packed together.
struct Rows {
    QType to, from;
    const uint8_t* source;
    size_t count, columns;
    const float* importance;
    float mean_squares[BATCH];  // of rows, where they are asked for

    void measure() {
        if (!importance || BESIDE[static_cast<int>(to)] != ROW) return;
        constexpr size_t PIECE = 64;
        float x[BATCH * PIECE] = {}, sums[BATCH] = {};
        for (size_t at = 0; at < columns; at += PIECE) {
            const size_t some = columns - at < PIECE ? columns - at : PIECE;
            for (size_t row = 0; row < count; row++)
                floats_of(from, source + (row * columns + at) * bytes_of(from), some, x + row * PIECE);
            add_squares(x, PIECE, some, sums);
        }
        for (int row = 0; row < BATCH; row++) mean_squares[row] = sums[row] / static_cast<float>(columns);
    }

    // How much the numbers of BATCH blocks count, of which `first` is one of these rows.
    void weigh(const float* x, size_t first, int elements, float* weights) const {
        const int beside = BESIDE[static_cast<int>(to)];
        const size_t per_row = columns / elements;
        float sums[BATCH] = {};
        if (beside > 0) add_squares(x, elements, elements, sums);
        for (int b = 0; b < BATCH; b++, x += elements, weights += elements) {
            const size_t row = (first + b) / per_row;
            const float* counts = importance + (first + b) % per_row * elements;
            if (beside == NOTHING) {
                std::memcpy(weights, counts, 4 * elements);
                continue;
            }
            const float square = beside == ROW ? mean_squares[row % BATCH] : beside * (sums[b] / elements);
            for (int i = 0; i < elements; i++) weights[i] = counts[i] * std::sqrt(square + x[i] * x[i]);
        }
    }

    bool pack(uint8_t* out) {
        const BlockInfo info = block_info(to);
        const size_t blocks = count * columns / info.elements;
        float x[BATCH * 256], weights[BATCH * 256];
        uint8_t last[BATCH * 256];
        bool fits = true;
        measure();
        for (size_t first = 0; first < blocks && fits; first += BATCH, out += BATCH * info.nbytes) {
            const size_t some = blocks - first < BATCH ? blocks - first : BATCH, n = some * info.elements;
            floats_of(from, source + first * info.elements * bytes_of(from), n, x);
            std::memset(x + n, 0, 4 * (BATCH * info.elements - n));
            if (importance) weigh(x, first, info.elements, weights);
            uint8_t* to_bytes = some < BATCH ? last : out;
            fits = finite(x, n) && PACK[static_cast<int>(to)](x, importance ? weights : nullptr, to_bytes);
            if (some < BATCH) std::memcpy(out, last, some * info.nbytes);
        }
        return fits;
    }
};

bool pack(QType to, QType from, const uint8_t* source, size_t rows, size_t columns, const float* importance,
          uint8_t* out) {
    const BlockInfo info = block_info(to);
    const size_t in_row = columns * bytes_of(from), out_row = columns / info.elements * info.nbytes;
    for (size_t row = 0; row < rows; row += BATCH) {
        const size_t some = rows - row < BATCH ? rows - row : BATCH;
        Rows batch = {to, from, source + row * in_row, some, columns, importance, {}};
        if (!batch.pack(out + row * out_row)) return false;
    }
    return true;
}

void unpack(QType from, QType to, const uint8_t* source, size_t rows, size_t columns, uint8_t* out) {
    const BlockInfo info = block_info(from);
    float x[BATCH * 256];
    const size_t piece = BATCH * 256, all_numbers = rows * columns;
    for (size_t at = 0; at < all_numbers; at += piece) {
        const size_t some = all_numbers - at < piece ? all_numbers - at : piece;
        numbers_of(from, source + at / info.elements * info.nbytes, some, x);
        put_floats(to, x, some, out + at * bytes_of(to));
    }
}

constexpr Quantizer QUANTIZER = {pack, unpack};

}  // namespace
}  // namespace geode
