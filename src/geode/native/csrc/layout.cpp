#include "layout.h"

#include <cstring>

namespace geode {

namespace {

// A run of `count` pieces of `width` bytes inside a block. In a panel each piece becomes 16 pieces, one for each row.
struct Field {
    int offset, count, width;
};

struct Fields {
    int count;
    Field field[4];
};

constexpr Fields FIELDS[TYPES] = {
    /* F32  */ {1, {{0, 1, 4}}},
    /* F16  */ {1, {{0, 1, 2}}},
    /* BF16 */ {1, {{0, 1, 4}}},
    /* Q8_0 */ {2, {{0, 1, 2}, {2, 8, 4}}},
    /* Q4_0 */ {2, {{0, 1, 2}, {2, 4, 4}}},
    /* Q4_1 */ {2, {{0, 2, 2}, {4, 4, 4}}},
    /* Q5_0 */ {3, {{0, 1, 2}, {2, 1, 4}, {6, 4, 4}}},
    /* Q5_1 */ {3, {{0, 2, 2}, {4, 1, 4}, {8, 4, 4}}},
    /* Q2_K */ {3, {{80, 2, 2}, {0, 16, 1}, {16, 16, 4}}},
    /* Q3_K */ {4, {{108, 1, 2}, {96, 12, 1}, {0, 8, 4}, {32, 16, 4}}},
    /* Q4_K */ {3, {{0, 2, 2}, {4, 12, 1}, {16, 32, 4}}},
    /* Q5_K */ {4, {{0, 2, 2}, {4, 12, 1}, {16, 8, 4}, {48, 32, 4}}},
    /* Q6_K */ {4, {{208, 1, 2}, {192, 16, 1}, {128, 16, 4}, {0, 32, 4}}},
};

constexpr int LARGEST = 210;

// Q8_0 is held with 128 added, because the multiplier of most CPUs wants one side unsigned.
void flip_signs(uint8_t* block) {
    for (int i = 2; i < 34; i++) block[i] ^= 0x80;
}

uint32_t load32(const uint8_t* at) {
    uint32_t x;
    std::memcpy(&x, at, 4);
    return x;
}

void store32(uint8_t* at, uint32_t x) { std::memcpy(at, &x, 4); }

// The 32 high bits of a five-bit block: bit 4·g + i goes to bit g of byte i, so that one shift serves four bytes.
uint32_t spread_bits(uint32_t bits) {
    uint32_t out = 0;
    for (int g = 0; g < 8; g++)
        for (int i = 0; i < 4; i++) out |= (bits >> (4 * g + i) & 1) << (8 * i + g);
    return out;
}

uint32_t gather_bits(uint32_t bytes) {
    uint32_t out = 0;
    for (int g = 0; g < 8; g++)
        for (int i = 0; i < 4; i++) out |= (bytes >> (8 * i + g) & 1) << (4 * g + i);
    return out;
}

int high_bits_at(QType type) { return type == QType::Q5_0 ? 2 : type == QType::Q5_1 ? 4 : -1; }

void to_panel_form(QType type, uint8_t* block) {
    if (type == QType::Q8_0) flip_signs(block);
    if (int at = high_bits_at(type); at >= 0) store32(block + at, spread_bits(load32(block + at)));
}

void to_file_form(QType type, uint8_t* block) {
    if (type == QType::Q8_0) flip_signs(block);
    if (int at = high_bits_at(type); at >= 0) store32(block + at, gather_bits(load32(block + at)));
}

template <int WIDTH>
void spread_field(const uint8_t* block, const Field& field, uint8_t* out) {
    for (int i = 0; i < field.count; i++)
        std::memcpy(out + i * PANEL * WIDTH, block + field.offset + i * WIDTH, WIDTH);
}

template <int WIDTH>
void gather_field(const uint8_t* panel, const Field& field, uint8_t* block) {
    for (int i = 0; i < field.count; i++)
        std::memcpy(block + field.offset + i * WIDTH, panel + i * PANEL * WIDTH, WIDTH);
}

// One block of one row into its panel; `out` is where the panel's block begins.
void spread_block(QType type, const uint8_t* block, int row, uint8_t* out) {
    const Fields& fields = FIELDS[static_cast<int>(type)];
    for (int f = 0; f < fields.count; f++) {
        const Field& field = fields.field[f];
        uint8_t* to = out + row * field.width;
        if (field.width == 4) spread_field<4>(block, field, to);
        if (field.width == 2) spread_field<2>(block, field, to);
        if (field.width == 1) spread_field<1>(block, field, to);
        out += PANEL * field.count * field.width;
    }
}

void gather_block(QType type, const uint8_t* panel, int row, uint8_t* block) {
    const Fields& fields = FIELDS[static_cast<int>(type)];
    for (int f = 0; f < fields.count; f++) {
        const Field& field = fields.field[f];
        const uint8_t* from = panel + row * field.width;
        if (field.width == 4) gather_field<4>(from, field, block);
        if (field.width == 2) gather_field<2>(from, field, block);
        if (field.width == 1) gather_field<1>(from, field, block);
        panel += PANEL * field.count * field.width;
    }
}

size_t blocks_of(QType type, size_t columns) {
    size_t elements = block_info(type).elements;
    return (columns + elements - 1) / elements;
}

void pack_panel(const Matrix& matrix, const uint8_t* source, size_t stride, size_t panel, uint8_t* out) {
    const size_t nbytes = block_info(matrix.type).nbytes, blocks = blocks_of(matrix.type, matrix.columns);
    const size_t in_row = row_bytes(matrix.type, matrix.columns);
    const size_t first = panel * PANEL, rows = std::min<size_t>(PANEL, matrix.rows - first);
    uint8_t block[LARGEST];
    for (size_t b = 0; b < blocks; b++) {
        for (size_t row = 0; row < rows; row++) {
            const uint8_t* from = source + (first + row) * stride + b * nbytes;
            const size_t there = std::min(nbytes, in_row - b * nbytes);  // an odd row of BF16 ends in half a pair
            if (there < nbytes) std::memset(block, 0, nbytes);
            std::memcpy(block, from, there);
            to_panel_form(matrix.type, block);
            spread_block(matrix.type, block, static_cast<int>(row), out + b * PANEL * nbytes);
        }
    }
}

}  // namespace

size_t row_bytes(QType type, size_t columns) {
    if (type == QType::BF16) return 2 * columns;
    return blocks_of(type, columns) * block_info(type).nbytes;
}

size_t panel_bytes(QType type, size_t columns) { return PANEL * blocks_of(type, columns) * block_info(type).nbytes; }

Matrix empty_matrix(QType type, size_t rows, size_t columns) {
    Matrix matrix{type, rows, columns, panel_bytes(type, columns), Buffer()};
    matrix.data = Buffer(matrix.panels() * matrix.panel_bytes);
    return matrix;
}

void pack_panels(Matrix& matrix, const uint8_t* source, size_t stride, size_t first, size_t last) {
    for (size_t panel = first; panel < last; panel++)
        pack_panel(matrix, source, stride, panel, matrix.data.bytes() + panel * matrix.panel_bytes);
}

void unpack_row(const Matrix& matrix, size_t row, uint8_t* out) {
    const size_t nbytes = block_info(matrix.type).nbytes, blocks = blocks_of(matrix.type, matrix.columns);
    const size_t in_row = row_bytes(matrix.type, matrix.columns);
    const uint8_t* panel = matrix.panel(row / PANEL);
    uint8_t block[LARGEST];
    for (size_t b = 0; b < blocks; b++) {
        gather_block(matrix.type, panel + b * PANEL * nbytes, static_cast<int>(row % PANEL), block);
        to_file_form(matrix.type, block);
        std::memcpy(out + b * nbytes, block, std::min(nbytes, in_row - b * nbytes));
    }
}

void read_row(const Matrix& matrix, size_t row, float* out, std::vector<uint8_t>& scratch) {
    scratch.resize(row_bytes(matrix.type, matrix.columns));
    unpack_row(matrix, row, scratch.data());
    dequantize(matrix.type, scratch.data(), matrix.columns, out);
}

}  // namespace geode
