// One forward for every family, driven by Spec. All threads run `Work::run` together and meet at barriers:
//
//     enter      norm, quantise                                        rows
//     project    q, k, v                                               panels
//     heads      bias, clip, norms, rotation; keys and values stored   rows
//     attend     (attention.cpp)                                       blocks of rows and heads
//     project    output                                                panels
//     between    norm, add to the residual, norm, quantise             rows
//     feed       gate, up, activation, quantise | down                 panels
//     leave      norm, add to the residual                             rows
//
// Buffers hold rows of floats; a row belongs to the same thread in all stages over rows, so none is between two of them.
#include <cmath>
#include <cstring>

#include "work.h"

namespace geode {

namespace {

size_t pad16(size_t n) { return round_up(n, PANEL); }

unsigned forms_of(const Kernels& k, std::initializer_list<const Matrix*> readers) {
    unsigned forms = 0;
    for (const Matrix* matrix : readers)
        if (*matrix) forms |= k.form[static_cast<int>(matrix->type)];
    return forms;
}

// Rows a power of two apart would crowd into a few lines of a cache.
size_t stride_of(size_t columns) {
    const size_t stride = round_up(columns, 32);
    return stride % 512 ? stride : stride + 32;
}

const float* data_or_null(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

}  // namespace

void ActBuffer::resize(size_t rows, size_t columns, unsigned forms, int tall) {
    if (rows == 1) tall = 0;
    const size_t stride = stride_of(columns), n = round_up(rows, size_t{1} << tall) * stride;
    const size_t q = forms & INTEGERS ? n : 0;
    const size_t sizes[8] = {forms & FLOATS ? 4 * n : 0, forms & BFLOATS ? 2 * n : 0, q, q / 8, q / 8, q / 8, q / 4, q / 4};
    size_t total = 64;  // kernels read whole vectors
    for (size_t size : sizes) total += round_up(size, 64);
    const bool fits = acts_.stride == stride && acts_.tall == tall && forms_ == forms && acts_.columns == columns && capacity_ >= rows;
    forms_ = forms;
    if (!fits) {
        capacity_ = rows;
        memory_.grow(total);
        std::memset(memory_.bytes(), 0, total);
        acts_ = Acts();
        uint8_t* at = memory_.bytes();
        uint8_t* parts[8];
        for (int i = 0; i < 8; i++) {
            parts[i] = sizes[i] ? at : nullptr;
            at += round_up(sizes[i], 64);
        }
        acts_.floats = reinterpret_cast<float*>(parts[0]);
        acts_.bfloats = reinterpret_cast<uint16_t*>(parts[1]);
        acts_.q = reinterpret_cast<int8_t*>(parts[2]);
        acts_.scale = reinterpret_cast<float*>(parts[3]);
        acts_.sum = reinterpret_cast<float*>(parts[4]);
        acts_.minus = reinterpret_cast<int32_t*>(parts[5]);
        acts_.half_sum = reinterpret_cast<float*>(parts[6]);
        acts_.half_minus = reinterpret_cast<int32_t*>(parts[7]);
        acts_.stride = stride;
        acts_.tall = tall;
    }
    acts_.rows = rows;
    acts_.columns = columns;
}

void Work::forward(const Batch& batch, Cache& cache, float* out, const Taps& taps) {
    batch_ = &batch;
    taps_ = taps;
    cache_ = &cache;
    out_ = out;
    rows_ = batch.rows();
    narrows_ = batch.wanted.size() * 8 <= rows_;
    prepare_buffers();
    const size_t inputs = spec.depth * spec.inputs();
    squares_.assign(taps.squares ? model.pool().size() * inputs : 0, 0.0);
    model.pool().run([this](int thread) { run(thread); });
    for (size_t i = 0; i < squares_.size(); i++) taps.squares[i % inputs] += squares_[i];
}

void Work::prepare_buffers() {
    const size_t n = rows_, wide = spec.heads * spec.head_dim, narrow = spec.kv_heads * spec.head_dim;
    q_stride_ = pad16(wide);
    kv_stride_ = pad16(narrow);
    width_stride_ = pad16(spec.width);
    for (Buffer* buffer : {&x_, &attention_, &fed_}) buffer->grow(4 * n * width_stride_);
    for (Buffer* buffer : {&q_, &attended_}) buffer->grow(4 * n * q_stride_);
    for (Buffer* buffer : {&k_, &v_}) buffer->grow(4 * n * kv_stride_);
    size_t turns = 0;
    for (const Rope& rope : model.ropes_) turns += 2 * rope.frequencies.size();
    turns_.grow(4 * n * turns + 64);
    scratch_.resize(model.pool().size());

    unsigned in = 0, in2 = 0, attended = 0, hidden = 0;
    for (const Layer& l : model.layers_) {
        in |= forms_of(k, {&l.q.weight, &l.k.weight, &l.v.weight});
        (spec.block == BlockKind::PARALLEL ? in2 : in) |= forms_of(k, {&l.gate.weight, &l.up.weight});
        attended |= forms_of(k, {&l.output.weight});
        hidden |= forms_of(k, {&l.down.weight});
    }
    in_.resize(n, spec.width, in);
    if (in2) in2_.resize(n, spec.width, in2);
    attended_acts_.resize(n, wide, attended);
    hidden_.resize(n, spec.ffn, hidden);
    queries_.resize(n * spec.heads, spec.head_dim, query_forms());

    sequence_of_.resize(n);
    position_.resize(n);
    for (size_t s = 0; s < batch_->sequences(); s++)
        for (int32_t row = batch_->starts[s]; row < batch_->starts[s + 1]; row++) {
            sequence_of_[row] = s;
            position_[row] = batch_->past[s] + (row - batch_->starts[s]);
        }
    Adapters of_row;
    for (size_t row = 0; row < n && !batch_->adapters.empty(); row++) of_row.push_back(batch_->adapters[sequence_of_[row]]);
    plan_adapters(of_row);
}

void Work::plan_adapters(const Adapters& of_row) {
    adapted_.assign(of_row, {spec.width, spec.width, spec.heads * spec.head_dim, spec.ffn});
}

void Work::run(int thread) {
    begin(thread);
    keep_residual(0, thread);
    for (size_t i = 0; i < spec.depth; i++) {
        block(model.layers_[i], model.seen_[i], narrows_ && i + 1 == spec.depth, thread);
        keep_residual(i + 1, thread);
    }
    model.pool().barrier();
    finish(out_, thread);
}

// What a row of an input is beside what the kernels read of it.
void Work::note(const Layer& layer, Input input, const float* x, size_t columns, size_t row, int thread, size_t first) {
    look(layer, input, x, columns, thread, first);
    if (adapted_) adapted_.take(static_cast<size_t>(input), row, x, columns, first);
}

// Adapters' A times a thread's own rows.
void Work::lower(std::initializer_list<const Linear*> linears, Input input, int thread) {
    if (adapted_) adapted_.lower(k, linears, static_cast<size_t>(input), rows_of(thread));
}

// Adds the squares of some columns of an input, from column `first` on.
void Work::look(const Layer& layer, Input input, const float* x, size_t columns, int thread, size_t first) {
    if (squares_.empty()) return;
    const size_t widths[] = {spec.width, spec.width, spec.heads * spec.head_dim};
    size_t at = (thread * spec.depth + (&layer - model.layers_.data())) * spec.inputs() + first;
    for (size_t before = 0; before < static_cast<size_t>(input); before++) at += widths[before];
    for (size_t i = 0; i < columns; i++) squares_[at + i] += static_cast<double>(x[i]) * x[i];
}

void Work::keep_residual(size_t place, int thread) {
    if (!taps_.residual) return;
    const Range mine = rows_of(thread);
    for (size_t row = mine.begin; row < mine.end; row++)
        std::memcpy(taps_.residual + (place * rows_ + row) * spec.width, x_.floats() + row * width_stride_, 4 * spec.width);
}

// Embeddings and rotations of the rows, and pages wiped that get their first position.
void Work::begin(int thread) {
    Scratch& scratch = scratch_[thread];
    const Range mine = rows_of(thread);
    size_t turns = 0;
    for (const Rope& rope : model.ropes_) turns += 2 * rope.frequencies.size();
    for (size_t row = mine.begin; row < mine.end; row++) {
        float* x = x_.floats() + row * width_stride_;
        model.embed(batch_->tokens[row], x, scratch.bytes);
        if (const Adapter* adapter = batch_->adapters.empty() ? nullptr : batch_->adapters[sequence_of_[row]])
            adapter->embed(k, batch_->tokens[row], x);
        if (spec.embedding_scale != 0)
            for (size_t i = 0; i < spec.width; i++) x[i] *= spec.embedding_scale;
        float* turn = turns_.floats() + row * turns;
        for (const Rope& rope : model.ropes_)
            for (const bool is_sine : {false, true})
                for (const float frequency : rope.frequencies) {
                    const float angle = static_cast<float>(position_[row]) * frequency;
                    *turn++ = (is_sine ? std::sin(angle) : std::cos(angle)) * rope.magnitude;
                }
        if (position_[row] % PAGE) continue;
        for (size_t g = 0; g < batch_->tables.size(); g++) {
            const int32_t page = batch_->table(g, sequence_of_[row])[position_[row] / PAGE];
            if (page >= 0) cache_->clear(g, page);
        }
    }
}

void Work::block(const Layer& layer, const Seen& seen, bool last, int thread) {
    Pool& pool = model.pool();
    enter(layer, thread);
    if (thread == 0) plan_attention(seen, last);
    pool.barrier();
    project({{&layer.q, q_.floats(), q_stride_}, {&layer.k, k_.floats(), kv_stride_}, {&layer.v, v_.floats(), kv_stride_}},
            in_.acts(), thread);
    pool.barrier();
    heads(layer, seen, thread);
    pool.barrier();
    attend(seen, thread);
    pool.barrier();
    if (last) {
        if (thread == 0) narrow();
        pool.barrier();
        if (rows_ == 0) return;
        if (spec.is_parallel()) enter(layer, thread);  // what feeds the other half has moved with its rows
    }
    for (Range mine = rows_of(thread); mine.begin < mine.end; mine.begin++) {
        const float* attended = attended_.floats() + mine.begin * q_stride_;
        note(layer, Input::ATTENDED, attended, spec.heads * spec.head_dim, mine.begin, thread);
        prepare(attended, attended_acts_, mine.begin);
    }
    lower({&layer.output}, Input::ATTENDED, thread);
    pool.barrier();
    project({{&layer.output, attention_.floats(), width_stride_}}, attended_acts_.acts(), thread);
    pool.barrier();
    if (!spec.is_parallel()) {
        between(layer, thread);
        pool.barrier();
    }
    feed_forward(layer, spec.block == BlockKind::PARALLEL ? in2_.acts() : in_.acts(), thread);
    pool.barrier();
    leave(layer, thread);
}

void Work::normalise(const Norm& norm, const float* x, float* out) const {
    const auto run = spec.norm == NormKind::RMS ? k.rms_norm : k.layer_norm;
    run(x, spec.width, spec.eps, data_or_null(norm.weight), data_or_null(norm.bias), out);
}

void Work::enter(const Layer& layer, int thread) {
    const Range mine = rows_of(thread);
    scratch_[thread].row.grow(4 * width_stride_);
    float* normed = scratch_[thread].row.floats();
    for (size_t row = mine.begin; row < mine.end; row++) {
        const float* x = x_.floats() + row * width_stride_;
        if (layer.attn_norm.present) normalise(layer.attn_norm, x, normed);
        const float* input = layer.attn_norm.present ? normed : x;
        note(layer, Input::ATTENTION, input, spec.width, row, thread);
        prepare(input, in_, row);
        if (spec.block == BlockKind::PARALLEL_SHARED) note(layer, Input::FEED_FORWARD, input, spec.width, row, thread);
        if (spec.block != BlockKind::PARALLEL) continue;
        normalise(layer.ffn_norm, x, normed);
        note(layer, Input::FEED_FORWARD, normed, spec.width, row, thread);
        prepare(normed, in2_, row);
    }
    lower({&layer.q, &layer.k, &layer.v}, Input::ATTENTION, thread);
    if (spec.is_parallel()) lower({&layer.gate, &layer.up}, Input::FEED_FORWARD, thread);
}

// x += norm(y + bias) for one row; y is changed.
void Work::store_residual(const Norm* norm, const std::vector<float>& bias, float* y, size_t row) {
    if (!bias.empty()) k.add(bias.data(), spec.width, y);
    if (norm && norm->present) normalise(*norm, y, y);
    k.add(y, spec.width, x_.floats() + row * width_stride_);
}

void Work::between(const Layer& layer, int thread) {
    const Range mine = rows_of(thread);
    float* normed = scratch_[thread].row.floats();
    for (size_t row = mine.begin; row < mine.end; row++) {
        store_residual(&layer.post_attention_norm, layer.output.bias, attention_.floats() + row * width_stride_, row);
        const float* x = x_.floats() + row * width_stride_;
        if (layer.ffn_norm.present) normalise(layer.ffn_norm, x, normed);
        const float* input = layer.ffn_norm.present ? normed : x;
        note(layer, Input::FEED_FORWARD, input, spec.width, row, thread);
        prepare(input, in_, row);
    }
    lower({&layer.gate, &layer.up}, Input::FEED_FORWARD, thread);
}

void Work::leave(const Layer& layer, int thread) {
    const Range mine = rows_of(thread);
    for (size_t row = mine.begin; row < mine.end; row++) {
        if (spec.is_parallel())
            store_residual(nullptr, layer.output.bias, attention_.floats() + row * width_stride_, row);
        store_residual(&layer.post_ffw_norm, layer.down.bias, fed_.floats() + row * width_stride_, row);
    }
}

// Moves the wanted rows to the front: nobody looks at the others' way through the rest of the last layer.
void Work::narrow() {
    for (size_t i = 0; i < batch_->wanted.size(); i++) {
        const size_t row = batch_->wanted[i];
        std::memmove(x_.floats() + i * width_stride_, x_.floats() + row * width_stride_, 4 * width_stride_);
        std::memmove(attended_.floats() + i * q_stride_, attended_.floats() + row * q_stride_, 4 * q_stride_);
    }
    rows_ = batch_->wanted.size();
    Adapters of_row;
    for (size_t i = 0; i < rows_ && adapted_; i++) of_row.push_back(batch_->adapters[sequence_of_[batch_->wanted[i]]]);
    plan_adapters(of_row);
    for (ActBuffer* acts : {&in_, &in2_, &attended_acts_, &hidden_}) acts->acts().rows = rows_;
}

void Work::finish(float* out, int thread) {
    const Range mine = share(batch_->wanted.size(), thread, model.pool().size());
    for (size_t i = mine.begin; i < mine.end; i++)
        normalise(model.output_norm_, x_.floats() + (narrows_ ? i : batch_->wanted[i]) * width_stride_, out + i * spec.width);
}

void Work::project(const std::vector<Product>& products, const Acts& acts, int thread) {
    size_t total = 0;
    for (const Product& p : products) total += p.linear->weight.panels();
    const Range mine = share(total, thread, model.pool().size());
    size_t before = 0;
    for (const Product& p : products) {
        const Matrix& m = p.linear->weight;
        const size_t first = std::max(mine.begin, before), last = std::min(mine.end, before + m.panels());
        if (first < last) {
            float* y = p.y + (first - before) * PANEL;
            k.matmul[static_cast<int>(m.type)](m.panel(first - before), last - first, m.panel_bytes, acts, y, p.ldy, false);
            adapted_.raise(k, *p.linear, {first - before, last - before}, y, p.ldy, scratch_[thread].adapted);
        }
        before += m.panels();
    }
}

void Work::heads(const Layer& layer, const Seen& seen, int thread) {
    const Range mine = rows_of(thread);
    for (size_t row = mine.begin; row < mine.end; row++) {
        finish_projection(q_.floats() + row * q_stride_, spec.heads, layer.q.bias);
        finish_projection(k_.floats() + row * kv_stride_, spec.kv_heads, layer.k.bias);
        finish_projection(v_.floats() + row * kv_stride_, spec.kv_heads, layer.v.bias);
        turn_heads(q_.floats() + row * q_stride_, spec.heads, layer.q_norm, layer, row);
        turn_heads(k_.floats() + row * kv_stride_, spec.kv_heads, layer.k_norm, layer, row);
        store_heads(seen, row);
    }
}

void Work::finish_projection(float* y, size_t heads, const std::vector<float>& bias) const {
    if (!bias.empty()) k.add(bias.data(), heads * spec.head_dim, y);
    for (size_t i = 0; i < heads * spec.head_dim && spec.clip_qkv != 0; i++)
        y[i] = std::min(std::max(y[i], -spec.clip_qkv), spec.clip_qkv);
}

// cos and then sin of a row's angles in a layer.
const float* Work::turns_of(const Layer& layer, size_t row) const {
    size_t all = 0, before = 0;
    for (size_t r = 0; r < model.ropes_.size(); r++) {
        if (r < static_cast<size_t>(layer.rope)) before += 2 * model.ropes_[r].frequencies.size();
        all += 2 * model.ropes_[r].frequencies.size();
    }
    return turns_.floats() + row * all + before;
}

// Norms and rotation of the heads of a query or a key.
void Work::turn_heads(float* y, size_t heads, const std::vector<float>& weight, const Layer& layer, size_t row) const {
    const size_t size = spec.head_dim, pairs = model.ropes_[layer.rope].frequencies.size();
    const float* cos = turns_of(layer, row);
    const auto norm = spec.norm == NormKind::RMS ? k.rms_norm : k.layer_norm;
    const bool by_head = spec.qk_norm == QKNorm::SHARED || spec.qk_norm == QKNorm::PER_HEAD;
    if (spec.qk_norm == QKNorm::WHOLE) norm(y, heads * size, spec.eps, data_or_null(weight), nullptr, y);
    for (size_t h = 0; h < heads; h++, y += size) {
        const float* own = weight.empty() ? nullptr : weight.data() + (spec.qk_norm == QKNorm::PER_HEAD ? h * size : 0);
        if (by_head) norm(y, size, spec.eps, own, nullptr, y);
        k.rotate(y, cos, cos + pairs, pairs);
    }
}

// A row's keys and values into the cache, its queries into the form that meets them: (kv head, row, query head of it).
void Work::store_heads(const Seen& seen, size_t row) {
    const size_t size = spec.head_dim, group = spec.group(), position = position_[row];
    const int32_t page = batch_->table(seen.group, sequence_of_[row])[position / PAGE];
    for (size_t head = 0; head < spec.kv_heads; head++) {
        const size_t at = row * kv_stride_ + head * size;
        if (page >= 0) cache_->write(seen, page, head, position % PAGE, k_.floats() + at, v_.floats() + at);
        for (size_t g = 0; g < group; g++)
            prepare(q_.floats() + row * q_stride_ + (head * group + g) * size, queries_, (head * rows_ + row) * group + g);
    }
}

// Columns of the hidden layer that are computed at a time: few enough for a cache, whole blocks of 32.
static size_t group_of_columns(size_t rows) { return std::max<size_t>(32, 16384 / std::max<size_t>(rows, 1) / 32 * 32); }

void Work::feed_forward(const Layer& layer, const Acts& acts, int thread) {
    const size_t panels = layer.up.weight.panels(), per_group = group_of_columns(rows_) / PANEL;
    const Range mine = share(panels, thread, model.pool().size(), 2);  // blocks of 32 columns stay whole
    for (size_t first = mine.begin; first < mine.end; first += per_group)
        gate_and_up(layer, acts, {first, std::min(first + per_group, mine.end)}, thread);
    model.pool().barrier();
    if (adapted_) {
        lower({&layer.down}, Input::HIDDEN, thread);
        model.pool().barrier();
    }
    project({{&layer.down, fed_.floats(), width_stride_}}, hidden_.acts(), thread);
}

void Work::gate_and_up(const Layer& layer, const Acts& acts, Range panels, int thread) {
    Scratch& scratch = scratch_[thread];
    const size_t count = panels.end - panels.begin, begin = panels.begin * PANEL, ldy = count * PANEL;
    const size_t columns = std::min(ldy, spec.ffn - begin);
    for (Buffer* buffer : {&scratch.gate, &scratch.up}) buffer->grow(4 * rows_ * ldy);
    const auto product = [&](const Linear& linear, float* y) {
        const Matrix& m = linear.weight;
        k.matmul[static_cast<int>(m.type)](m.panel(panels.begin), count, m.panel_bytes, acts, y, ldy, false);
        adapted_.raise(k, linear, panels, y, ldy, scratch.adapted);
        for (size_t row = 0; row < rows_ && !linear.bias.empty(); row++)
            k.add(linear.bias.data() + begin, columns, y + row * ldy);
    };
    product(layer.up, scratch.up.floats());
    if (spec.gated) product(layer.gate, scratch.gate.floats());
    Acts out = part_of(hidden_.acts(), 0, begin);
    out.columns = columns;
    for (size_t row = 0; row < rows_; row++) {
        float* up = scratch.up.floats() + row * ldy;
        if (spec.gated)
            k.activate(spec.activation, scratch.gate.floats() + row * ldy, up, columns, up);
        else
            k.activate(spec.activation, up, nullptr, columns, up);
        note(layer, Input::HIDDEN, up, columns, row, thread, begin);
        k.prepare(up, hidden_.forms(), out, row);
    }
}

}  // namespace geode
