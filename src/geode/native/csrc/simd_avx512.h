// Vectors of AVX-512 (F, BW, DQ, VL, VNNI and perhaps BF16) under the names that kernels.inl uses.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "half.h"

namespace geode {
namespace {

template <bool HAS_BF16>
struct Avx512 {
    static constexpr int TILE = 16;         // rows of an activation that one pass over a panel serves
    static constexpr int CHAINS = 4;      // of products that run side by side
    static constexpr bool DOTS = false;     // has `dots`, because the weights of a block fill its registers
    static constexpr bool BF16 = HAS_BF16;  // multiplies pairs of bfloat16
    static constexpr int WIDE_ZERO = 128;   // what `dot` of eight bits leaves to be taken away

    using F = __m512;   // 16 floats: one for each row of a panel
    using I = __m512i;  // 16 int32
    using B = __m512i;  // 64 bytes: four neighbours of each row

    static F zero() { return _mm512_setzero_ps(); }
    static F set(float x) { return _mm512_set1_ps(x); }
    static F load(const float* at) { return _mm512_loadu_ps(at); }
    static void store(float* at, F x) { _mm512_storeu_ps(at, x); }
    static F load_f16(const uint8_t* at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at)); }
    static F load_bf16(const uint16_t* at) {
        const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at));
        return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    }
    static F load_i8(const uint8_t* at) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)at)));
    }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }    // a·b + c
    static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a·b
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F abs(F a) { return _mm512_abs_ps(a); }
    static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static F power_of_two(F n) { return _mm512_scalef_ps(set(1.0f), n); }  // n a whole number
    static F where_less(F a, F b, F yes, F no) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
    }
    static float sum(F a) { return _mm512_reduce_add_ps(a); }
    static float largest(F a) { return _mm512_reduce_max_ps(a); }
    static void store_bf16(uint16_t* at, F x) {
        if constexpr (HAS_BF16) {
            const __m256bh y = _mm512_cvtneps_pbh(x);
            std::memcpy(at, &y, 32);
        } else {
            float lanes[16];
            store(lanes, x);
            for (int i = 0; i < 16; i++) at[i] = to_bfloat(lanes[i]);
        }
    }
    static void store_i8(int8_t* at, F x) {  // rounded to nearest even
        _mm_storeu_si128((__m128i*)at, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
    }

    // The sums of 32 int8 by sixteen.
    static void sums_of_halves(const int8_t* at, int* sums) {
        const __m256i x = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)at), _mm256_set1_epi8(-128));
        const __m256i eights = _mm256_sad_epu8(x, _mm256_setzero_si256());
        const __m256i halves = _mm256_add_epi64(eights, _mm256_srli_si256(eights, 8));
        sums[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(halves)) - 16 * 128;
        sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(halves, 1)) - 16 * 128;
    }

    static I ints(int32_t x) { return _mm512_set1_epi32(x); }
    static I load_ints_u8(const uint8_t* at) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)at)); }
    template <int N>
    static I left(I a) {
        return _mm512_slli_epi32(a, N);
    }
    template <int N>
    static I right(I a) {
        return _mm512_srli_epi32(a, N);
    }
    static I both(I a, I b) { return _mm512_and_si512(a, b); }
    static I either(I a, I b) { return _mm512_or_si512(a, b); }
    static F to_floats(I a) { return _mm512_cvtepi32_ps(a); }

    static B load_bytes(const uint8_t* at) { return _mm512_loadu_si512(at); }
    static void store_bytes(uint8_t* at, B x) { _mm512_storeu_si512(at, x); }
    // Bits N … N + BITS - 1 of every byte.
    template <int N, int BITS>
    static B field(B x) {
        B moved = N == 0 ? x : _mm512_srli_epi16(x, N);
        return _mm512_and_si512(moved, _mm512_set1_epi8((1 << BITS) - 1));
    }
    // low | high << N; no bit of `high` leaves its byte.
    template <int N>
    static B join(B low, B high) {
        return _mm512_or_si512(low, _mm512_slli_epi16(high, N));
    }

    // 16 bytes at `offset` of each of 16 rows -> the first four of all rows, the second four, …: 256 bytes.
    static void collect(const uint8_t* const* rows, size_t offset, uint8_t* to) {
        const auto piece = [&](int row) { return _mm_loadu_si128((const __m128i*)(rows[row] + offset)); };
        __m512i x[4];
        for (int i = 0; i < 4; i++) {  // rows i, i + 4, i + 8, i + 12
            x[i] = _mm512_inserti32x4(_mm512_castsi128_si512(piece(i)), piece(i + 4), 1);
            x[i] = _mm512_inserti32x4(_mm512_inserti32x4(x[i], piece(i + 8), 2), piece(i + 12), 3);
        }
        const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpacklo_epi32(x[2], x[3]);
        const __m512i c = _mm512_unpackhi_epi32(x[0], x[1]), d = _mm512_unpackhi_epi32(x[2], x[3]);
        store_bytes(to, _mm512_unpacklo_epi64(a, b));
        store_bytes(to + 64, _mm512_unpackhi_epi64(a, b));
        store_bytes(to + 128, _mm512_unpacklo_epi64(c, d));
        store_bytes(to + 192, _mm512_unpackhi_epi64(c, d));
    }

    // acc + Σ over G groups of four: unsigned bytes of BITS bits times signed activations. Of eight bits, see WIDE_ZERO.
    template <int BITS, int G>
    static I dot(I acc, const B* w, const int8_t* a) {
        for (int g = 0; g < G; g++) {
            int32_t four;
            std::memcpy(&four, a + 4 * g, 4);
            acc = _mm512_dpbusd_epi32(acc, w[g], _mm512_set1_epi32(four));
        }
        return acc;
    }
    // acc + products of 16 pairs of bfloat16 with one pair.
    static F dot_bf16(F acc, const uint8_t* w, const uint16_t* a) {
        int32_t two;
        std::memcpy(&two, a, 4);
        return _mm512_dpbf16_ps(acc, (__m512bh)load_bytes(w), (__m512bh)_mm512_set1_epi32(two));
    }
    // The first and the second of 16 pairs of bfloat16.
    static void load_bf16_pairs(const uint8_t* at, F& first, F& second) {
        B x = load_bytes(at);
        first = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
        second = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
    }
};

}  // namespace
}  // namespace geode
