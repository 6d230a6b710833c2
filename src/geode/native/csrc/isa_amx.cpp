// AMX: the kernels of AVX-512, and for sixteen rows or more matrix tiles of bfloat16.
//
// A panel is unpacked once into pairs of bfloat16, 512 columns at a time, and then meets all rows; weights that are
// bfloat16 already lie so. Tiles of int8 multiply twice as many numbers, but blocks have a scale for every 32 columns:
// a tile of 16 x 32 int8 takes the 16 cycles that one of bfloat16 takes, and then its 16 x 16 sums would have to be
// stored, loaded, scaled by row and by column and added, another 32 cycles of vector work.
#include "kernels.h"

#if defined(GEODE_FAKE_TILES)
#include "fake_tiles.h"
#endif

#if (defined(__AMX_BF16__) || defined(GEODE_FAKE_TILES)) && defined(__AVX512BF16__)
#define GEODE_AMX 1
#include "kernels.inl"
#include "simd_avx512.h"
#endif

namespace geode {

#if defined(GEODE_AMX)

namespace {

using S = Avx512<true>;

constexpr size_t STEP = 32;                    // columns of a tile
constexpr size_t TILE_BYTES = 1024;            // 16 rows of 64 bytes
constexpr size_t COLUMNS = 512;                // unpacked at a time: two panels of them are 32 KB
constexpr size_t PART_BYTES = COLUMNS / STEP * TILE_BYTES;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// GCC 12 does not know that the instructions read memory, and would drop what was stored there or store it later.
inline void written(const void* at) { __asm__ volatile("" : : "r"(at) : "memory"); }

// Tiles 0 … 3 are sums: rows 0 and 1 by panels 0 and 1. 4 and 5 are activations, 6 and 7 weights.
struct Tiles {
    Tiles() {
        const TileConfig config;
        written(&config);
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
};

// 16 numbers of `low` and of `high` in turns, as bfloat16.
inline __m512i bfloat_pairs(__m512 low, __m512 high) {
    alignas(64) static constexpr uint16_t TURNS[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    return _mm512_permutexvar_epi16(_mm512_load_si512(TURNS), both);
}

// Number J of the four bytes of each row.
template <int J>
inline __m512 byte_of(__m512i w) {
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(w, 8 * J), _mm512_set1_epi32(255)));
}

// A block of 32 columns as a tile: value = scale · w + offset.
template <class Q>
inline void store_tile(const Block<S>& b, uint8_t* out) {
    for (int g = 0; g < 8; g++) {
        const int half = Q::GROUPS == 2 ? g / 4 : 0;
        const __m512 scale = b.scale[half];
        __m512 offset;
        if constexpr (Q::AFFINE) offset = S::sub(S::zero(), b.min[half]);
        else offset = S::mul(scale, S::set(-static_cast<float>(1 << Q::ZERO_BITS)));
        const auto value = [&](__m512 x) { return S::fma(x, scale, offset); };
        const auto first = bfloat_pairs(value(byte_of<0>(b.w[g])), value(byte_of<1>(b.w[g])));
        const auto second = bfloat_pairs(value(byte_of<2>(b.w[g])), value(byte_of<3>(b.w[g])));
        _mm512_store_si512(out + 128 * g, first);
        _mm512_store_si512(out + 128 * g + 64, second);
    }
}

// Integers of any block type: columns [first, first + size) of a panel as tiles.
template <class Q>
struct Unpack {
    static const uint8_t* tiles(const uint8_t* panel, size_t first, size_t size, size_t, uint8_t* out) {
        panel += first / Q::ELEMENTS * Q::BYTES;
        for (size_t u = 0; u < size / Q::ELEMENTS; u++, panel += Q::BYTES)
            each<Q::ELEMENTS / 32>([&](auto j) {
                Block<S> b;
                Q::template load<j>(panel, b);
                store_tile<Q>(b, out);
                out += TILE_BYTES;
            });
        return nullptr;
    }
};

// A panel of bfloat16 is tiles as it lies; only the last tile may be short of columns.
struct Keep {
    static const uint8_t* tiles(const uint8_t* panel, size_t first, size_t size, size_t columns, uint8_t* out) {
        const uint8_t* from = panel + first / 2 * 64;
        if (first + size <= columns) return from;
        const size_t there = (columns - first + 1) / 2 * 64;
        std::memcpy(out, from, there);
        std::memset(out + there, 0, size * 32 - there);
        return nullptr;
    }
};

struct Operand {
    const uint16_t* a;      // activations, from the first column of the part
    size_t stride;          // of a, in bytes
    const uint8_t* w[2];    // tiles of two panels
    size_t steps;
};

// One panel or two times one tile of rows or two: up to 2 x 2 tiles of sums, which are loaded if `add`.
template <int PANELS, int ROWS>
void tile_product(const Operand& x, float* y, size_t ldy, bool add) {
    float* const below = y + 16 * ldy;
    const size_t row = ldy * sizeof(float);
    written(x.w[0]), written(x.w[1]), written(x.a), written(y);
    if (add) {
        _tile_loadd(0, y, row);
        if constexpr (PANELS == 2) _tile_loadd(1, y + R, row);
        if constexpr (ROWS == 2) _tile_loadd(2, below, row);
        if constexpr (PANELS == 2 && ROWS == 2) _tile_loadd(3, below + R, row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t k = 0; k < x.steps; k++) {
        const uint16_t* a = x.a + k * STEP;
        _tile_loadd(4, a, x.stride);
        _tile_loadd(6, x.w[0] + k * TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (PANELS == 2) _tile_loadd(7, x.w[1] + k * TILE_BYTES, 64);
        if constexpr (PANELS == 2) _tile_dpbf16ps(1, 4, 7);
        if constexpr (ROWS == 2) _tile_loadd(5, a + 8 * x.stride, x.stride);  // stride bytes are half as many numbers
        if constexpr (ROWS == 2) _tile_dpbf16ps(2, 5, 6);
        if constexpr (PANELS == 2 && ROWS == 2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, y, row);
    if constexpr (PANELS == 2) _tile_stored(1, y + R, row);
    if constexpr (ROWS == 2) _tile_stored(2, below, row);
    if constexpr (PANELS == 2 && ROWS == 2) _tile_stored(3, below + R, row);
}

// The last rows, fewer than sixteen: the tile begins earlier, and what is not theirs is thrown away.
template <int PANELS>
void last_rows(Operand x, size_t rows, size_t row, float* y, size_t ldy, bool add) {
    alignas(64) float sums[16 * PANELS * R];
    const size_t known = 16 - (rows - row);
    x.a += (rows - 16) * (x.stride / 2);
    tile_product<PANELS, 1>(x, sums, PANELS * R, false);
    for (size_t m = known; m < 16; m++)
        for (int i = 0; i < PANELS * R; i += R) {
            float* const to = y + (rows - 16 + m) * ldy + i;
            const auto sum = S::load(sums + m * PANELS * R + i);
            S::store(to, add ? S::add(S::load(to), sum) : sum);
        }
}

template <int PANELS>
void all_rows(const Operand& x, size_t rows, float* y, size_t ldy, bool add) {
    size_t row = 0;
    const auto from = [&](size_t at) { return Operand{x.a + at * (x.stride / 2), x.stride, {x.w[0], x.w[1]}, x.steps}; };
    for (; row + 32 <= rows; row += 32) tile_product<PANELS, 2>(from(row), y + row * ldy, ldy, add);
    for (; row + 16 <= rows; row += 16) tile_product<PANELS, 1>(from(row), y + row * ldy, ldy, add);
    if (row < rows) last_rows<PANELS>(x, rows, row, y, ldy, add);
}

template <class Form>
void matmul_tiles(const uint8_t* panels, size_t count, size_t panel_bytes, const Acts& acts, float* y, size_t ldy,
                  bool add) {
    alignas(64) uint8_t unpacked[2][PART_BYTES];
    const Tiles tiles;
    const size_t columns = round_up(acts.columns, STEP);
    for (size_t first = 0; first < columns; first += COLUMNS) {
        const size_t size = std::min<size_t>(COLUMNS, columns - first);
        for (size_t p = 0; p < count; p += 2) {
            const size_t there = std::min<size_t>(2, count - p);
            Operand x{acts.bfloats + first, acts.stride * sizeof(uint16_t), {}, size / STEP};
            for (size_t i = 0; i < there; i++) {
                const uint8_t* kept =
                    Form::tiles(panels + (p + i) * panel_bytes, first, size, acts.columns, unpacked[i]);
                x.w[i] = kept ? kept : unpacked[i];
            }
            if (there == 2) all_rows<2>(x, acts.rows, y + p * R, ldy, add || first > 0);
            else all_rows<1>(x, acts.rows, y + p * R, ldy, add || first > 0);
        }
    }
}

template <class Q>
void matmul_amx(const uint8_t* panels, size_t count, size_t bytes, const Acts& acts, float* y, size_t ldy, bool add) {
    if (acts.rows < 16) return matmul_integers<S, Q>(panels, count, bytes, acts, y, ldy, add);
    matmul_tiles<Unpack<Q>>(panels, count, bytes, acts, y, ldy, add);
}

void matmul_amx_bf16(const uint8_t* panels, size_t count, size_t bytes, const Acts& acts, float* y, size_t ldy,
                     bool add) {
    if (acts.rows < 16) return matmul_bf16<S>(panels, count, bytes, acts, y, ldy, add);
    matmul_tiles<Keep>(panels, count, bytes, acts, y, ldy, add);
}

constexpr Kernels amx_table() {
    Kernels k = kernels_of<S>("amx");
    k.matmul[static_cast<int>(QType::BF16)] = matmul_amx_bf16;
    k.matmul[static_cast<int>(QType::Q8_0)] = matmul_amx<Q8_0<S>>;
    k.matmul[static_cast<int>(QType::Q4_0)] = matmul_amx<Q4_0<S>>;
    k.matmul[static_cast<int>(QType::Q4_1)] = matmul_amx<Q4_1<S>>;
    k.matmul[static_cast<int>(QType::Q5_0)] = matmul_amx<Q5_0<S>>;
    k.matmul[static_cast<int>(QType::Q5_1)] = matmul_amx<Q5_1<S>>;
    k.matmul[static_cast<int>(QType::Q2_K)] = matmul_amx<Q2_K<S>>;
    k.matmul[static_cast<int>(QType::Q3_K)] = matmul_amx<Q3_K<S>>;
    k.matmul[static_cast<int>(QType::Q4_K)] = matmul_amx<Q4_K<S>>;
    k.matmul[static_cast<int>(QType::Q5_K)] = matmul_amx<Q5_K<S>>;
    k.matmul[static_cast<int>(QType::Q6_K)] = matmul_amx<Q6_K<S>>;
    for (Form& form : k.form)
        if (form == INTEGERS) form = static_cast<Form>(INTEGERS | BFLOATS);  // for few rows and for many
    return k;
}

}  // namespace

const Kernels* amx_kernels() {
    static constexpr Kernels table = amx_table();
    return &table;
}

#else

const Kernels* amx_kernels() { return nullptr; }

#endif

}  // namespace geode
