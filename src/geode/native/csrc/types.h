// The number formats that weights come in, by GGUF's names. What the bytes mean is geode/blocks.py's to define.
#pragma once
#include <cstddef>
#include <cstdint>

namespace geode {

enum class QType : uint8_t { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K };
constexpr int TYPES = 13;

struct BlockInfo {
    const char* name;
    int elements;  // numbers in a block; BF16 counts as pairs, because kernels multiply pairs
    int nbytes;
};

constexpr BlockInfo BLOCKS[TYPES] = {
    {"F32", 1, 4},      {"F16", 1, 2},      {"BF16", 2, 4},     {"Q8_0", 32, 34},   {"Q4_0", 32, 18},
    {"Q4_1", 32, 20},   {"Q5_0", 32, 22},   {"Q5_1", 32, 24},   {"Q2_K", 256, 84},  {"Q3_K", 256, 110},
    {"Q4_K", 256, 144}, {"Q5_K", 256, 176}, {"Q6_K", 256, 210},
};

constexpr BlockInfo block_info(QType type) { return BLOCKS[static_cast<int>(type)]; }
constexpr const char* type_name(QType type) { return block_info(type).name; }
constexpr bool is_integer(QType type) { return type >= QType::Q8_0; }

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace geode
