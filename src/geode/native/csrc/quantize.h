// Rows of float32 packed into the blocks of a GGUF type: geode/blocks.py's `pack`, bit for bit, and fast.
// Threads and files are not known here; callers cut a matrix into ranges of rows.
#pragma once
#include <cstddef>
#include <cstdint>

#include "types.h"

namespace geode {

// Packs x (rows, columns) into `out`, rows * columns / elements * nbytes bytes; columns is a whole number of
// blocks. False when a number is not finite or too large for the type's half-precision scales: then `out` is
// of no use.
bool quantize_rows(QType type, const float* x, size_t rows, size_t columns, uint8_t* out);

}  // namespace geode
