// The kernels, written once over a vector type S (simd_*.h): what a block of each type means, and the loops around it.
//
// A block here is 32 columns of 16 rows: w[g] holds columns 4g … 4g + 3 of every row as unsigned bytes, and
//
//     value = scale · (w - ZERO)      or      scale · w - min
//
// Types with a scale for every 16 columns have GROUPS = 2. The definitions are blocks.py's.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "half.h"
#include "kernels.h"

// The compiler must not call functions where registers hold sixteen sums.
#if defined(GEODE_SANITIZED)  // checks after every access: such bodies would take minutes to compile
#define INLINE inline
#define INLINED
#elif defined(_MSC_VER)
#define INLINE __forceinline
#define INLINED
#else
#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))
#endif

namespace geode {
namespace {

constexpr int R = 16;  // rows of a panel

template <class S>
struct Block {
    typename S::B w[8];
    typename S::F scale[2], min[2];
};

// Calls body(integral_constant<int, 0>) … body(integral_constant<int, N - 1>).
template <int N, class Body>
INLINE void each(Body&& body) {
    [&]<int... J>(std::integer_sequence<int, J...>) INLINED {
        (body(std::integral_constant<int, J>()), ...);
    }(std::make_integer_sequence<int, N>());
}

template <int ELEMENTS_, int NBYTES, int BITS_, int ZERO_BITS_, int GROUPS_, bool AFFINE_>
struct Shape {
    static constexpr int ELEMENTS = ELEMENTS_, BYTES = R * NBYTES, BITS = BITS_;
    static constexpr int ZERO_BITS = ZERO_BITS_;  // ZERO is 1 << ZERO_BITS
    static constexpr int GROUPS = GROUPS_;
    static constexpr bool AFFINE = AFFINE_;
};

template <class S>
struct Q8_0 : Shape<32, 34, 8, 7, 1, false> {
    template <int J>
    INLINE static void load(const uint8_t* p, Block<S>& b) {
        b.scale[0] = S::load_f16(p);
        for (int g = 0; g < 8; g++) b.w[g] = S::load_bytes(p + 32 + 64 * g);
    }
};

template <class S>
INLINE void load_nibbles(const uint8_t* p, Block<S>& b) {
    for (int g = 0; g < 4; g++) {
        const auto x = S::load_bytes(p + 64 * g);
        b.w[g] = S::template field<0, 4>(x);
        b.w[g + 4] = S::template field<4, 4>(x);
    }
}

template <class S>
INLINE void load_fifth_bits(const uint8_t* p, Block<S>& b) {
    const auto x = S::load_bytes(p);
    each<8>([&](auto g) INLINED { b.w[g] = S::template join<4>(b.w[g], S::template field<g, 1>(x)); });
}

// blocks.py adds m where the K types take a minimum away.
template <class S>
INLINE typename S::F minus_f16(const uint8_t* p) {
    return S::sub(S::zero(), S::load_f16(p));
}

template <class S>
struct Q4_0 : Shape<32, 18, 4, 3, 1, false> {
    template <int J>
    INLINE static void load(const uint8_t* p, Block<S>& b) {
        b.scale[0] = S::load_f16(p);
        load_nibbles<S>(p + 32, b);
    }
};

template <class S>
struct Q4_1 : Shape<32, 20, 4, 0, 1, true> {
    template <int J>
    INLINE static void load(const uint8_t* p, Block<S>& b) {
        b.scale[0] = S::load_f16(p);
        b.min[0] = minus_f16<S>(p + 32);
        load_nibbles<S>(p + 64, b);
    }
};

template <class S>
struct Q5_0 : Shape<32, 22, 5, 4, 1, false> {
    template <int J>
    INLINE static void load(const uint8_t* p, Block<S>& b) {
        b.scale[0] = S::load_f16(p);
        load_nibbles<S>(p + 96, b);
        load_fifth_bits<S>(p + 32, b);
    }
};

template <class S>
struct Q5_1 : Shape<32, 24, 5, 0, 1, true> {
    template <int J>
    INLINE static void load(const uint8_t* p, Block<S>& b) {
        b.scale[0] = S::load_f16(p);
        b.min[0] = minus_f16<S>(p + 32);
        load_nibbles<S>(p + 128, b);
        load_fifth_bits<S>(p + 64, b);
    }
};

template <class S>
INLINE typename S::F low_nibbles(const uint8_t* p) {
    return S::to_floats(S::both(S::load_ints_u8(p), S::ints(15)));
}

template <class S>
INLINE typename S::F high_nibbles(const uint8_t* p) {
    return S::to_floats(S::template right<4>(S::load_ints_u8(p)));
}

template <class S>
struct Q2_K : Shape<256, 84, 2, 0, 2, true> {
    template <int J>
    INLINE static void load(const uint8_t* p, Block<S>& b) {
        const auto d = S::load_f16(p), dmin = S::load_f16(p + 32);
        for (int i = 0; i < 2; i++) {
            b.scale[i] = S::mul(d, low_nibbles<S>(p + 64 + R * (2 * J + i)));
            b.min[i] = S::mul(dmin, high_nibbles<S>(p + 64 + R * (2 * J + i)));
        }
        for (int g = 0; g < 8; g++)
            b.w[g] = S::template field<J % 4 * 2, 2>(S::load_bytes(p + 320 + J / 4 * 512 + 64 * g));
    }
};

template <class S>
struct Q3_K : Shape<256, 110, 3, 2, 2, false> {
    template <int GROUP>
    INLINE static typename S::F scale(const uint8_t* s) {
        const auto bytes = S::load_ints_u8(s + R * (GROUP % 8));
        const auto low = GROUP < 8 ? S::both(bytes, S::ints(15)) : S::template right<4>(bytes);
        const auto rest = S::template right<GROUP / 4 * 2>(S::load_ints_u8(s + R * (8 + GROUP % 4)));
        const auto high = S::template left<4>(S::both(rest, S::ints(3)));
        return S::sub(S::to_floats(S::either(low, high)), S::set(32));
    }
    template <int J>
    INLINE static void load(const uint8_t* p, Block<S>& b) {
        const auto d = S::load_f16(p);
        b.scale[0] = S::mul(d, scale<2 * J>(p + 32));
        b.scale[1] = S::mul(d, scale<2 * J + 1>(p + 32));
        for (int g = 0; g < 8; g++) {
            const auto low = S::template field<J % 4 * 2, 2>(S::load_bytes(p + 736 + J / 4 * 512 + 64 * g));
            const auto high = S::template field<J, 1>(S::load_bytes(p + 224 + 64 * g));
            b.w[g] = S::template join<2>(low, high);
        }
    }
};

// The six-bit scale and minimum number J of Q4_K and Q5_K: 12 bytes of each row at s.
template <class S, int J>
INLINE void load_scale_and_min(const uint8_t* p, Block<S>& b) {
    const uint8_t* s = p + 64;
    const auto d = S::load_f16(p), dmin = S::load_f16(p + 32);
    if constexpr (J < 4) {
        b.scale[0] = S::mul(d, S::to_floats(S::both(S::load_ints_u8(s + R * J), S::ints(63))));
        b.min[0] = S::mul(dmin, S::to_floats(S::both(S::load_ints_u8(s + R * (J + 4)), S::ints(63))));
    } else {
        const auto mixed = S::load_ints_u8(s + R * (J + 4));
        const auto top = [&](int at) { return S::template left<4>(S::template right<6>(S::load_ints_u8(s + R * at))); };
        b.scale[0] = S::mul(d, S::to_floats(S::either(S::both(mixed, S::ints(15)), top(J - 4))));
        b.min[0] = S::mul(dmin, S::to_floats(S::either(S::template right<4>(mixed), top(J))));
    }
}

template <class S>
struct Q4_K : Shape<256, 144, 4, 0, 1, true> {
    template <int J>
    INLINE static void load(const uint8_t* p, Block<S>& b) {
        load_scale_and_min<S, J>(p, b);
        for (int g = 0; g < 8; g++)
            b.w[g] = S::template field<J % 2 * 4, 4>(S::load_bytes(p + 256 + J / 2 * 512 + 64 * g));
    }
};

template <class S>
struct Q5_K : Shape<256, 176, 5, 0, 1, true> {
    template <int J>
    INLINE static void load(const uint8_t* p, Block<S>& b) {
        load_scale_and_min<S, J>(p, b);
        for (int g = 0; g < 8; g++) {
            const auto low = S::template field<J % 2 * 4, 4>(S::load_bytes(p + 768 + J / 2 * 512 + 64 * g));
            b.w[g] = S::template join<4>(low, S::template field<J, 1>(S::load_bytes(p + 256 + 64 * g)));
        }
    }
};

template <class S>
struct Q6_K : Shape<256, 210, 6, 5, 2, false> {
    template <int J>
    INLINE static void load(const uint8_t* p, Block<S>& b) {
        const auto d = S::load_f16(p);
        for (int i = 0; i < 2; i++) b.scale[i] = S::mul(d, S::load_i8(p + 32 + R * (2 * J + i)));
        constexpr int HALF = J / 4, QUARTER = J % 4;
        for (int g = 0; g < 8; g++) {
            const auto low = S::load_bytes(p + 1312 + HALF * 1024 + QUARTER % 2 * 512 + 64 * g);
            const auto high = S::load_bytes(p + 288 + HALF * 512 + 64 * g);
            b.w[g] = S::template join<4>(S::template field<QUARTER / 2 * 4, 4>(low),
                                         S::template field<QUARTER * 2, 2>(high));
        }
    }
};

// ---- products of integers ----

// The activation of one block: 32 numbers, their scale, and their sums.
struct ActBlock {
    const int8_t* q;
    const float *scale, *sum, *half_sum;
    const int32_t *minus, *half_minus;

    INLINE ActBlock(const Acts& acts, size_t row, size_t block)
        : q(acts.q), scale(acts.scale), sum(acts.sum), half_sum(acts.half_sum), minus(acts.minus),
          half_minus(acts.half_minus) {
        *this = after(block_at(acts, row, block));
    }
    INLINE ActBlock after(size_t blocks) const {
        ActBlock other = *this;
        other.q += 32 * blocks;
        other.scale += blocks;
        other.sum += blocks;
        other.minus += blocks;
        other.half_sum += 2 * blocks;
        other.half_minus += 2 * blocks;
        return other;
    }
};

// Where the sum Σ (w - ZERO) · q over the columns of group I starts.
template <class S, class Q, int I>
INLINE typename S::I group_start(const ActBlock& a) {
    constexpr bool WIDE = Q::BITS == 8;
    if constexpr (Q::AFFINE || (WIDE && S::WIDE_ZERO == 0)) return S::ints(0);
    return S::template left<Q::ZERO_BITS>(S::ints(Q::GROUPS == 1 ? *a.minus : a.half_minus[I]));
}

// y + the product of one block, from the sums of its groups.
template <class S, class Q>
INLINE typename S::F add_sums(typename S::F y, const typename S::I* sums, const typename S::F* scale,
                       const typename S::F* min, const ActBlock& a) {
    auto sum = S::mul(S::to_floats(sums[0]), scale[0]);
    if constexpr (Q::GROUPS == 2) sum = S::fma(S::to_floats(sums[1]), scale[1], sum);
    if constexpr (Q::AFFINE && Q::GROUPS == 1) sum = S::fnma(min[0], S::set(*a.sum), sum);
    if constexpr (Q::AFFINE && Q::GROUPS == 2) {
        sum = S::fnma(min[0], S::set(a.half_sum[0]), sum);
        sum = S::fnma(min[1], S::set(a.half_sum[1]), sum);
    }
    return S::fma(sum, S::set(*a.scale), y);
}

// The same from the weights.
template <class S, class Q>
INLINE typename S::F add_block(typename S::F y, const typename S::B* w, const typename S::F* scale, const typename S::F* min,
                        const ActBlock& a) {
    typename S::I sums[Q::GROUPS];
    sums[0] = S::template dot<Q::BITS, 8 / Q::GROUPS>(group_start<S, Q, 0>(a), w, a.q);
    if constexpr (Q::GROUPS == 2) sums[1] = S::template dot<Q::BITS, 4>(group_start<S, Q, 1>(a), w + 4, a.q + 16);
    return add_sums<S, Q>(y, sums, scale, min, a);
}

inline void prefetch(const void* at) {
#if defined(_MSC_VER) && defined(_M_X64)
    _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0);
#elif !defined(_MSC_VER)
    __builtin_prefetch(at);
#endif
}

// Bytes between what is used and what is asked for from memory: the hardware's own prefetching ends with every 4 KB.
constexpr size_t AHEAD = 4096;

// One panel times one row: the weights go from memory through registers, once.
template <class S, class Q>
void panel_times_row(const uint8_t* panel, const Acts& acts, float* y, bool add) {
    auto sum = add ? S::load(y) : S::zero();
    const size_t units = acts.columns / Q::ELEMENTS;
    const ActBlock first(acts, 0, 0);
    for (size_t u = 0; u < units; u++, panel += Q::BYTES) {
        for (int line = 0; line < Q::BYTES; line += 64) prefetch(panel + AHEAD + line);
        each<Q::ELEMENTS / 32>([&](auto j) {
            Block<S> b;
            Q::template load<j>(panel, b);
            sum = add_block<S, Q>(sum, b.w, b.scale, b.min, first.after((u * (Q::ELEMENTS / 32) + j) << acts.tall));
        });
    }
    S::store(y, sum);
}

constexpr int CHUNK = 32;  // blocks of a panel that are unpacked at a time: 16 KB of bytes, half of a first-level cache

template <class S>
struct alignas(64) Unpacked {
    uint8_t w[CHUNK][8][64];
    float scale[CHUNK][2][R], min[CHUNK][2][R];
};

template <class S, class Q>
void unpack(const uint8_t* panel, size_t units, Unpacked<S>& out) {
    for (size_t u = 0; u < units; u++, panel += Q::BYTES) {
        each<Q::ELEMENTS / 32>([&](auto j) {
            Block<S> b;
            Q::template load<j>(panel, b);
            const size_t at = u * (Q::ELEMENTS / 32) + j;
            for (int g = 0; g < 8; g++) S::store_bytes(out.w[at][g], b.w[g]);
            for (int i = 0; i < Q::GROUPS; i++) S::store(out.scale[at][i], b.scale[i]);
            for (int i = 0; i < Q::GROUPS && Q::AFFINE; i++) S::store(out.min[at][i], b.min[i]);
        });
    }
}

// The same for N rows whose blocks lie side by side: N chains of sums, since one would wait for itself.
template <class S, class Q, int N>
INLINE void add_together(const typename S::B* w, const typename S::F* scale, const typename S::F* min, const ActBlock& a,
                         typename S::F* y) {
    if constexpr (N == 1) {
        y[0] = add_block<S, Q>(y[0], w, scale, min, a);
    } else {
        constexpr int DOTS = 8 / Q::GROUPS;
        typename S::I sums[N][Q::GROUPS];
        each<Q::GROUPS>([&](auto i) INLINED {
            each<N>([&](auto t) INLINED { sums[t][i] = group_start<S, Q, i>(a.after(t)); });
            each<DOTS>([&](auto g) INLINED {
                each<N>([&](auto t) INLINED {
                    sums[t][i] = S::template dot<Q::BITS, 1>(sums[t][i], w + i * DOTS + g, a.q + 32 * t + 16 * i + 4 * g);
                });
            });
        });
        each<N>([&](auto t) INLINED { y[t] = add_sums<S, Q>(y[t], sums[t], scale, min, a.after(t)); });
    }
}

// y[t] + block k of the panel times row t of the activation, for T rows: for few registers, where the sums of all rows
// stay in them and the weights come from the first-level cache.
template <class S, class Q, int T>
void add_dots(const Unpacked<S>& panel, size_t k, const ActBlock& a, typename S::F* y) {
    typename S::I sums[Q::GROUPS][T];
    for (int i = 0; i < Q::GROUPS; i++)
        S::template dots<Q::BITS, 8 / Q::GROUPS, T>(sums[i], panel.w[k][i * 4], a.q + 16 * i, 32);
    typename S::F scale[2], min[2];
    for (int i = 0; i < Q::GROUPS; i++) scale[i] = S::load(panel.scale[k][i]);
    for (int i = 0; i < Q::GROUPS && Q::AFFINE; i++) min[i] = S::load(panel.min[k][i]);
    for (int t = 0; t < T; t++) {
        const ActBlock mine = a.after(t);
        typename S::I of_row[Q::GROUPS];
        of_row[0] = S::plus(sums[0][t], group_start<S, Q, 0>(mine));
        if constexpr (Q::GROUPS == 2) of_row[1] = S::plus(sums[1][t], group_start<S, Q, 1>(mine));
        y[t] = add_sums<S, Q>(y[t], of_row, scale, min, mine);
    }
}

template <class S, class Q, int T>
INLINE void add_blocks(const Unpacked<S>& panel, size_t k, const ActBlock& a, typename S::F* y) {
    if constexpr (S::DOTS) {
        add_dots<S, Q, T>(panel, k, a, y);
    } else {
        typename S::B w[8];
        typename S::F scale[2], min[2];
        for (int g = 0; g < 8; g++) w[g] = S::load_bytes(panel.w[k][g]);
        for (int i = 0; i < Q::GROUPS; i++) scale[i] = S::load(panel.scale[k][i]);
        for (int i = 0; i < Q::GROUPS && Q::AFFINE; i++) min[i] = S::load(panel.min[k][i]);
        constexpr int TOGETHER = T == 3 ? 3 : std::min(T, std::max(1, S::CHAINS / Q::GROUPS));
        each<T / TOGETHER>([&](auto part) INLINED {
            add_together<S, Q, TOGETHER>(w, scale, min, a.after(part * TOGETHER), y + part * TOGETHER);
        });
    }
}

// `blocks` unpacked blocks times T rows, whose integers lie side by side.
template <class S, class Q, int T>
void tile(const Unpacked<S>& panel, size_t blocks, const Acts& acts, size_t first, float* y, size_t ldy, bool add) {
    typename S::F sums[T];
    each<T>([&](auto t) INLINED { sums[t] = add ? S::load(y + t * ldy) : S::zero(); });
    ActBlock a(acts, 0, first);
    for (size_t k = 0; k < blocks; k++, a = a.after(size_t{1} << 4)) add_blocks<S, Q, T>(panel, k, a, sums);
    each<T>([&](auto t) INLINED { S::store(y + t * ldy, sums[t]); });
}

// All rows in tiles of at most T: run(tile size, first row).
template <int T, class Run>
void in_tiles(size_t rows, Run&& run) {
    size_t row = 0;
    for (; row + T <= rows; row += T) run(std::integral_constant<int, T>(), row);
    if constexpr (T == 4) {  // three query heads to a key head are common, and once is cheaper than twice
        if (rows - row == 3) return run(std::integral_constant<int, 3>(), row);
    }
    if constexpr (T > 1) {
        if (row < rows) in_tiles<T / 2>(rows - row, [&](auto size, size_t at) { run(size, row + at); });
    }
}

template <class S, class Q>
void panels_times_rows(const uint8_t* panels, size_t count, size_t panel_bytes, const Acts& acts, float* y, size_t ldy,
                       bool add) {
    Unpacked<S> part;
    const size_t blocks = acts.columns / 32, per_unit = Q::ELEMENTS / 32;
    for (size_t first = 0; first < blocks; first += CHUNK) {
        const size_t size = std::min<size_t>(CHUNK, blocks - first);
        for (size_t p = 0; p < count; p++) {
            unpack<S, Q>(panels + p * panel_bytes + first / per_unit * Q::BYTES, size / per_unit, part);
            in_tiles<S::TILE>(acts.rows, [&](auto t, size_t row) {
                tile<S, Q, t>(part, size, part_of(acts, row), first, y + row * ldy + p * R, ldy, add || first > 0);
            });
        }
    }
}

template <class S, class Q>
void matmul_integers(const uint8_t* panels, size_t count, size_t panel_bytes, const Acts& acts, float* y, size_t ldy,
                     bool add) {
    if (acts.rows != 1) return panels_times_rows<S, Q>(panels, count, panel_bytes, acts, y, ldy, add);
    for (size_t p = 0; p < count; p++) panel_times_row<S, Q>(panels + p * panel_bytes, acts, y + p * R, add);
}

// ---- products of floats ----

// Weights of one step of columns, and what they add to the sums of T rows.
template <class S>
struct StepF32 {
    static constexpr int COLUMNS = 1, BYTES = 64;
    template <int T>
    INLINE static void add(const uint8_t* p, const float* a, size_t stride, typename S::F* sums) {
        const auto w = S::load(reinterpret_cast<const float*>(p));
        each<T>([&](auto t) INLINED { sums[t] = S::fma(w, S::set(a[t * stride]), sums[t]); });
    }
};

template <class S>
struct StepF16 {
    static constexpr int COLUMNS = 1, BYTES = 32;
    template <int T>
    INLINE static void add(const uint8_t* p, const float* a, size_t stride, typename S::F* sums) {
        const auto w = S::load_f16(p);
        each<T>([&](auto t) INLINED { sums[t] = S::fma(w, S::set(a[t * stride]), sums[t]); });
    }
};

template <class S>
struct StepBF16 {
    static constexpr int COLUMNS = 2, BYTES = 64;
    template <int T>
    INLINE static void add(const uint8_t* p, const float* a, size_t stride, typename S::F* sums) {
        typename S::F first, second;
        S::load_bf16_pairs(p, first, second);
        each<T>([&](auto t) INLINED {
            sums[t] = S::fma(first, S::set(a[t * stride]), sums[t]);
            sums[t] = S::fma(second, S::set(a[t * stride + 1]), sums[t]);
        });
    }
};

template <class S>
struct StepI8 {
    static constexpr int COLUMNS = 1, BYTES = 16;
    template <int T>
    INLINE static void add(const uint8_t* p, const float* a, size_t stride, typename S::F* sums) {
        const auto w = S::load_i8(p);
        each<T>([&](auto t) INLINED { sums[t] = S::fma(w, S::set(a[t * stride]), sums[t]); });
    }
};

template <class S>
struct StepPairs {
    static constexpr int COLUMNS = 2, BYTES = 64;
    template <int T>
    INLINE static void add(const uint8_t* p, const uint16_t* a, size_t stride, typename S::F* sums) {
        each<T>([&](auto t) INLINED { sums[t] = S::dot_bf16(sums[t], p, a + t * stride); });
    }
};

// P panels times T rows. With few rows several panels go side by side, since one chain of sums would wait for itself.
template <class S, class Step, int T, int P, class A>
void float_tile(const uint8_t* panels, size_t panel_bytes, const A* a, size_t stride, size_t columns, float* y,
                size_t ldy, bool add) {
    typename S::F sums[P][T];
    each<P * T>([&](auto i) INLINED {
        sums[i / T][i % T] = add ? S::load(y + i % T * ldy + i / T * R) : S::zero();
    });
    for (size_t k = 0; k < columns; k += Step::COLUMNS, panels += Step::BYTES)
        each<P>([&](auto p) INLINED { Step::template add<T>(panels + p * panel_bytes, a + k, stride, sums[p]); });
    each<P * T>([&](auto i) INLINED { S::store(y + i % T * ldy + i / T * R, sums[i / T][i % T]); });
}

template <class S, class Step, class A>
void matmul_floats(const uint8_t* panels, size_t count, size_t panel_bytes, const Acts& acts, const A* a, float* y,
                   size_t ldy, bool add) {
    constexpr int SOME = 4;
    const size_t stride = acts.stride, columns = acts.columns;
    for (size_t p = 0; p < count; p += SOME, panels += SOME * panel_bytes, y += SOME * R) {
        const size_t there = std::min<size_t>(SOME, count - p);
        in_tiles<S::TILE>(acts.rows, [&](auto t, size_t row) {
            const A* from = a + row * stride;
            float* to = y + row * ldy;
            if (t * SOME <= S::TILE && there == SOME)
                return float_tile<S, Step, t, (t * SOME <= S::TILE ? SOME : 1)>(panels, panel_bytes, from, stride,
                                                                               columns, to, ldy, add);
            for (size_t i = 0; i < there; i++)
                float_tile<S, Step, t, 1>(panels + i * panel_bytes, panel_bytes, from, stride, columns, to + i * R,
                                          ldy, add);
        });
    }
}

template <class S>
void matmul_f32(const uint8_t* panels, size_t count, size_t bytes, const Acts& acts, float* y, size_t ldy, bool add) {
    matmul_floats<S, StepF32<S>>(panels, count, bytes, acts, acts.floats, y, ldy, add);
}

template <class S>
void matmul_f16(const uint8_t* panels, size_t count, size_t bytes, const Acts& acts, float* y, size_t ldy, bool add) {
    matmul_floats<S, StepF16<S>>(panels, count, bytes, acts, acts.floats, y, ldy, add);
}

template <class S>
void matmul_i8(const uint8_t* panels, size_t count, size_t bytes, const Acts& acts, float* y, size_t ldy, bool add) {
    matmul_floats<S, StepI8<S>>(panels, count, bytes, acts, acts.floats, y, ldy, add);
}

template <class S>
void matmul_bf16(const uint8_t* panels, size_t count, size_t bytes, const Acts& acts, float* y, size_t ldy, bool add) {
    if constexpr (S::BF16)
        matmul_floats<S, StepPairs<S>>(panels, count, bytes, acts, acts.bfloats, y, ldy, add);
    else
        matmul_floats<S, StepBF16<S>>(panels, count, bytes, acts, acts.floats, y, ldy, add);
}

// ---- everything that is not a product ----

// The 16 numbers at x + i; beyond n they are `rest`.
template <class S>
typename S::F load_some(const float* x, size_t i, size_t n, float rest = 0) {
    if (i + R <= n) return S::load(x + i);
    float part[R];
    for (int j = 0; j < R; j++) part[j] = i + j < n ? x[i + j] : rest;
    return S::load(part);
}

template <class S>
void store_some(float* x, size_t i, size_t n, typename S::F value) {
    if (i + R <= n) return S::store(x + i, value);
    float part[R];
    S::store(part, value);
    std::memcpy(x + i, part, (n - i) * sizeof(float));
}

template <class S>
void quantize_block(const float* x, const Acts& acts, size_t row, size_t block) {
    const auto a = S::load(x), b = S::load(x + R);
    const float most = S::largest(S::max(S::abs(a), S::abs(b)));
    const float scale = most / 127.0f, inverse = most > 0 ? 127.0f / most : 0.0f;
    const size_t at = block_at(acts, row, block);
    int8_t* q = acts.q + 32 * at;
    acts.scale[at] = scale;
    S::store_i8(q, S::mul(a, S::set(inverse)));
    S::store_i8(q + R, S::mul(b, S::set(inverse)));
    int sums[2] = {};
    if constexpr (requires { S::sums_of_halves(q, sums); })
        S::sums_of_halves(q, sums);
    else
        for (int i = 0; i < 32; i++) sums[i / R] += q[i];
    for (int i = 0; i < 2; i++) {
        acts.half_sum[2 * at + i] = static_cast<float>(sums[i]);
        acts.half_minus[2 * at + i] = -sums[i];
    }
    acts.sum[at] = static_cast<float>(sums[0] + sums[1]);
    acts.minus[at] = -(sums[0] + sums[1]);
}

template <class S>
void prepare(const float* x, unsigned forms, Acts& acts, size_t row) {
    const size_t n = acts.columns, begin = row * acts.stride;
    if ((forms & FLOATS) && acts.floats + begin != x) std::memcpy(acts.floats + begin, x, n * sizeof(float));
    for (size_t i = 0; i < n && (forms & BFLOATS); i += R) {  // rows are padded, so whole vectors may be written
        S::store_bf16(acts.bfloats + begin + i, load_some<S>(x, i, n));
    }
    for (size_t i = 0; i < n && (forms & INTEGERS); i += 32) {
        float part[32] = {};
        const bool whole = i + 32 <= n;
        if (!whole) std::memcpy(part, x + i, (n - i) * sizeof(float));
        quantize_block<S>(whole ? x + i : part, acts, row, i / 32);
    }
}

template <class S>
void scale_row(const float* x, size_t n, float mean, float factor, const float* weight, const float* bias, float* out) {
    for (size_t i = 0; i < n; i += R) {
        auto y = S::mul(S::sub(load_some<S>(x, i, n), S::set(mean)), S::set(factor));
        if (weight) y = S::mul(y, load_some<S>(weight, i, n));
        if (bias) y = S::add(y, load_some<S>(bias, i, n));
        store_some<S>(out, i, n, y);
    }
}

template <class S>
float squares(const float* x, size_t n, float mean) {
    auto sum = S::zero();
    for (size_t i = 0; i < n; i += R) {
        const auto d = S::sub(load_some<S>(x, i, n, mean), S::set(mean));
        sum = S::fma(d, d, sum);
    }
    return S::sum(sum);
}

template <class S>
void rms_norm(const float* x, size_t n, float eps, const float* weight, const float* bias, float* out) {
    const float factor = 1.0f / std::sqrt(squares<S>(x, n, 0) / static_cast<float>(n) + eps);
    scale_row<S>(x, n, 0, factor, weight, bias, out);
}

template <class S>
void layer_norm(const float* x, size_t n, float eps, const float* weight, const float* bias, float* out) {
    auto sum = S::zero();
    for (size_t i = 0; i < n; i += R) sum = S::add(sum, load_some<S>(x, i, n));
    const float mean = S::sum(sum) / static_cast<float>(n);
    const float factor = 1.0f / std::sqrt(squares<S>(x, n, mean) / static_cast<float>(n) + eps);
    scale_row<S>(x, n, mean, factor, weight, bias, out);
}

template <class S>
void rotate(float* x, const float* cos, const float* sin, size_t pairs) {
    for (size_t i = 0; i < pairs; i += R) {
        const auto first = load_some<S>(x, i, pairs), second = load_some<S>(x + pairs, i, pairs);
        const auto c = load_some<S>(cos, i, pairs), s = load_some<S>(sin, i, pairs);
        store_some<S>(x, i, pairs, S::sub(S::mul(first, c), S::mul(second, s)));
        store_some<S>(x + pairs, i, pairs, S::add(S::mul(second, c), S::mul(first, s)));
    }
}

// e^x: 2^n · e^r with |r| <= ln 2 / 2, the latter by its Taylor series; relative error below 2e-7. Below -87 it is 0.
template <class S>
typename S::F exponential(typename S::F x) {
    const auto low = S::set(-87.0f);
    const auto safe = S::min(S::max(x, low), S::set(88.0f));
    const auto n = S::round(S::mul(safe, S::set(1.44269504f)));
    auto r = S::fnma(n, S::set(0.693359375f), safe);
    r = S::fnma(n, S::set(-2.12194440e-4f), r);
    auto y = S::set(1.0f / 5040);
    for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = S::fma(y, r, S::set(c));
    return S::where_less(x, low, S::zero(), S::mul(y, S::power_of_two(n)));
}

// 1 - 2 / (e^2x + 1); for small x, where that cancels, the odd series.
template <class S>
typename S::F hyperbolic_tangent(typename S::F x) {
    const auto e = exponential<S>(S::min(S::add(x, x), S::set(40.0f)));
    const auto large = S::sub(S::set(1), S::div(S::set(2), S::add(e, S::set(1))));
    const auto square = S::mul(x, x);
    auto series = S::set(62.0f / 2835);
    for (const float c : {-17.0f / 315, 2.0f / 15, -1.0f / 3, 1.0f}) series = S::fma(series, square, S::set(c));
    return S::where_less(S::abs(x), S::set(0.25f), S::mul(x, series), large);
}

// erf by Abramowitz and Stegun 7.1.26 for large x (error below 2e-7 there), by its series for small.
template <class S>
typename S::F error_function(typename S::F x) {
    const auto size = S::abs(x);
    const auto t = S::div(S::set(1), S::fma(S::set(0.3275911f), size, S::set(1)));
    auto y = S::set(1.061405429f);
    for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) y = S::fma(y, t, S::set(c));
    const auto tail = S::mul(S::mul(y, t), exponential<S>(S::sub(S::zero(), S::mul(x, x))));
    auto large = S::sub(S::set(1), tail);
    large = S::where_less(x, S::zero(), S::sub(S::zero(), large), large);
    const auto square = S::mul(x, x);
    auto series = S::set(1.0f / 9360);  // Σ (-1)^n x^2n / (n! (2n + 1))
    for (const float c : {-1.0f / 1320, 1.0f / 216, -1.0f / 42, 0.1f, -1.0f / 3, 1.0f})
        series = S::fma(series, square, S::set(c));
    const auto small = S::mul(S::mul(x, series), S::set(1.12837917f));
    return S::where_less(size, S::set(0.5f), small, large);
}

template <class S>
typename S::F activated(Activation kind, typename S::F x) {
    if (kind == Activation::SILU)
        return S::div(x, S::add(S::set(1), exponential<S>(S::sub(S::zero(), x))));
    const auto half = S::mul(x, S::set(0.5f));
    if (kind == Activation::GELU)
        return S::mul(half, S::add(S::set(1), error_function<S>(S::mul(x, S::set(0.70710678f)))));
    const auto cube = S::mul(S::mul(x, x), x);
    const auto inner = S::mul(S::set(0.79788456f), S::fma(S::set(0.044715f), cube, x));
    return S::mul(half, S::add(S::set(1), hyperbolic_tangent<S>(inner)));
}

template <class S>
void activate(Activation kind, const float* gate, const float* up, size_t n, float* out) {
    for (size_t i = 0; i < n; i += R) {
        auto y = activated<S>(kind, load_some<S>(gate, i, n));
        if (up) y = S::mul(y, load_some<S>(up, i, n));
        store_some<S>(out, i, n, y);
    }
}

template <class S>
void scale_and_cap(float* x, size_t n, float scale, float cap) {
    for (size_t i = 0; i < n; i += R) {
        auto y = S::mul(load_some<S>(x, i, n), S::set(scale));
        if (cap != 0) y = S::mul(hyperbolic_tangent<S>(S::div(y, S::set(cap))), S::set(cap));
        store_some<S>(x, i, n, y);
    }
}

template <class S>
float largest(const float* x, size_t n) {
    auto most = S::set(-INFINITY);
    for (size_t i = 0; i < n; i += R) most = S::max(load_some<S>(x, i, n, -INFINITY), most);
    return S::largest(most);
}

template <class S>
float exponentials(float* x, size_t n, float peak) {
    auto sum = S::zero();
    for (size_t i = 0; i < n; i += R) {
        const auto y = exponential<S>(S::sub(S::load(x + i), S::set(peak)));
        S::store(x + i, y);
        sum = S::add(sum, y);
    }
    return S::sum(sum);
}

// Asks for memory that is soon read.
inline void ask_for(const uint8_t* at, size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) prefetch(at + line);
}

template <class S>
void add(const float* x, size_t n, float* to) {
    for (size_t i = 0; i < n; i += R)
        store_some<S>(to, i, n, S::add(load_some<S>(to, i, n), load_some<S>(x, i, n)));
}

template <class S>
void blend(const float* x, size_t n, float share, float keep, float* to) {
    for (size_t i = 0; i < n; i += R) {
        const auto kept = S::mul(load_some<S>(to, i, n), S::set(keep));
        store_some<S>(to, i, n, S::fma(load_some<S>(x, i, n), S::set(share), kept));
    }
}

}  // namespace
}  // namespace geode

#include "head.inl"

namespace geode {
namespace {

template <class S>
constexpr Kernels kernels_of(const char* isa) {
    constexpr Form PAIRS = S::BF16 ? BFLOATS : FLOATS;
    return {isa,
            {FLOATS, FLOATS, PAIRS, INTEGERS, INTEGERS, INTEGERS, INTEGERS, INTEGERS, INTEGERS, INTEGERS, INTEGERS,
             INTEGERS, INTEGERS},
            {matmul_f32<S>, matmul_f16<S>, matmul_bf16<S>, matmul_integers<S, Q8_0<S>>, matmul_integers<S, Q4_0<S>>,
             matmul_integers<S, Q4_1<S>>, matmul_integers<S, Q5_0<S>>, matmul_integers<S, Q5_1<S>>,
             matmul_integers<S, Q2_K<S>>, matmul_integers<S, Q3_K<S>>, matmul_integers<S, Q4_K<S>>,
             matmul_integers<S, Q5_K<S>>, matmul_integers<S, Q6_K<S>>},
            matmul_i8<S>,
            prepare<S>,
            rms_norm<S>,
            layer_norm<S>,
            rotate<S>,
            activate<S>,
            scale_and_cap<S>,
            largest<S>,
            exponentials<S>,
            add<S>,
            blend<S>,
            ask_for,
            head_bounds<S>,
            head_product<S>,
            head_rows<S>,
            head_panel<S>};
}

}  // namespace
}  // namespace geode
