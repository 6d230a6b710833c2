// Vectors of AVX2 (with FMA, F16C and perhaps VNNI) under the names that kernels.inl uses: pairs of registers.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "half.h"

namespace geode {
namespace {

template <bool VNNI>
struct Avx2 {
    static constexpr int TILE = 4;         // rows of an activation that one pass over a panel serves
    static constexpr int CHAINS = 1;      // of products that run side by side
    static constexpr bool DOTS = true;     // has `dots`, because the weights of a block fill its registers
    static constexpr bool BF16 = false;    // multiplies pairs of bfloat16
    static constexpr int WIDE_ZERO = 128;  // what `dot` of eight bits leaves to be taken away

    struct F {  // 16 floats: one for each row of a panel
        __m256 low, high;
    };
    struct I {  // 16 int32, or 64 bytes: four neighbours of each row
        __m256i low, high;
    };
    using B = I;

    static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static F load(const float* at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
    static void store(float* at, F x) {
        _mm256_storeu_ps(at, x.low);
        _mm256_storeu_ps(at + 8, x.high);
    }
    static __m128i load_16(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }
    static __m128i load_8(const void* at) { return _mm_loadl_epi64(static_cast<const __m128i*>(at)); }
    static F load_f16(const uint8_t* at) { return {_mm256_cvtph_ps(load_16(at)), _mm256_cvtph_ps(load_16(at + 16))}; }
    static F load_bf16(const uint16_t* at) {
        const auto eight = [](const uint16_t* at) {
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16(at)), 16));
        };
        return {eight(at), eight(at + 8)};
    }
    static F load_i8(const uint8_t* at) {
        return to_floats({_mm256_cvtepi8_epi32(load_8(at)), _mm256_cvtepi8_epi32(load_8(at + 8))});
    }
    static F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
    static F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
    static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
    static F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
    static F fma(F a, F b, F c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    static F fnma(F a, F b, F c) {
        return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
    }
    static F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
    static F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
    static F abs(F a) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
    }
    static F round(F a) {
        constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        return {_mm256_round_ps(a.low, NEAREST), _mm256_round_ps(a.high, NEAREST)};
    }
    static F power_of_two(F n) {  // n a whole number from -126 to 127
        return {power_of_two(n.low), power_of_two(n.high)};
    }
    static F where_less(F a, F b, F yes, F no) {
        return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
                _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
    }
    static float sum(F a) {
        const __m256 eight = _mm256_add_ps(a.low, a.high);
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    static float largest(F a) {
        const __m256 eight = _mm256_max_ps(a.low, a.high);
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }
    static void store_bf16(uint16_t* at, F x) {
        float lanes[16];
        store(lanes, x);
        for (int i = 0; i < 16; i++) at[i] = to_bfloat(lanes[i]);
    }
    static void store_i8(int8_t* at, F x) {  // rounded to nearest even
        const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
        const __m256i in_order = _mm256_permute4x64_epi64(words, 0b11011000);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_packs_epi16(_mm256_castsi256_si128(in_order),
                                                                         _mm256_extracti128_si256(in_order, 1)));
    }

    static I ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    static I load_ints_u8(const uint8_t* at) {
        return {_mm256_cvtepu8_epi32(load_8(at)), _mm256_cvtepu8_epi32(load_8(at + 8))};
    }
    template <int N>
    static I left(I a) {
        return {_mm256_slli_epi32(a.low, N), _mm256_slli_epi32(a.high, N)};
    }
    template <int N>
    static I right(I a) {
        return {_mm256_srli_epi32(a.low, N), _mm256_srli_epi32(a.high, N)};
    }
    static I both(I a, I b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
    static I either(I a, I b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
    static I plus(I a, I b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
    static F to_floats(I a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }

    static __m256i load_32(const uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
    static B load_bytes(const uint8_t* at) { return {load_32(at), load_32(at + 32)}; }
    static void store_bytes(uint8_t* at, B x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x.low);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + 32), x.high);
    }
    // 16 bytes at `offset` of each of 16 rows -> the first four of all rows, the second four, …: 256 bytes.
    static void collect(const uint8_t* const* rows, size_t offset, uint8_t* to) {
        for (int half = 0; half < 2; half++, rows += 8, to += 32) {
            const auto rows_of = [&](int i) {  // i and i + 4
                const auto* low = reinterpret_cast<const __m128i*>(rows[i] + offset);
                const auto* high = reinterpret_cast<const __m128i*>(rows[i + 4] + offset);
                return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
            };
            const __m256i x0 = rows_of(0), x1 = rows_of(1), x2 = rows_of(2), x3 = rows_of(3);
            const __m256i a = _mm256_unpacklo_epi32(x0, x1), b = _mm256_unpacklo_epi32(x2, x3);
            const __m256i c = _mm256_unpackhi_epi32(x0, x1), d = _mm256_unpackhi_epi32(x2, x3);
            const __m256i out[4] = {_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b),
                                    _mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d)};
            for (int g = 0; g < 4; g++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 64 * g), out[g]);
        }
    }
    // Bits N … N + BITS - 1 of every byte.
    template <int N, int BITS>
    static B field(B x) {
        const __m256i mask = _mm256_set1_epi8((1 << BITS) - 1);
        if constexpr (N == 0) return {_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask)};
        return {_mm256_and_si256(_mm256_srli_epi16(x.low, N), mask),
                _mm256_and_si256(_mm256_srli_epi16(x.high, N), mask)};
    }
    // low | high << N; no bit of `high` leaves its byte.
    template <int N>
    static B join(B low, B high) {
        return {_mm256_or_si256(low.low, _mm256_slli_epi16(high.low, N)),
                _mm256_or_si256(low.high, _mm256_slli_epi16(high.high, N))};
    }

    // acc + Σ over G groups of four: unsigned bytes of BITS bits times signed activations. Of eight bits, see WIDE_ZERO.
    template <int BITS, int G>
    static I dot(I acc, const B* w, const int8_t* a) {
        if constexpr (VNNI) {
            for (int g = 0; g < G; g++) acc = {vnni(acc.low, w[g].low, four(a, g)), vnni(acc.high, w[g].high, four(a, g))};
            return acc;
        } else if constexpr (BITS == 8) {
            return wide_dot<G>(acc, w, a);
        } else {
            constexpr int RUN = G < run(BITS) ? G : run(BITS);
            for (int g = 0; g < G; g += RUN) acc = add_words(acc, words<RUN>(w + g, a + 4 * g));
            return acc;
        }
    }
    // The sums alone for T rows of activations `stride` apart; the weights come from memory.
    template <int BITS, int G, int T>
    static void dots(I* acc, const uint8_t* w, const int8_t* a, size_t stride) {
        if constexpr (VNNI) {
            __m256i low[T], high[T];
            for (int t = 0; t < T; t++) low[t] = high[t] = _mm256_setzero_si256();
            for (int g = 0; g < G; g++) {
                const __m256i x = load_32(w + 64 * g), y = load_32(w + 64 * g + 32);
                for (int t = 0; t < T; t++) {
                    const __m256i z = four(a + t * stride, g);
                    low[t] = vnni(low[t], x, z), high[t] = vnni(high[t], y, z);
                }
            }
            for (int t = 0; t < T; t++) acc[t] = {low[t], high[t]};
        } else if constexpr (BITS == 8) {
            for (int half = 0; half < 2; half++) wide_dots<G, T>(acc, w + 32 * half, a, stride, half);
        } else {
            constexpr int RUN = G < run(BITS) ? G : run(BITS);
            for (int g = 0; g < G; g += RUN) {
                I sums[T];
                words<RUN, T>(sums, w + 64 * g, a + 4 * g, stride);
                for (int t = 0; t < T; t++) acc[t] = g ? add_words(acc[t], sums[t]) : add_words(ints(0), sums[t]);
            }
        }
    }
    // The first and the second of 16 pairs of bfloat16.
    static void load_bf16_pairs(const uint8_t* at, F& first, F& second) {
        const B x = load_bytes(at);
        const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000));
        first = {_mm256_castsi256_ps(_mm256_slli_epi32(x.low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.high, 16))};
        second = {_mm256_castsi256_ps(_mm256_and_si256(x.low, mask)),
                  _mm256_castsi256_ps(_mm256_and_si256(x.high, mask))};
    }

private:
    static __m256 power_of_two(__m256 n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
    }
    static __m256i four(const int8_t* a, int g) {
        int32_t four;
        std::memcpy(&four, a + 4 * g, 4);
        return _mm256_set1_epi32(four);
    }
    static __m256i vnni([[maybe_unused]] __m256i acc, [[maybe_unused]] __m256i w, [[maybe_unused]] __m256i a) {
#if defined(__AVXVNNI__)
        return _mm256_dpbusd_avx_epi32(acc, w, a);
#else
        return acc;
#endif
    }

    // Left alone, compilers do all products first and their sums later, through memory.
    static __m256i now(__m256i x) {
#if defined(__GNUC__)
        __asm__("" : "+x"(x));
#endif
        return x;
    }

    // How many groups of products of pairs 16 bits can hold: 2 · 127 · (2^BITS - 1) each.
    static constexpr int run(int bits) { return bits <= 4 ? 8 : bits == 5 ? 4 : 2; }

    template <int G>
    static I words(const B* w, const int8_t* a) {
        I sum = {_mm256_maddubs_epi16(w[0].low, four(a, 0)), _mm256_maddubs_epi16(w[0].high, four(a, 0))};
        for (int g = 1; g < G; g++) {
            sum.low = _mm256_add_epi16(sum.low, _mm256_maddubs_epi16(w[g].low, four(a, g)));
            sum.high = _mm256_add_epi16(sum.high, _mm256_maddubs_epi16(w[g].high, four(a, g)));
        }
        return sum;
    }
    template <int G, int T>
    static void words(I* sums, const uint8_t* w, const int8_t* a, size_t stride) {
        __m256i low[T], high[T];
        for (int t = 0; t < T; t++) low[t] = high[t] = _mm256_setzero_si256();
        for (int g = 0; g < G; g++) {
            const __m256i x = load_32(w + 64 * g), y = load_32(w + 64 * g + 32);
            for (int t = 0; t < T; t++) {
                const __m256i z = four(a + t * stride, g);
                low[t] = now(_mm256_add_epi16(low[t], _mm256_maddubs_epi16(x, z)));
                high[t] = now(_mm256_add_epi16(high[t], _mm256_maddubs_epi16(y, z)));
            }
        }
        for (int t = 0; t < T; t++) sums[t] = {low[t], high[t]};
    }
    static I add_words(I acc, I words, int16_t times = 1) {
        const __m256i factor = _mm256_set1_epi16(times);
        return {_mm256_add_epi32(acc.low, _mm256_madd_epi16(words.low, factor)),
                _mm256_add_epi32(acc.high, _mm256_madd_epi16(words.high, factor))};
    }
    // Eight bits as twice four.
    template <int G>
    static I wide_dot(I acc, const B* w, const int8_t* a) {
        B low[G], high[G];
        for (int g = 0; g < G; g++) low[g] = field<0, 4>(w[g]), high[g] = field<4, 4>(w[g]);
        return add_words(add_words(acc, words<G>(low, a)), words<G>(high, a), 16);
    }
    // Of eight rows of the panel: `half` says which.
    template <int G, int T>
    static void wide_dots(I* acc, const uint8_t* w, const int8_t* a, size_t stride, int half) {
        const __m256i mask = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1), sixteen = _mm256_set1_epi16(16);
        __m256i lows[T], highs[T];
        for (int t = 0; t < T; t++) lows[t] = highs[t] = _mm256_setzero_si256();
        for (int g = 0; g < G; g++) {
            const __m256i x = load_32(w + 64 * g), low = _mm256_and_si256(x, mask);
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(x, 4), mask);
            for (int t = 0; t < T; t++) {
                const __m256i z = four(a + t * stride, g);
                lows[t] = now(_mm256_add_epi16(lows[t], _mm256_maddubs_epi16(low, z)));
                highs[t] = now(_mm256_add_epi16(highs[t], _mm256_maddubs_epi16(high, z)));
            }
        }
        for (int t = 0; t < T; t++) {
            const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(lows[t], one), _mm256_madd_epi16(highs[t], sixteen));
            (half ? acc[t].high : acc[t].low) = sum;
        }
    }
};

}  // namespace
}  // namespace geode
