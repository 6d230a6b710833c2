#include "adapters.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"

namespace geode {

namespace {

constexpr size_t NONE = SIZE_MAX;
constexpr size_t GATHERED = 8;  // panels whose outputs are brought together at a time

Matrix packed(QType type, const void* data, size_t rows, size_t columns) {
    Matrix matrix = empty_matrix(type, rows, columns);
    pack_panels(matrix, static_cast<const uint8_t*>(data), row_bytes(type, columns), 0, matrix.panels());
    return matrix;
}

// The matrix, as halves over a power of two that leaves the largest between 1 and 2; `scale` takes up that power.
Matrix packed_halves(const float* data, size_t rows, size_t columns, float& scale) {
    float most = 0;
    for (size_t i = 0; i < rows * columns; i++) most = std::max(most, std::fabs(data[i]));
    const int power = most > 0 && std::isfinite(most) ? std::ilogb(most) : 0;
    std::vector<uint16_t> halves(rows * columns);
    for (size_t i = 0; i < halves.size(); i++) halves[i] = to_half(std::ldexp(data[i], -power));
    scale = std::ldexp(scale, power);
    return packed(QType::F16, halves.data(), rows, columns);
}

void multiply(const Kernels& k, const Matrix& m, Range panels, const Acts& x, float* y, size_t ldy, bool add) {
    k.matmul[static_cast<int>(m.type)](m.panel(panels.begin), panels.end - panels.begin, m.panel_bytes, x, y, ldy, add);
}

// Rows a power of two apart would crowd into a few lines of a cache.
size_t stride_of(size_t columns) { return round_up(columns, PANEL) + PANEL; }

}  // namespace

// ---- one adapter ----

Adapter::Adapter(const Model& model)
    : serial_(model.serial()), width_(model.spec().width), pairs_(LINEARS * model.spec().depth + 1) {}

void Adapter::add(const Model& model, const std::string& name, const float* a, const float* b, size_t rank, float scale) {
    const auto [rows, columns] = model.shape(name);
    if (name == "token_embd.weight") {
        embedding_rank_ = rank;
        embedding_a_.assign(a, a + rank * columns);
        embedding_b_.assign(b, b + rows * rank);
        for (float& x : embedding_b_) x *= scale;
        return;
    }
    const Linear& linear = model.linear(name);
    const bool is_wide = linear.weight.type == QType::F32;
    Pair& pair = pairs_[linear.number];
    pair.scale = scale;
    pair.a = is_wide ? packed(QType::F32, a, rank, columns) : packed_halves(a, rank, columns, pair.scale);
    pair.b = is_wide ? packed(QType::F32, b, rows, rank) : packed_halves(b, rows, rank, pair.scale);
    rank_ = std::max(rank_, rank);
}

void Adapter::embed(const Kernels& k, size_t token, float* x) const {
    for (size_t i = 0; i < embedding_rank_; i++)
        k.blend(embedding_a_.data() + i * width_, width_, embedding_b_[token * embedding_rank_ + i], 1, x);
}

size_t Adapter::nbytes() const {
    size_t total = (embedding_a_.size() + embedding_b_.size()) * sizeof(float);
    for (const Pair& pair : pairs_) total += pair.a.data.size() + pair.b.data.size();
    return total;
}

// ---- the rows of a batch ----

void AdaptedRows::assign(const Adapters& of_row, const std::vector<size_t>& widths) {
    runs_.clear();
    rows_.clear();
    place_.assign(of_row.size(), NONE);
    size_t rank = 0;
    for (size_t first = 0; first < of_row.size(); first++) {
        if (!of_row[first] || place_[first] != NONE) continue;
        runs_.push_back({of_row[first], rows_.size(), 0});
        for (size_t row = first; row < of_row.size(); row++) {
            if (of_row[row] != of_row[first]) continue;
            place_[row] = rows_.size();
            rows_.push_back(row);
        }
        runs_.back().count = rows_.size() - runs_.back().first;
        rank = std::max(rank, of_row[first]->rank());
    }
    if (rows_.empty()) return;
    inputs_.resize(widths.size());
    strides_.clear();
    for (size_t i = 0; i < widths.size(); i++) {
        strides_.push_back(stride_of(widths[i]));
        inputs_[i].grow(rows_.size() * strides_[i] * sizeof(float));
    }
    low_stride_ = stride_of(rank);
    low_.grow(LINEARS * rows_.size() * low_stride_ * sizeof(float));
}

void AdaptedRows::take(size_t input, size_t row, const float* x, size_t columns, size_t first) {
    if (place_[row] == NONE) return;
    std::memcpy(inputs_[input].floats() + place_[row] * strides_[input] + first, x, columns * sizeof(float));
}

// Matrices of a layer have places of their own.
float* AdaptedRows::low(const Linear& linear, size_t place) const {
    return low_.floats() + (linear.number % LINEARS * rows_.size() + place) * low_stride_;
}

void AdaptedRows::lower(const Kernels& k, std::initializer_list<const Linear*> linears, size_t input, Range mine) {
    for (const Run& run : runs_) {
        const auto begin = rows_.begin() + run.first, end = begin + run.count;
        const size_t first = std::lower_bound(begin, end, mine.begin) - rows_.begin();
        const size_t last = std::lower_bound(begin, end, mine.end) - rows_.begin();
        Acts x;
        x.rows = last - first;
        x.stride = strides_[input];
        x.floats = inputs_[input].floats() + first * x.stride;
        for (const Linear* linear : linears) {
            const Pair* pair = run.adapter->pair(*linear);
            if (!pair || first == last) continue;
            x.columns = pair->a.columns;
            multiply(k, pair->a, {0, pair->a.panels()}, x, low(*linear, first), low_stride_, false);
            for (size_t place = first; place < last; place++)
                k.scale_and_cap(low(*linear, place), pair->a.rows, pair->scale, 0);
        }
    }
}

void AdaptedRows::raise(const Kernels& k, const Linear& linear, Range panels, float* y, size_t ldy, Buffer& scratch) const {
    for (const Run& run : runs_) {
        const Pair* pair = run.adapter->pair(linear);
        if (!pair) continue;
        Acts x;
        x.rows = run.count;
        x.columns = pair->b.columns;
        x.stride = low_stride_;
        x.floats = low(linear, run.first);
        const size_t first = rows_[run.first];
        if (rows_[run.first + run.count - 1] - first == run.count - 1)
            multiply(k, pair->b, panels, x, y + first * ldy, ldy, true);
        else
            raise_scattered(k, *pair, run, x, panels, y, ldy, scratch);
    }
}

// Rows with others between them are brought together, so that B is read once for all; the bits are the same.
void AdaptedRows::raise_scattered(const Kernels& k, const Pair& pair, const Run& run, const Acts& low, Range panels,
                                  float* y, size_t ldy, Buffer& scratch) const {
    constexpr size_t WIDE = GATHERED * PANEL;
    scratch.grow(run.count * WIDE * sizeof(float));
    for (size_t first = panels.begin; first < panels.end; first += GATHERED) {
        const size_t count = std::min(GATHERED, panels.end - first), size = count * PANEL * sizeof(float);
        float* at = y + (first - panels.begin) * PANEL;
        for (size_t i = 0; i < run.count; i++)
            std::memcpy(scratch.floats() + i * WIDE, at + rows_[run.first + i] * ldy, size);
        multiply(k, pair.b, {first, first + count}, low, scratch.floats(), WIDE, true);
        for (size_t i = 0; i < run.count; i++)
            std::memcpy(at + rows_[run.first + i] * ldy, scratch.floats() + i * WIDE, size);
    }
}

}  // namespace geode
