#include "cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"

namespace geode {

namespace {

constexpr size_t round64(size_t n) { return round_up(n, 64); }

// Q8_0 of one run of 32: what it is multiplied by, and the scale as it is kept.
struct Quantised {
    float inverse, scale;
};

Quantised quantised(const float* x) {
    float most = 0;
    for (int i = 0; i < 32; i++) most = std::max(most, std::fabs(x[i]));
    return {most > 0 ? 127.0f / most : 0.0f, most / 127.0f};
}

}  // namespace

Cache::Cache(QType type, size_t kv_heads, size_t head_dim, const std::vector<Seen>& layers, std::vector<size_t> pages)
    : type_(type), kv_heads_(kv_heads), head_dim_(head_dim), groups_(pages.size()) {
    key_bytes_ = PAGE / PANEL * key_panel_bytes();
    value_panel_bytes_ = type == QType::Q8_0 ? PANEL * PAGE : panel_bytes(type, PAGE);
    const size_t scales = type == QType::Q8_0 ? head_dim / 32 * PAGE * sizeof(float) : 0;
    head_bytes_ = round64(key_bytes_) + round64(value_panels() * value_panel_bytes_ + scales);
    key_bytes_ = round64(key_bytes_);
    for (const Seen& layer : layers) groups_[layer.group].layers++;
    for (size_t g = 0; g < pages.size(); g++) {
        groups_[g].pages = pages[g];
        groups_[g].page_bytes = groups_[g].layers * kv_heads * head_bytes_;
        groups_[g].memory = Buffer(pages[g] * groups_[g].page_bytes);
    }
}

void Cache::clear(size_t group, int32_t page) {
    Group& g = groups_[group];
    std::memset(g.memory.bytes() + page * g.page_bytes, 0, g.page_bytes);
}

void Cache::write(const Seen& layer, int32_t page, size_t head, size_t slot, const float* key, const float* value) {
    uint8_t* keys = at(layer, page, head);
    write_key(keys, slot, key);
    write_value(keys + key_bytes_, slot, value);
}

void Cache::write_key(uint8_t* keys, size_t slot, const float* key) const {
    uint8_t* panel = keys + slot / PANEL * key_panel_bytes();
    const size_t row = slot % PANEL;
    auto* wide = reinterpret_cast<float*>(panel);
    auto* half = reinterpret_cast<uint16_t*>(panel);
    if (type_ == QType::F32)
        for (size_t h = 0; h < head_dim_; h++) wide[h * PANEL + row] = key[h];
    if (type_ == QType::F16)
        for (size_t h = 0; h < head_dim_; h++) half[h * PANEL + row] = to_half(key[h]);
    if (type_ == QType::BF16)
        for (size_t h = 0; h < head_dim_; h++) half[h / 2 * 2 * PANEL + row * 2 + h % 2] = to_bfloat(key[h]);
    if (type_ != QType::Q8_0) return;
    for (size_t b = 0; b < head_dim_ / 32; b++) {
        uint8_t* block = panel + b * PANEL * 34;
        const Quantised by = quantised(key + 32 * b);
        const uint16_t scale = to_half(by.scale);
        std::memcpy(block + 2 * row, &scale, 2);
        for (size_t i = 0; i < 32; i++) {
            const int q = static_cast<int>(std::nearbyint(key[32 * b + i] * by.inverse));
            block[2 * PANEL + i / 4 * 64 + row * 4 + i % 4] = static_cast<uint8_t>(q + 128);
        }
    }
}

void Cache::write_value(uint8_t* values, size_t slot, const float* value) const {
    for (size_t h = 0; h < head_dim_; h++) {
        uint8_t* panel = values + h / PANEL * value_panel_bytes_;
        const size_t row = h % PANEL;
        auto* half = reinterpret_cast<uint16_t*>(panel);
        if (type_ == QType::F32) reinterpret_cast<float*>(panel)[slot * PANEL + row] = value[h];
        if (type_ == QType::F16) half[slot * PANEL + row] = to_half(value[h]);
        if (type_ == QType::BF16) half[slot / 2 * 2 * PANEL + row * 2 + slot % 2] = to_bfloat(value[h]);
    }
    if (type_ != QType::Q8_0) return;
    auto* scales = const_cast<float*>(value_scales(values));
    for (size_t b = 0; b < head_dim_ / 32; b++) {
        const Quantised by = quantised(value + 32 * b);
        scales[b * PAGE + slot] = by.scale;
        for (size_t i = 0; i < 32; i++) {
            const size_t h = 32 * b + i;
            const int q = static_cast<int>(std::nearbyint(value[h] * by.inverse));
            values[h / PANEL * value_panel_bytes_ + slot * PANEL + h % PANEL] = static_cast<uint8_t>(q);
        }
    }
}

}  // namespace geode
