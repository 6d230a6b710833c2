// Low-rank changes to a network's matrices, another one for each sequence of a batch: y += B · scale · (A · x).
//
// What is multiplied are floats. A and B have the matrix's own 32 bits, or 16 where it has fewer.
//
// What an adapter is called, who uses it and for how long are not known here.
#pragma once
#include "model.h"

namespace geode {

// What an adapter does to one matrix (out, in).
struct Pair {
    Matrix a, b;  // (rank, in), (out, rank); F32 or F16, which all instruction sets multiply with FLOATS
    float scale = 1;

    explicit operator bool() const { return static_cast<bool>(a); }
};

// The changes to one model's matrices.
class Adapter {
public:
    explicit Adapter(const Model& model);
    Adapter(const Adapter&) = delete;

    // Changes the matrix of a canonical name by a (rank, in) and b (out, rank), which must fit it. Throws
    // std::out_of_range for a name that no pair can change.
    void add(const Model& model, const std::string& name, const float* a, const float* b, size_t rank, float scale);

    // nullptr where it leaves the matrix as it is.
    const Pair* pair(const Linear& linear) const { return pairs_[linear.number] ? &pairs_[linear.number] : nullptr; }
    // x += what it adds to a token's embedding.
    void embed(const Kernels& k, size_t token, float* x) const;

    bool fits(const Model& model) const { return serial_ == model.serial(); }
    bool changes_head() const { return static_cast<bool>(pairs_.back()); }
    size_t rank() const { return rank_; }
    size_t nbytes() const;

private:
    size_t serial_, width_, rank_ = 0;
    std::vector<Pair> pairs_;                       // by Linear::number
    size_t embedding_rank_ = 0;                     // 0: embeddings are as they were
    std::vector<float> embedding_a_, embedding_b_;  // (rank, width), and (vocab, rank) times the scale
};

// Those rows of a batch that have adapters, the rows of one adapter side by side, and what A made of them. A row's
// result is the same whatever the other rows are.
class AdaptedRows {
public:
    // `of_row`: each row's adapter or nullptr; `widths`: columns of the inputs that will be taken.
    void assign(const Adapters& of_row, const std::vector<size_t>& widths);
    explicit operator bool() const { return !rows_.empty(); }

    // Keeps what row `row` is multiplied by: `columns` of input `input` from column `first` on.
    void take(size_t input, size_t row, const float* x, size_t columns, size_t first = 0);
    // A · x of the batch's rows [mine), for matrices that read `input`.
    void lower(const Kernels& k, std::initializer_list<const Linear*> linears, size_t input, Range mine);
    // y += B · (A · x) for all rows and some panels of one matrix; y (rows of the batch, ldy) begins at the first of them.
    void raise(const Kernels& k, const Linear& linear, Range panels, float* y, size_t ldy, Buffer& scratch) const;

private:
    struct Run {  // rows_[first, first + count) have this adapter
        const Adapter* adapter;
        size_t first, count;
    };
    float* low(const Linear& linear, size_t place) const;
    void raise_scattered(const Kernels& k, const Pair& pair, const Run& run, const Acts& low, Range panels, float* y,
                         size_t ldy, Buffer& scratch) const;

    std::vector<Run> runs_;
    std::vector<size_t> rows_;   // of the batch, ascending within a run
    std::vector<size_t> place_;  // of a row of the batch in rows_
    std::vector<size_t> strides_;
    std::vector<Buffer> inputs_;
    Buffer low_;
    size_t low_stride_ = 0;
};

}  // namespace geode
