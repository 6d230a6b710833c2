// The tile instructions of AMX in plain C++, so that isa_amx.cpp can be tested where no CPU has them.
// Numbers are added in the order that the manual gives; what the hardware does with denormals is not copied.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps

namespace fake {
namespace {

struct Tile {
    uint8_t bytes[16][64];
};

thread_local Tile tiles[8];
thread_local uint8_t config[64];

void require(bool good) {
    if (!good) std::abort();  // the CPU would raise an exception
}

int rows(int tile) {
    require(config[0] == 1);
    return config[48 + tile];
}

int row_bytes(int tile) {
    uint16_t bytes;
    std::memcpy(&bytes, config + 16 + 2 * tile, 2);
    require(bytes > 0 && bytes <= 64 && rows(tile) > 0 && rows(tile) <= 16);
    return bytes;
}

void load_config(const void* from) {
    std::memcpy(config, from, 64);
    std::memset(tiles, 0, sizeof tiles);
}

void load(int tile, const void* base, size_t stride) {
    for (int r = 0; r < rows(tile); r++)
        std::memcpy(tiles[tile].bytes[r], static_cast<const uint8_t*>(base) + r * stride, row_bytes(tile));
}

void store(int tile, void* base, size_t stride) {
    for (int r = 0; r < rows(tile); r++)
        std::memcpy(static_cast<uint8_t*>(base) + r * stride, tiles[tile].bytes[r], row_bytes(tile));
}

void zero(int tile) {
    require(row_bytes(tile) > 0);
    std::memset(&tiles[tile], 0, sizeof tiles[tile]);
}

float bfloat_at(const uint8_t* at) {
    const uint32_t bits = static_cast<uint32_t>(at[0]) << 16 | static_cast<uint32_t>(at[1]) << 24;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

void multiply(int to, int a, int b) {
    require(row_bytes(a) / 4 == rows(b) && rows(to) == rows(a) && row_bytes(to) == row_bytes(b));
    for (int m = 0; m < rows(to); m++)
        for (int n = 0; n < row_bytes(to) / 4; n++) {
            float sum;
            std::memcpy(&sum, tiles[to].bytes[m] + 4 * n, 4);
            for (int k = 0; k < row_bytes(a) / 4; k++)
                for (int i = 0; i < 4; i += 2)
                    sum += bfloat_at(tiles[a].bytes[m] + 4 * k + i) * bfloat_at(tiles[b].bytes[k] + 4 * n + i);
            std::memcpy(tiles[to].bytes[m] + 4 * n, &sum, 4);
        }
}

}  // namespace
}  // namespace fake

#define _tile_loadconfig(from) fake::load_config(from)
#define _tile_release() std::memset(fake::config, 0, sizeof fake::config)
#define _tile_zero(tile) fake::zero(tile)
#define _tile_loadd(tile, base, stride) fake::load(tile, base, stride)
#define _tile_stored(tile, base, stride) fake::store(tile, base, stride)
#define _tile_dpbf16ps(to, a, b) fake::multiply(to, a, b)
