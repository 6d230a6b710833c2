// The numbers that a file's bytes mean: geode/blocks.py said once more, in scalar code, for single rows.
// The operations and their order are blocks.py's, so that the results are the same to the last bit.
#include <cstring>

#include "half.h"
#include "layout.h"

namespace geode {

namespace {

float half_at(const uint8_t* at) {
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return from_half(bits);
}

int high_bit(const uint8_t* bits, int i) { return bits[i / 8] >> (i % 8) & 1; }

// 32 numbers of four bits: the low ones of 16 bytes, then their high ones.
int nibble(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }

void q8_0(const uint8_t* b, float* out) {
    const float d = half_at(b);
    for (int i = 0; i < 32; i++) out[i] = d * static_cast<int8_t>(b[2 + i]);
}

void q4_0(const uint8_t* b, float* out) {
    const float d = half_at(b);
    for (int i = 0; i < 32; i++) out[i] = d * (nibble(b + 2, i) - 8);
}

void q4_1(const uint8_t* b, float* out) {
    const float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 32; i++) out[i] = d * nibble(b + 4, i) + m;
}

void q5_0(const uint8_t* b, float* out) {
    const float d = half_at(b);
    for (int i = 0; i < 32; i++) out[i] = d * ((nibble(b + 6, i) | high_bit(b + 2, i) << 4) - 16);
}

void q5_1(const uint8_t* b, float* out) {
    const float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 32; i++) out[i] = d * (nibble(b + 8, i) | high_bit(b + 4, i) << 4) + m;
}

void q2_k(const uint8_t* b, float* out) {
    const float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int i = 0; i < 256; i++) {
        const int group = i / 16, q = b[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        out[i] = d * (b[group] & 15) * q - dmin * (b[group] >> 4);
    }
}

int scale_q3_k(const uint8_t* s, int group) {
    const int low = group < 8 ? s[group] & 15 : s[group - 8] >> 4;
    return (low | (s[8 + group % 4] >> (group / 4 * 2) & 3) << 4) - 32;
}

void q3_k(const uint8_t* b, float* out) {
    const float d = half_at(b + 108);
    for (int i = 0; i < 256; i++) {
        const int low = b[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3, high = b[i % 32] >> (i / 32) & 1;
        out[i] = d * scale_q3_k(b + 96, i / 16) * ((low | high << 2) - 4);
    }
}

// The six-bit scale and minimum of 32 numbers in Q4_K and Q5_K.
void scale_and_min(const uint8_t* s, int j, int& scale, int& min) {
    scale = j < 4 ? s[j] & 63 : (s[4 + j] & 15) | s[j - 4] >> 6 << 4;
    min = j < 4 ? s[4 + j] & 63 : s[4 + j] >> 4 | s[j] >> 6 << 4;
}

void q4_k(const uint8_t* b, float* out) {
    const float d = half_at(b), dmin = half_at(b + 2);
    for (int i = 0; i < 256; i++) {
        int scale, min;
        scale_and_min(b + 4, i / 32, scale, min);
        const int q = b[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
        out[i] = d * scale * q - dmin * min;
    }
}

void q5_k(const uint8_t* b, float* out) {
    const float d = half_at(b), dmin = half_at(b + 2);
    for (int i = 0; i < 256; i++) {
        int scale, min;
        scale_and_min(b + 4, i / 32, scale, min);
        const int low = b[48 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15, high = b[16 + i % 32] >> (i / 32) & 1;
        out[i] = d * scale * (low | high << 4) - dmin * min;
    }
}

void q6_k(const uint8_t* b, float* out) {
    const float d = half_at(b + 208);
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, j = i % 128 / 32, l = i % 32;
        const int low = b[64 * half + j % 2 * 32 + l] >> (j / 2 * 4) & 15;
        const int high = b[128 + 32 * half + l] >> (2 * j) & 3;
        out[i] = d * static_cast<int8_t>(b[192 + i / 16]) * ((low | high << 4) - 32);
    }
}

void floats(QType type, const uint8_t* bytes, size_t columns, float* out) {
    if (type == QType::F32) std::memcpy(out, bytes, 4 * columns);
    for (size_t i = 0; i < columns && type != QType::F32; i++) {
        uint16_t bits;
        std::memcpy(&bits, bytes + 2 * i, 2);
        out[i] = type == QType::F16 ? from_half(bits) : from_bfloat(bits);
    }
}

using Unpack = void (*)(const uint8_t*, float*);
constexpr Unpack UNPACK[TYPES] = {nullptr, nullptr, nullptr, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k};

}  // namespace

void dequantize(QType type, const uint8_t* bytes, size_t columns, float* out) {
    if (!is_integer(type)) return floats(type, bytes, columns, out);
    const BlockInfo info = block_info(type);
    for (size_t b = 0; b < columns / info.elements; b++)
        UNPACK[static_cast<int>(type)](bytes + b * info.nbytes, out + b * info.elements);
}

}  // namespace geode
