// Vectors in plain C++ under the names that kernels.inl uses: any little-endian CPU.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "half.h"

namespace geode {
namespace {

static_assert(std::endian::native == std::endian::little, "files and panels are little-endian");

// Sixteen bytes with the arithmetic of their lanes; GCC and Clang put them in the registers that any CPU has.
#if defined(__GNUC__)
template <class T>
struct VectorOf {
    typedef T type __attribute__((vector_size(16)));
};
template <class T>
using Quad = typename VectorOf<T>::type;
#else
template <class T>
struct Quad {
    T lane[16 / sizeof(T)];
    T& operator[](int i) { return lane[i]; }
    const T& operator[](int i) const { return lane[i]; }
};
#define GEODE_LANEWISE(OP)                                                                               \
    template <class T>                                                                                   \
    Quad<T> operator OP(Quad<T> a, Quad<T> b) {                                                          \
        for (int i = 0; i < static_cast<int>(16 / sizeof(T)); i++) a[i] = static_cast<T>(a[i] OP b[i]);  \
        return a;                                                                                        \
    }
GEODE_LANEWISE(+)
GEODE_LANEWISE(-)
GEODE_LANEWISE(*)
GEODE_LANEWISE(/)
GEODE_LANEWISE(&)
GEODE_LANEWISE(|)
GEODE_LANEWISE(<<)
GEODE_LANEWISE(>>)
#undef GEODE_LANEWISE
#endif

template <class To, class V>
INLINE Quad<To> converted(V x) {
#if defined(__GNUC__)
    return __builtin_convertvector(x, Quad<To>);
#else
    Quad<To> y;
    for (int i = 0; i < 4; i++) y[i] = static_cast<To>(x[i]);
    return y;
#endif
}

template <class T>
INLINE Quad<T> filled(std::type_identity_t<T> x) {
#if defined(__GNUC__)
    return x - Quad<T>{};  // of a number with a vector: in every lane
#else
    Quad<T> v;
    for (int i = 0; i < static_cast<int>(16 / sizeof(T)); i++) v[i] = x;
    return v;
#endif
}

// Where a < b: all bits.
INLINE Quad<uint32_t> less(Quad<float> a, Quad<float> b) {
#if defined(__GNUC__)
    return std::bit_cast<Quad<uint32_t>>(a < b);
#else
    Quad<uint32_t> y;
    for (int i = 0; i < 4; i++) y[i] = a[i] < b[i] ? ~uint32_t{0} : 0;
    return y;
#endif
}

struct Portable {
    static constexpr int TILE = 4;         // rows of an activation that one pass over a panel serves
    static constexpr int CHAINS = 1;      // of products that run side by side
    static constexpr bool DOTS = false;    // has `dots`, because the weights of a block fill its registers
    static constexpr bool BF16 = false;    // multiplies pairs of bfloat16
    static constexpr int WIDE_ZERO = 128;  // what `dot` of eight bits leaves to be taken away

    using QF = Quad<float>;
    using QI = Quad<int32_t>;
    using QU = Quad<uint32_t>;
    using QS = Quad<int16_t>;
    template <class T>
    struct Four {
        Quad<T> part[4];
    };
    using F = Four<float>;  // 16 floats: one for each row of a panel
    using I = Four<int32_t>;
    using B = Four<uint8_t>;  // 64 bytes: four neighbours of each row

    template <class V, class Get>
    INLINE static V make(Get&& get) {
        return {{get(0), get(1), get(2), get(3)}};
    }
    template <class V>
    INLINE static V copied(const void* at) {
        V v;
        std::memcpy(&v, at, sizeof v);
        return v;
    }
    // lane(i) of 16, where no vector operation does it.
    template <class V, class Lane>
    INLINE static V lanes(Lane&& lane) {
        return make<V>([&](int p) INLINED {
            return decltype(V::part[0] + V::part[0]){lane(4 * p), lane(4 * p + 1), lane(4 * p + 2), lane(4 * p + 3)};
        });
    }
    INLINE static uint32_t half_at(const uint8_t* at, int i) {
        uint16_t bits;
        std::memcpy(&bits, at + 2 * i, 2);
        return bits;
    }

    INLINE static F zero() { return set(0); }
    INLINE static F set(float x) {
        return make<F>([&](int) { return filled<float>(x); });
    }
    INLINE static F load(const float* at) { return copied<F>(at); }
    INLINE static void store(float* at, F x) { std::memcpy(at, &x, sizeof x); }
    // A half's bits are those of a float with a smaller exponent, if moved; only infinities and NaNs are not.
    INLINE static F load_f16(const uint8_t* at) {
        return make<F>([&](int p) INLINED {
            const QU h{half_at(at, 4 * p), half_at(at, 4 * p + 1), half_at(at, 4 * p + 2), half_at(at, 4 * p + 3)};
            const QU size = (h & filled<uint32_t>(0x7fff)) << filled<uint32_t>(13);
            const QF value = std::bit_cast<QF>(size) * filled<float>(0x1p112f);
            const QU special = less(filled<float>(65504.0f), value) & filled<uint32_t>(0x7f800000);
            const QU sign = (h & filled<uint32_t>(0x8000)) << filled<uint32_t>(16);
            return std::bit_cast<QF>(std::bit_cast<QU>(value) | special | sign);
        });
    }
    INLINE static F load_i8(const uint8_t* at) {
        return lanes<F>([&](int i) INLINED { return static_cast<float>(static_cast<int8_t>(at[i])); });
    }
    INLINE static F add(F a, F b) {
        return make<F>([&](int p) INLINED { return a.part[p] + b.part[p]; });
    }
    INLINE static F sub(F a, F b) {
        return make<F>([&](int p) INLINED { return a.part[p] - b.part[p]; });
    }
    INLINE static F mul(F a, F b) {
        return make<F>([&](int p) INLINED { return a.part[p] * b.part[p]; });
    }
    INLINE static F div(F a, F b) {
        return make<F>([&](int p) INLINED { return a.part[p] / b.part[p]; });
    }
    // Rounded twice: std::fma is a call of the C library where the CPU has no such instruction.
    INLINE static F fma(F a, F b, F c) {
        return make<F>([&](int p) INLINED { return a.part[p] * b.part[p] + c.part[p]; });
    }
    INLINE static F fnma(F a, F b, F c) {
        return make<F>([&](int p) INLINED { return c.part[p] - a.part[p] * b.part[p]; });
    }
    INLINE static F max(F a, F b) { return where_less(b, a, a, b); }
    INLINE static F min(F a, F b) { return where_less(a, b, a, b); }
    INLINE static F abs(F a) {
        return make<F>([&](int p) INLINED {
            return std::bit_cast<QF>(std::bit_cast<QU>(a.part[p]) & filled<uint32_t>(0x7fffffff));
        });
    }
    // To nearest even, for |a| < 2^22: adding 1.5 · 2^23 leaves no bits for a fraction.
    INLINE static F round(F a) {
        return make<F>([&](int p) INLINED { return a.part[p] + filled<float>(0x1.8p23f) - filled<float>(0x1.8p23f); });
    }
    INLINE static F power_of_two(F n) {  // n a whole number from -126 to 127
        return make<F>([&](int p) INLINED {
            return std::bit_cast<QF>((converted<int32_t>(n.part[p]) + filled<int32_t>(127)) << filled<int32_t>(23));
        });
    }
    INLINE static F where_less(F a, F b, F yes, F no) {
        return make<F>([&](int p) INLINED {
            const QU is = less(a.part[p], b.part[p]), y = std::bit_cast<QU>(yes.part[p]);
            const QU n = std::bit_cast<QU>(no.part[p]);
            return std::bit_cast<QF>((y & is) | (n - (n & is)));
        });
    }
    INLINE static float sum(F a) {
        const QF x = (a.part[0] + a.part[2]) + (a.part[1] + a.part[3]);
        return (x[0] + x[2]) + (x[1] + x[3]);
    }
    INLINE static float largest(F a) {
        float most = a.part[0][0];
        for (int i = 1; i < 16; i++) most = a.part[i / 4][i % 4] > most ? a.part[i / 4][i % 4] : most;
        return most;
    }
    INLINE static void store_bf16(uint16_t* at, F x) {
        for (int i = 0; i < 16; i++) at[i] = to_bfloat(x.part[i / 4][i % 4]);
    }
    INLINE static void store_i8(int8_t* at, F x) {  // rounded to nearest even
        x = round(x);
        for (int i = 0; i < 16; i++) at[i] = static_cast<int8_t>(x.part[i / 4][i % 4]);
    }

    INLINE static I ints(int32_t x) {
        return make<I>([&](int) { return filled<int32_t>(x); });
    }
    INLINE static I load_ints_u8(const uint8_t* at) {
        return lanes<I>([&](int i) INLINED { return static_cast<int32_t>(at[i]); });
    }
    template <int N>
    INLINE static I left(I a) {
        return make<I>([&](int p) INLINED { return std::bit_cast<QI>(std::bit_cast<QU>(a.part[p]) << filled<uint32_t>(N)); });
    }
    template <int N>
    INLINE static I right(I a) {
        return make<I>([&](int p) INLINED { return std::bit_cast<QI>(std::bit_cast<QU>(a.part[p]) >> filled<uint32_t>(N)); });
    }
    INLINE static I both(I a, I b) {
        return make<I>([&](int p) INLINED { return a.part[p] & b.part[p]; });
    }
    INLINE static I either(I a, I b) {
        return make<I>([&](int p) INLINED { return a.part[p] | b.part[p]; });
    }
    INLINE static F to_floats(I a) {
        return make<F>([&](int p) INLINED { return converted<float>(a.part[p]); });
    }

    INLINE static B load_bytes(const uint8_t* at) { return copied<B>(at); }
    INLINE static void store_bytes(uint8_t* at, B x) { std::memcpy(at, &x, sizeof x); }
    // Bits N … N + BITS - 1 of every byte.
    template <int N, int BITS>
    INLINE static B field(B x) {
        constexpr uint32_t MASK = ((1 << BITS) - 1) * 0x01010101u;
        return make<B>([&](int p) INLINED {
            const QU moved = std::bit_cast<QU>(x.part[p]) >> filled<uint32_t>(N);
            return std::bit_cast<Quad<uint8_t>>(moved & filled<uint32_t>(MASK));
        });
    }
    // low | high << N; no bit of `high` leaves its byte.
    template <int N>
    INLINE static B join(B low, B high) {
        return make<B>([&](int p) INLINED {
            const QU moved = std::bit_cast<QU>(high.part[p]) << filled<uint32_t>(N);
            return std::bit_cast<Quad<uint8_t>>(std::bit_cast<QU>(low.part[p]) | moved);
        });
    }

    // acc + Σ over G groups of four: unsigned bytes times signed activations. A product fits in 16 bits; the sums of
    // two of at most six bits do too, and the pairs are added in 32.
    template <int BITS, int G>
    INLINE static I dot(I acc, const B* w, const int8_t* a) {
        for (int g = 0; g < G; g++) {
            const QS even = pairs(a[4 * g], a[4 * g + 2]), odd = pairs(a[4 * g + 1], a[4 * g + 3]);
            acc = make<I>([&](int p) INLINED {
                const auto bytes = std::bit_cast<Quad<uint16_t>>(w[g].part[p]);
                const QS x = std::bit_cast<QS>(bytes & filled<uint16_t>(255)) * even;
                const QS y = std::bit_cast<QS>(bytes >> filled<uint16_t>(8)) * odd;
                if constexpr (BITS < 8) return acc.part[p] + sum_of_pairs(x + y);
                return acc.part[p] + sum_of_pairs(x) + sum_of_pairs(y);
            });
        }
        return acc;
    }
    INLINE static QS pairs(int8_t first, int8_t second) {
        const auto f = static_cast<uint16_t>(first);
        return std::bit_cast<QS>(filled<uint32_t>(f | static_cast<uint32_t>(static_cast<uint16_t>(second)) << 16));
    }
    INLINE static QI sum_of_pairs(QS x) {
        const QI both = std::bit_cast<QI>(x), sixteen = filled<int32_t>(16);
        return (both << sixteen >> sixteen) + (both >> sixteen);
    }
    // The first and the second of 16 pairs of bfloat16.
    INLINE static void load_bf16_pairs(const uint8_t* at, F& first, F& second) {
        const auto pairs = copied<Four<uint32_t>>(at);
        first = make<F>([&](int p) INLINED { return std::bit_cast<QF>(pairs.part[p] << filled<uint32_t>(16)); });
        second = make<F>([&](int p) INLINED { return std::bit_cast<QF>(pairs.part[p] & filled<uint32_t>(0xffff0000)); });
    }
};

}  // namespace
}  // namespace geode
