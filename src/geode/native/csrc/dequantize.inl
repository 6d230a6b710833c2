// The numbers that a file's bytes mean: geode/blocks.py said once more, a block at a time, in loops that become vectors.
// The operations and their order are blocks.py's, so that the results are the same to the last bit.
#pragma once
#include <cstring>

#include "half.h"
#include "types.h"

namespace geode {
namespace {

inline float half_at(const uint8_t* at) {
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return from_half(bits);
}

// The 32 fifth bits of Q5_0 and Q5_1, as 16.
inline void fifth_bits(const uint8_t* at, int* out) {
    uint32_t bits;
    std::memcpy(&bits, at, 4);
    for (int i = 0; i < 32; i++) out[i] = (bits >> i & 1) << 4;
}

inline void q8_0(const uint8_t* b, float* out) {
    const float d = half_at(b);
    for (int i = 0; i < 32; i++) out[i] = d * static_cast<int8_t>(b[2 + i]);
}

inline void q4_0(const uint8_t* b, float* out) {
    const float d = half_at(b);
    for (int i = 0; i < 16; i++) out[i] = d * ((b[2 + i] & 15) - 8);
    for (int i = 0; i < 16; i++) out[16 + i] = d * ((b[2 + i] >> 4) - 8);
}

inline void q4_1(const uint8_t* b, float* out) {
    const float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 16; i++) out[i] = d * (b[4 + i] & 15) + m;
    for (int i = 0; i < 16; i++) out[16 + i] = d * (b[4 + i] >> 4) + m;
}

inline void q5_0(const uint8_t* b, float* out) {
    const float d = half_at(b);
    int high[32];
    fifth_bits(b + 2, high);
    for (int i = 0; i < 16; i++) out[i] = d * (((b[6 + i] & 15) | high[i]) - 16);
    for (int i = 0; i < 16; i++) out[16 + i] = d * ((b[6 + i] >> 4 | high[16 + i]) - 16);
}

inline void q5_1(const uint8_t* b, float* out) {
    const float d = half_at(b), m = half_at(b + 2);
    int high[32];
    fifth_bits(b + 4, high);
    for (int i = 0; i < 16; i++) out[i] = d * ((b[8 + i] & 15) | high[i]) + m;
    for (int i = 0; i < 16; i++) out[16 + i] = d * (b[8 + i] >> 4 | high[16 + i]) + m;
}

// A run of 256 / 16 numbers each: group 8·h + 2·f + r lies in field f of bytes 32·h + 16·r and on.

inline void q2_k(const uint8_t* b, float* out) {
    const float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int group = 0; group < 16; group++) {
        const uint8_t* q = b + 16 + group / 8 * 32 + group % 2 * 16;
        const int shift = group % 8 / 2 * 2;
        const float scale = d * (b[group] & 15), min = dmin * (b[group] >> 4);
        for (int i = 0; i < 16; i++) out[16 * group + i] = scale * (q[i] >> shift & 3) - min;
    }
}

inline int scale_q3_k(const uint8_t* s, int group) {
    const int low = group < 8 ? s[group] & 15 : s[group - 8] >> 4;
    return (low | (s[8 + group % 4] >> (group / 4 * 2) & 3) << 4) - 32;
}

inline void q3_k(const uint8_t* b, float* out) {
    const float d = half_at(b + 108);
    for (int group = 0; group < 16; group++) {
        const uint8_t *q = b + 32 + group / 8 * 32 + group % 2 * 16, *high = b + group % 2 * 16;
        const int shift = group % 8 / 2 * 2, bit = group / 2;
        const float scale = d * scale_q3_k(b + 96, group);
        for (int i = 0; i < 16; i++)
            out[16 * group + i] = scale * (((q[i] >> shift & 3) | (high[i] >> bit & 1) << 2) - 4);
    }
}

// The six-bit scale and minimum of 32 numbers in Q4_K and Q5_K.
inline void scale_and_min(const uint8_t* s, int j, int& scale, int& min) {
    scale = j < 4 ? s[j] & 63 : (s[4 + j] & 15) | s[j - 4] >> 6 << 4;
    min = j < 4 ? s[4 + j] & 63 : s[4 + j] >> 4 | s[j] >> 6 << 4;
}

inline void q4_k(const uint8_t* b, float* out) {
    const float d = half_at(b), dmin = half_at(b + 2);
    for (int j = 0; j < 8; j++) {
        int s, m;
        scale_and_min(b + 4, j, s, m);
        const uint8_t* q = b + 16 + j / 2 * 32;
        const float scale = d * s, min = dmin * m;
        const int shift = j % 2 * 4;
        for (int i = 0; i < 32; i++) out[32 * j + i] = scale * (q[i] >> shift & 15) - min;
    }
}

inline void q5_k(const uint8_t* b, float* out) {
    const float d = half_at(b), dmin = half_at(b + 2);
    for (int j = 0; j < 8; j++) {
        int s, m;
        scale_and_min(b + 4, j, s, m);
        const uint8_t *q = b + 48 + j / 2 * 32, *high = b + 16;
        const float scale = d * s, min = dmin * m;
        const int shift = j % 2 * 4;
        for (int i = 0; i < 32; i++)
            out[32 * j + i] = scale * ((q[i] >> shift & 15) | (high[i] >> j & 1) << 4) - min;
    }
}

inline void q6_k(const uint8_t* b, float* out) {
    const float d = half_at(b + 208);
    for (int group = 0; group < 16; group++) {
        const int half = group / 8, j = group % 8 / 2, at = group % 2 * 16;
        const uint8_t *q = b + 64 * half + j % 2 * 32 + at, *high = b + 128 + 32 * half + at;
        const int shift = j / 2 * 4, high_shift = 2 * j;
        const float scale = d * static_cast<int8_t>(b[192 + group]);
        for (int i = 0; i < 16; i++)
            out[16 * group + i] = scale * (((q[i] >> shift & 15) | (high[i] >> high_shift & 3) << 4) - 32);
    }
}

inline void floats_of(QType type, const uint8_t* bytes, size_t n, float* out) {
    if (type == QType::F32) {
        std::memcpy(out, bytes, 4 * n);
        return;
    }
    constexpr size_t PIECE = 256;  // copied first: a file's numbers may lie at any byte
    uint16_t bits[PIECE];
    for (; n; bytes += 2 * PIECE, out += PIECE) {
        const size_t some = n < PIECE ? n : PIECE;
        std::memcpy(bits, bytes, 2 * some);
        if (type == QType::F16)
            for (size_t i = 0; i < some; i++) out[i] = from_half(bits[i]);
        else
            for (size_t i = 0; i < some; i++) out[i] = from_bfloat(bits[i]);
        n -= some;
    }
}

using Unpack = void (*)(const uint8_t*, float*);
constexpr Unpack UNPACK[TYPES] = {nullptr, nullptr, nullptr, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k};

// `n` numbers, whole blocks.
inline void numbers_of(QType type, const uint8_t* bytes, size_t n, float* out) {
    if (!is_integer(type)) return floats_of(type, bytes, n, out);
    const BlockInfo info = block_info(type);
    const Unpack unpack = UNPACK[static_cast<int>(type)];
    for (size_t b = 0; b < n / info.elements; b++) unpack(bytes + b * info.nbytes, out + b * info.elements);
}

}  // namespace
}  // namespace geode
