// What an instruction set offers: one table of functions, filled once for each by its own source file.
//
// Every product is the same arithmetic whatever the number of rows: outputs are sums over blocks in order, so that a
// token's result does not depend on what else is in the batch.
#pragma once
#include "types.h"

namespace geode {

// The forms of an activation that kernels read. Integers are quantised by blocks of 32: x ≈ scale · q.
enum Form : unsigned { FLOATS = 1, BFLOATS = 2, INTEGERS = 4 };

// Rows of one activation in the forms that were prepared. `stride` columns (a multiple of 32) are a row; those beyond
// the real ones are zero. Floats lie row by row. Integers lie by blocks of 32 columns, the same block of `1 << tall`
// rows side by side: kernels then find what they read together at fixed distances.
struct Acts {
    size_t rows = 0, columns = 0, stride = 0;
    int tall = 0;                               // 0: one row, 4: sixteen
    size_t first_row = 0, first_block = 0;      // of the integers, where this is a part of them: see part_of
    float* floats = nullptr;                    // (rows, stride)
    uint16_t* bfloats = nullptr;                // (rows, stride)
    int8_t* q = nullptr;                        // 32 for each block: see block_at
    float *scale = nullptr, *sum = nullptr;     // one for each block; the sum of its q
    int32_t* minus = nullptr;                   // -sum
    float* half_sum = nullptr;                  // two for each block: of sixteen q
    int32_t* half_minus = nullptr;
};

// Where the integers of a block lie. `static` here and below: see half.h.
static inline size_t block_at(const Acts& acts, size_t row, size_t block) {
    row += acts.first_row;
    const size_t in_row = acts.stride / 32, lane = row & ((size_t{1} << acts.tall) - 1);
    return (((row >> acts.tall) * in_row + acts.first_block + block) << acts.tall) + lane;
}

// The same rows from row `first` and column `column` (a multiple of 32) on.
static inline Acts part_of(const Acts& acts, size_t first, size_t column = 0) {
    Acts part = acts;
    part.rows = acts.rows - first;
    part.columns = acts.columns - column;
    part.first_row += first;
    part.first_block += column / 32;
    if (acts.floats) part.floats += first * acts.stride + column;
    if (acts.bfloats) part.bfloats += first * acts.stride + column;
    return part;
}

enum class Activation : uint8_t { SILU, GELU, GELU_TANH };

struct Planes;    // see planes.h
struct HeadActs;

struct Kernels {
    const char* isa;
    Form form[TYPES];  // what `matmul` of each type reads

    // y[m · ldy + 16 · p + i] (+)= row 16 · p + i of the panels · row m of the activation; columns from `acts`.
    void (*matmul[TYPES])(const uint8_t* panels, size_t count, size_t panel_bytes, const Acts& acts, float* y,
                          size_t ldy, bool add);

    // The same for a matrix of int8 as it is (a panel is (columns, 16)); reads FLOATS.
    void (*matmul_i8)(const uint8_t* panels, size_t count, size_t panel_bytes, const Acts& acts, float* y, size_t ldy,
                      bool add);

    // Row `row` of `acts` from `columns` floats at x, in each form that `forms` names. x may be the row itself.
    void (*prepare)(const float* x, unsigned forms, Acts& acts, size_t row);

    void (*rms_norm)(const float* x, size_t n, float eps, const float* weight, const float* bias, float* out);
    void (*layer_norm)(const float* x, size_t n, float eps, const float* weight, const float* bias, float* out);
    // Channels i and i + pairs turned against each other, for i < pairs.
    void (*rotate)(float* x, const float* cos, const float* sin, size_t pairs);
    // out = act(gate) · up, or act(gate) where there is no up.
    void (*activate)(Activation kind, const float* gate, const float* up, size_t n, float* out);
    // x · scale, through cap · tanh(x / cap) if cap is not 0.
    void (*scale_and_cap)(float* x, size_t n, float scale, float cap);
    float (*largest)(const float* x, size_t n);
    // x becomes exp(x - peak); the sum. n is a multiple of 16.
    float (*exponentials)(float* x, size_t n, float peak);
    void (*add)(const float* x, size_t n, float* to);
    // to = to · keep + x · share
    void (*blend)(const float* x, size_t n, float share, float keep, float* to);
    // Asks for memory that is soon read.
    void (*ask_for)(const uint8_t* at, size_t bytes);

    // The head, see head.h. For panels [first, first + count) and all rows of activations, stored as by `matmul`:
    // bounds of the logits, and estimates;
    void (*head_bounds)(const Planes& m, size_t first, size_t count, const HeadActs& x, float* upper, size_t ldu,
                        float* middle, size_t ldm);
    // the logits;
    void (*head_product)(const Planes& m, size_t first, size_t count, const HeadActs& x, float* y, size_t ldy);
    // for activation `act`, of `count` rows of the matrix, ascending: lowers their bounds to their logits, but
    // gives up those that fall below `floor`, and keeps the others in `rows`. The bytes of the matrix that were read.
    size_t (*head_rows)(const Planes& m, const HeadActs& x, size_t act, uint32_t* rows, size_t& count, float floor,
                        float* upper);
    // and one panel as `matmul` of Q8_0 reads it.
    void (*head_panel)(const Planes& m, size_t panel, uint8_t* out);
};

// nullptr where the compiler had no such instructions.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512vnni_kernels();
const Kernels* avx512_kernels();
const Kernels* amx_kernels();
const Kernels* neon_kernels();
const Kernels* neon_i8mm_kernels();

}  // namespace geode
