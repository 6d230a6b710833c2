// Vectors of 64-bit ARM (with dot products and perhaps I8MM) under the names that kernels.inl uses: four registers each.
#pragma once
#include <arm_neon.h>

#include <cstdint>

#include "half.h"

namespace geode {
namespace {

template <bool I8MM>
struct Neon {
    static constexpr int TILE = 4;                    // rows of an activation that one pass over a panel serves
    static constexpr bool DOTS = true;                // has `dots`, because the weights of a block fill its registers
    static constexpr bool BF16 = false;               // multiplies pairs of bfloat16
    static constexpr int WIDE_ZERO = I8MM ? 128 : 0;  // what `dot` of eight bits leaves to be taken away

    struct F {  // 16 floats: one for each row of a panel
        float32x4_t part[4];
    };
    struct I {  // 16 int32
        int32x4_t part[4];
    };
    struct B {  // 64 bytes: four neighbours of each row
        uint8x16_t part[4];
    };

    template <class V, class Get>
    INLINE static V make(Get&& get) {
        return {{get(0), get(1), get(2), get(3)}};
    }

    static F zero() { return set(0); }
    INLINE static F set(float x) {
        return make<F>([&](int) INLINED { return vdupq_n_f32(x); });
    }
    INLINE static F load(const float* at) {
        return make<F>([&](int p) INLINED { return vld1q_f32(at + 4 * p); });
    }
    INLINE static void store(float* at, F x) {
        for (int p = 0; p < 4; p++) vst1q_f32(at + 4 * p, x.part[p]);
    }
    INLINE static F load_f16(const uint8_t* at) {
        return make<F>([&](int p) INLINED { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at + 8 * p))); });
    }
    INLINE static F load_i8(const uint8_t* at) {
        const int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(at));
        const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
        return to_floats({{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
                           vmovl_s16(vget_high_s16(high))}});
    }
    INLINE static F add(F a, F b) {
        return make<F>([&](int p) INLINED { return vaddq_f32(a.part[p], b.part[p]); });
    }
    INLINE static F sub(F a, F b) {
        return make<F>([&](int p) INLINED { return vsubq_f32(a.part[p], b.part[p]); });
    }
    INLINE static F mul(F a, F b) {
        return make<F>([&](int p) INLINED { return vmulq_f32(a.part[p], b.part[p]); });
    }
    INLINE static F div(F a, F b) {
        return make<F>([&](int p) INLINED { return vdivq_f32(a.part[p], b.part[p]); });
    }
    INLINE static F fma(F a, F b, F c) {
        return make<F>([&](int p) INLINED { return vfmaq_f32(c.part[p], a.part[p], b.part[p]); });
    }
    INLINE static F fnma(F a, F b, F c) {
        return make<F>([&](int p) INLINED { return vfmsq_f32(c.part[p], a.part[p], b.part[p]); });
    }
    // Of a NaN and a number the second, as on x86.
    static F max(F a, F b) { return where_less(b, a, a, b); }
    static F min(F a, F b) { return where_less(a, b, a, b); }
    INLINE static F abs(F a) {
        return make<F>([&](int p) INLINED { return vabsq_f32(a.part[p]); });
    }
    INLINE static F round(F a) {
        return make<F>([&](int p) INLINED { return vrndnq_f32(a.part[p]); });
    }
    INLINE static F power_of_two(F n) {  // n a whole number from -126 to 127
        return make<F>([&](int p) INLINED {
            return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.part[p]), vdupq_n_s32(127)), 23));
        });
    }
    INLINE static F where_less(F a, F b, F yes, F no) {
        return make<F>([&](int p) INLINED {
            return vbslq_f32(vcltq_f32(a.part[p], b.part[p]), yes.part[p], no.part[p]);
        });
    }
    static float sum(F a) {
        return vaddvq_f32(vaddq_f32(vaddq_f32(a.part[0], a.part[2]), vaddq_f32(a.part[1], a.part[3])));
    }
    static float largest(F a) {
        return vmaxnmvq_f32(
            vmaxnmq_f32(vmaxnmq_f32(a.part[0], a.part[2]), vmaxnmq_f32(a.part[1], a.part[3])));
    }
    static void store_bf16(uint16_t* at, F x) {
        float lanes[16];
        store(lanes, x);
        for (int i = 0; i < 16; i++) at[i] = to_bfloat(lanes[i]);
    }
    static void store_i8(int8_t* at, F x) {  // rounded to nearest even
        for (int half = 0; half < 2; half++) {
            const int16x4_t low = vqmovn_s32(vcvtnq_s32_f32(x.part[2 * half]));
            const int16x4_t high = vqmovn_s32(vcvtnq_s32_f32(x.part[2 * half + 1]));
            vst1_s8(at + 8 * half, vqmovn_s16(vcombine_s16(low, high)));
        }
    }

    INLINE static I ints(int32_t x) {
        return make<I>([&](int) INLINED { return vdupq_n_s32(x); });
    }
    INLINE static I load_ints_u8(const uint8_t* at) {
        const uint8x16_t x = vld1q_u8(at);
        const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_u8(vget_high_u8(x));
        return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
                 vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
                 vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
                 vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
    }
    template <int N>
    INLINE static I left(I a) {
        return make<I>([&](int p) INLINED { return vshlq_n_s32(a.part[p], N); });
    }
    template <int N>
    INLINE static I right(I a) {
        if constexpr (N == 0) return a;
        else return make<I>([&](int p) INLINED {
            return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.part[p]), N));
        });
    }
    INLINE static I both(I a, I b) {
        return make<I>([&](int p) INLINED { return vandq_s32(a.part[p], b.part[p]); });
    }
    INLINE static I either(I a, I b) {
        return make<I>([&](int p) INLINED { return vorrq_s32(a.part[p], b.part[p]); });
    }
    INLINE static I plus(I a, I b) {
        return make<I>([&](int p) INLINED { return vaddq_s32(a.part[p], b.part[p]); });
    }
    INLINE static F to_floats(I a) {
        return make<F>([&](int p) INLINED { return vcvtq_f32_s32(a.part[p]); });
    }

    INLINE static B load_bytes(const uint8_t* at) {
        return make<B>([&](int p) INLINED { return vld1q_u8(at + 16 * p); });
    }
    INLINE static void store_bytes(uint8_t* at, B x) {
        for (int p = 0; p < 4; p++) vst1q_u8(at + 16 * p, x.part[p]);
    }
    // Bits N … N + BITS - 1 of every byte.
    template <int N, int BITS>
    INLINE static B field(B x) {
        return make<B>([&](int p) INLINED {
            if constexpr (N == 0) return vandq_u8(x.part[p], vdupq_n_u8((1 << BITS) - 1));
            else if constexpr (N + BITS == 8) return vshrq_n_u8(x.part[p], N);
            else return vandq_u8(vshrq_n_u8(x.part[p], N), vdupq_n_u8((1 << BITS) - 1));
        });
    }
    // low | high << N; no bit of `high` leaves its byte.
    template <int N>
    INLINE static B join(B low, B high) {
        return make<B>([&](int p) INLINED { return vorrq_u8(low.part[p], vshlq_n_u8(high.part[p], N)); });
    }

    // acc + Σ over G groups of four: unsigned bytes of BITS bits times signed activations. Of eight bits, see WIDE_ZERO.
    template <int BITS, int G>
    INLINE static I dot(I acc, const B* w, const int8_t* a) {
        add_groups<BITS, G / 4>(w, a, acc);
        return acc;
    }
    // The sums alone for T rows of activations `stride` apart; the weights come from memory.
    template <int BITS, int G, int T>
    INLINE static void dots(I* sums, const uint8_t* w, const int8_t* a, size_t stride) {
        for (int t = 0; t < T; t++) sums[t] = ints(0);
        for (int part = 0; part < G / 4; part++, w += 256, a += 16) {
            int8x16_t q[T];  // four groups of each row
            for (int t = 0; t < T; t++) q[t] = vld1q_s8(a + t * stride);
            four_dots<BITS, T, 0>(sums, w, q);
            four_dots<BITS, T, 1>(sums, w + 64, q);
            four_dots<BITS, T, 2>(sums, w + 128, q);
            four_dots<BITS, T, 3>(sums, w + 192, q);
        }
    }
    // The first and the second of 16 pairs of bfloat16.
    INLINE static void load_bf16_pairs(const uint8_t* at, F& first, F& second) {
        for (int p = 0; p < 4; p++) {
            const uint32x4_t x = vreinterpretq_u32_u8(vld1q_u8(at + 16 * p));
            first.part[p] = vreinterpretq_f32_u32(vshlq_n_u32(x, 16));
            second.part[p] = vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xffff0000)));
        }
    }

private:
    // Group LANE of a row's sixteen activations.
    template <int BITS, int LANE>
    INLINE static int32x4_t four(int32x4_t acc, uint8x16_t w, int8x16_t a) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
        if constexpr (I8MM) return vusdotq_laneq_s32(acc, w, a, LANE);
#endif
        if constexpr (BITS == 8) w = veorq_u8(w, vdupq_n_u8(0x80));
        return vdotq_laneq_s32(acc, vreinterpretq_s8_u8(w), a, LANE);
    }
    template <int BITS, int PARTS>
    INLINE static void add_groups(const B* w, const int8_t* a, I& acc) {
        for (int part = 0; part < PARTS; part++, w += 4) {
            const int8x16_t q = vld1q_s8(a + 16 * part);
            for (int p = 0; p < 4; p++) {
                int32x4_t sum = four<BITS, 0>(acc.part[p], w[0].part[p], q);
                sum = four<BITS, 1>(sum, w[1].part[p], q);
                sum = four<BITS, 2>(sum, w[2].part[p], q);
                acc.part[p] = four<BITS, 3>(sum, w[3].part[p], q);
            }
        }
    }
    template <int BITS, int T, int LANE>
    INLINE static void four_dots(I* sums, const uint8_t* w, const int8x16_t* q) {
        for (int p = 0; p < 4; p++) {
            const uint8x16_t x = vld1q_u8(w + 16 * p);
            for (int t = 0; t < T; t++) sums[t].part[p] = four<BITS, LANE>(sums[t].part[p], x, q[t]);
        }
    }
};

}  // namespace
}  // namespace geode
