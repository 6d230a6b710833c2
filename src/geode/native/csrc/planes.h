// The head's weights as its kernels read them: a Q8_0 matrix in two planes of four bits, see head.h.
#pragma once
#include "kernels.h"

namespace geode {

constexpr size_t LINE_BLOCKS = 4;  // blocks of one row whose low bits share a line of 64 bytes

struct Planes {
    size_t rows = 0, blocks = 0;     // blocks of 32 columns
    const uint8_t* scale = nullptr;  // (panels, blocks, 16): halves
    const uint8_t* high = nullptr;   // (panels, blocks, 256): as a panel of Q4_0 has its numbers
    const uint8_t* low = nullptr;    // (panels, lines, 16, 16 bytes of each block of the line)
};

// What the kernels need to know of activations beside their numbers.
struct HeadActs {
    Acts acts;                        // INTEGERS
    const int32_t* raise = nullptr;   // (rows, blocks): what makes the sum over high bits an upper bound
    const int32_t* lower = nullptr;   // (rows, blocks): minus the most that low bits may then take away
    const float* spread = nullptr;    // (rows, blocks): about how far the bound lies above, for a scale of 1
};

}  // namespace geode
