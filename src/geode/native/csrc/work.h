// The buffers of one forward, kept from call to call, and what its stages share.
#pragma once
#include "adapters.h"
#include "model.h"

namespace geode {

// Rows of an activation with memory for the forms that are asked for.
class ActBuffer {
public:
    // Makes room; the padding columns are zero. Integers of several rows lie side by side unless `tall` is 0.
    void resize(size_t rows, size_t columns, unsigned forms, int tall = 4);
    const Acts& acts() const { return acts_; }
    Acts& acts() { return acts_; }
    unsigned forms() const { return forms_; }

private:
    Acts acts_;
    unsigned forms_ = 0;
    size_t capacity_ = 0;  // rows
    Buffer memory_;
};

// One block of query rows of one key/value head of one sequence, and the chunks of positions that it looks at.
struct AttentionItem {
    size_t sequence, head, row, rows;  // rows of the batch [row, row + rows)
    size_t first_chunk, chunks;
    size_t partial;  // where its partial results begin, in chunks of `partial_floats`
};

struct Work {
    explicit Work(Model& model) : model(model), k(model.kernels()), spec(model.spec()) {}

    void forward(const Batch& batch, Cache& cache, float* out, const Taps& taps);

    Model& model;
    const Kernels& k;
    const Spec& spec;

private:
    struct Scratch {  // of one thread
        Buffer scores, weights, sums, gate, up, row, adapted;
        ActBuffer p, queries;
        std::vector<uint8_t> bytes;
    };

    void prepare_buffers();
    void plan_adapters(const Adapters& of_row);

    // What every thread runs; barriers inside.
    void run(int thread);
    void begin(int thread);
    void block(const Layer& layer, const Seen& seen, bool last, int thread);
    void finish(float* out, int thread);

    // Stages over rows: a thread's rows are the same in all of them.
    void enter(const Layer& layer, int thread);
    void between(const Layer& layer, int thread);
    void leave(const Layer& layer, int thread);
    void narrow();
    void heads(const Layer& layer, const Seen& seen, int thread);
    void finish_projection(float* y, size_t heads, const std::vector<float>& bias) const;
    const float* turns_of(const Layer& layer, size_t row) const;
    void turn_heads(float* y, size_t heads, const std::vector<float>& weight, const Layer& layer, size_t row) const;
    void store_heads(const Seen& seen, size_t row);

    // Stages over panels.
    struct Product {
        const Linear* linear;
        float* y;
        size_t ldy;
    };
    void project(const std::vector<Product>& products, const Acts& acts, int thread);
    void feed_forward(const Layer& layer, const Acts& acts, int thread);
    void gate_and_up(const Layer& layer, const Acts& acts, Range panels, int thread);

    // attention.cpp
    void plan_attention(const Seen& seen, bool last);
    void plan_rows(const Seen& seen, size_t row, size_t rows);
    void attend(const Seen& seen, int thread);
    void attend_item(const AttentionItem& item, const Seen& seen, int thread);
    void chunk(const AttentionItem& item, const Seen& seen, size_t index, float* sums, float* peaks, float* totals,
               Scratch& scratch);
    void values_times_weights(const AttentionItem& item, const Seen& seen, Range pages, size_t rows, Acts p, float* sums,
                              Scratch& scratch);
    void combine(const AttentionItem& item);
    Range visible(const Seen& seen, size_t position) const;
    unsigned query_forms() const;
    Acts queries_of(const AttentionItem& item, Scratch& scratch);
    size_t position_of(size_t row) const { return position_[row]; }

    void normalise(const Norm& norm, const float* x, float* out) const;
    void prepare(const float* x, ActBuffer& to, size_t row) const { k.prepare(x, to.forms(), to.acts(), row); }
    void store_residual(const Norm* norm, const std::vector<float>& bias, float* y, size_t row);
    Range rows_of(int thread) const { return share(rows_, thread, model.pool().size()); }

    void note(const Layer& layer, Input input, const float* x, size_t columns, size_t row, int thread, size_t first = 0);
    void look(const Layer& layer, Input input, const float* x, size_t columns, int thread, size_t first);
    void lower(std::initializer_list<const Linear*> linears, Input input, int thread);
    void keep_residual(size_t place, int thread);

    const Batch* batch_ = nullptr;
    Taps taps_;
    std::vector<double> squares_;  // (threads, depth, Spec::inputs()), where they are looked at
    Cache* cache_ = nullptr;
    float* out_ = nullptr;
    size_t rows_ = 0;
    bool narrows_ = false;  // the last layer goes on with the wanted rows only
    std::vector<size_t> sequence_of_, position_;  // of each row
    Buffer x_, q_, k_, v_, attended_, attention_, fed_, turns_;
    size_t q_stride_ = 0, kv_stride_ = 0, width_stride_ = 0;
    ActBuffer in_, in2_, queries_, attended_acts_, hidden_;
    AdaptedRows adapted_;
    std::vector<Scratch> scratch_;
    std::vector<AttentionItem> items_;
    bool split_ = false;
    Buffer partials_;
};

}  // namespace geode
