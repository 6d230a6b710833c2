// Keys and values in pages of 64 positions, which sequences may share.
//
// Layers that see equally far are one group. A page of a group holds 64 positions of all its layers:
//
//     page | layer 0: head 0: K V, head 1: K V ... | layer 1: ... |
//
//     K   panels of 16 positions, columns = channels   (so scores are the product of a panel and a query)
//     V   panels of 16 channels, columns = positions   (so the answer is the product of a panel and the weights)
//
// Which page belongs to which sequence is not known here.
#pragma once
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "memory.h"

namespace geode {

constexpr size_t PAGE = 64;

// What a layer sees: the tokens of `window` up to itself (0: all), and its place among layers that see equally far.
struct Seen {
    size_t window;
    size_t group, place;
};

class Cache {
public:
    // `type`: F32, F16, BF16 or Q8_0. `pages[g]`: how many group g has. Memory is taken when a page is first written.
    Cache(QType type, size_t kv_heads, size_t head_dim, const std::vector<Seen>& layers, std::vector<size_t> pages);
    Cache(const Cache&) = delete;

    QType type() const { return type_; }
    size_t pages(size_t group) const { return groups_[group].pages; }
    size_t groups() const { return groups_.size(); }
    size_t page_bytes(size_t group) const { return groups_[group].page_bytes; }

    // All bytes of a page.
    uint8_t* page(size_t group, size_t page) { return groups_[group].memory.bytes() + page * groups_[group].page_bytes; }

    const uint8_t* keys(const Seen& layer, int32_t page, size_t head) const { return at(layer, page, head); }
    const uint8_t* values(const Seen& layer, int32_t page, size_t head) const {
        return at(layer, page, head) + key_bytes_;
    }
    size_t key_panel_bytes() const { return panel_bytes(type_, head_dim_); }
    size_t value_panel_bytes() const { return value_panel_bytes_; }
    size_t key_bytes() const { return PAGE / PANEL * key_panel_bytes(); }
    size_t value_bytes() const { return value_panels() * value_panel_bytes_; }
    size_t value_panels() const { return (head_dim_ + PANEL - 1) / PANEL; }

    // Of Q8_0: the scale of each position's 32 channels, (blocks, PAGE) floats behind the panels.
    const float* value_scales(const uint8_t* values) const {
        return reinterpret_cast<const float*>(values + value_panels() * value_panel_bytes_);
    }

    // Wipes what a former owner left (a NaN would live on, for 0 · NaN is NaN): to be done before a page's first position is written.
    void clear(size_t group, int32_t page);

    // One position's key and value of one head: `head_dim` floats each.
    void write(const Seen& layer, int32_t page, size_t head, size_t slot, const float* key, const float* value);

private:
    struct Group {
        size_t layers = 0, pages = 0, page_bytes = 0;
        Buffer memory;
    };

    uint8_t* at(const Seen& layer, int32_t page, size_t head) const {
        const Group& group = groups_[layer.group];
        return group.memory.bytes() + page * group.page_bytes + (layer.place * kv_heads_ + head) * head_bytes_;
    }
    void write_key(uint8_t* keys, size_t slot, const float* key) const;
    void write_value(uint8_t* values, size_t slot, const float* value) const;

    QType type_;
    size_t kv_heads_, head_dim_;
    size_t key_bytes_, value_panel_bytes_, head_bytes_;
    std::vector<Group> groups_;
};

}  // namespace geode
