// Rows of numbers packed into the blocks of a GGUF type and unpacked: geode/blocks.py's `pack`, `weigh` and `unpack`, bit
// for bit, and fast. Threads and files are not known here; callers cut a matrix into ranges of rows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "types.h"

namespace geode {

struct Quantizer {
    // Packs rows of F32, F16 or BF16 (`from`), columns a whole number of blocks, into `out`. `importance` is how much
    // each column counts, or nullptr. False when a number is not finite or too large for the type's half-precision
    // scales: then `out` is of no use.
    bool (*pack)(QType to, QType from, const uint8_t* source, size_t rows, size_t columns, const float* importance,
                 uint8_t* out);
    // Rows of a packed type as F32, F16 or BF16 (`to`), rounded to nearest even.
    void (*unpack)(QType from, QType to, const uint8_t* source, size_t rows, size_t columns, uint8_t* out);
};

// The same code compiled for three CPUs.
const Quantizer& portable_quantizer();
const Quantizer& avx2_quantizer();
const Quantizer& avx512_quantizer();

// The one for an instruction set by its name, see cpu.h.
const Quantizer& quantizer(const std::string& isa);

}  // namespace geode
