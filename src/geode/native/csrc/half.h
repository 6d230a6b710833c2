// The two half-wide floats in plain C++, rounded to nearest even. `static`, so that each source file keeps the copy
// compiled for its own instruction set.
#pragma once
#include <cstdint>
#include <cstring>

namespace geode {

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

static inline float from_bfloat(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

static inline uint16_t to_bfloat(float x) {
    const uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // stays a NaN
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Both without branches, so that loops over them become vectors.

static inline float from_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, size = static_cast<uint32_t>(half & 0x7fff) << 13;
    const uint32_t finite = bits_of(float_of(size) * 0x1p112f), beyond = size | 0x7f800000;
    return float_of(sign | (size < 0x0f800000 ? finite : beyond));
}

static inline uint16_t to_half(float x) {
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    const uint32_t normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
    const uint32_t small = bits_of(float_of(size) + 0.5f) - 0x3f000000;  // the addition does the rounding
    uint32_t half = size < 0x38800000 ? small : normal;                  // below the smallest normal
    half = size >= 0x477ff000 ? 0x7c00 : half;                           // rounds past 65504
    half = size > 0x7f800000 ? 0x7e00 : half;
    return static_cast<uint16_t>(sign | half);
}

}  // namespace geode
