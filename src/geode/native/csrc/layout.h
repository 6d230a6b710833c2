// Panels: how a weight matrix lies in memory so that kernels can stream it.
//
//     16 rows side by side, one block of each after the other; inside, every field of a block is interleaved by rows
//
//       file    row 0 | d q q q q q q q q | d q q ...            panel | d d ... d | q q ... q | q q ... q | ...
//               row 1 | d q q q q q q q q | d q q ...                    16 rows     16 rows     16 rows
//
// A vector register then holds one number of each of the 16 rows (or four bytes of each), and a whole panel is read
// from front to back. The bytes are those of the file, only in another order: `unpack_row` gives a row's own back.
#pragma once
#include <functional>
#include <vector>

#include "memory.h"
#include "types.h"

namespace geode {

constexpr int PANEL = 16;

// One matrix (rows, columns) in panels; the last panel is filled with zeros.
struct Matrix {
    QType type = QType::F32;
    size_t rows = 0, columns = 0;
    size_t panel_bytes = 0;
    Buffer data;

    size_t panels() const { return (rows + PANEL - 1) / PANEL; }
    const uint8_t* panel(size_t index) const { return data.bytes() + index * panel_bytes; }
    explicit operator bool() const { return rows != 0; }
};

size_t row_bytes(QType type, size_t columns);    // of one row in a file
size_t panel_bytes(QType type, size_t columns);  // of sixteen rows here

// Memory for a matrix. Its panels are to be filled by `pack_panels`, in any order, by any thread.
Matrix empty_matrix(QType type, size_t rows, size_t columns);

// Panels [first, last) from the rows of a file, `stride` bytes apart; `source` is row 0 of the matrix.
void pack_panels(Matrix& matrix, const uint8_t* source, size_t stride, size_t first, size_t last);

// One row's bytes as its file had them.
void unpack_row(const Matrix& matrix, size_t row, uint8_t* out);

// `columns` numbers of one row, by the definition of blocks.py. `bytes` as in a file.
void dequantize(QType type, const uint8_t* bytes, size_t columns, float* out);

// One row of a matrix as numbers; `scratch` holds row_bytes.
void read_row(const Matrix& matrix, size_t row, float* out, std::vector<uint8_t>& scratch);

}  // namespace geode
