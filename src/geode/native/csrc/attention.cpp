// Attention over pages, by chunks of 256 positions: each chunk has a softmax of its own, and chunks are joined in order.
//
//     row block × head      chunk 0      chunk 1      chunk 2            joined: peak, total, sums
//       queries  ────────>  peak         peak         peak
//                           total        total        total      ──>     sums · e^(peak - new) + ...
//                           sums         sums         sums
//
// Chunks begin at multiples of 256 whatever the batch, so a row's result does not depend on who computes which chunk.
// (Online softmax: arxiv.org/abs/1805.02867; splitting by position: pytorch.org/blog/flash-decoding)
#include <cmath>
#include <cstring>

#include "work.h"

namespace geode {

namespace {

constexpr size_t CHUNK = 256, PAGES = CHUNK / PAGE;
constexpr size_t FEW = 16;  // rows that leave the memory to wait for: then the next page is asked for early
constexpr size_t QUERIES = 64;  // query rows of a block, about: their scores of a chunk fill 64 KB

size_t padded(size_t head_dim) { return round_up(head_dim, PANEL); }

}  // namespace

// Positions that a token sees: [begin, end).
Range Work::visible(const Seen& seen, size_t position) const {
    const size_t begin = seen.window && position + 1 > seen.window ? position + 1 - seen.window : 0;
    return {begin, position + 1};
}

// Integers of an item's rows must lie side by side from its first row on, so they are made for each item.
unsigned Work::query_forms() const {
    const QType type = cache_->type();
    return type == QType::Q8_0 ? unsigned(FLOATS) : unsigned(k.form[static_cast<int>(type)]);
}

Acts Work::queries_of(const AttentionItem& item, Scratch& scratch) {
    const size_t first = (item.head * rows_ + item.row) * spec.group(), rows = item.rows * spec.group();
    Acts queries = part_of(queries_.acts(), first);
    queries.rows = rows;
    if (cache_->type() != QType::Q8_0) return queries;
    scratch.queries.resize(rows, spec.head_dim, k.form[static_cast<int>(QType::Q8_0)]);
    for (size_t m = 0; m < rows; m++) prepare(queries.floats + m * queries.stride, scratch.queries, m);
    return scratch.queries.acts();
}

void Work::plan_attention(const Seen& seen, bool last) {
    const size_t per_block = std::max<size_t>(1, QUERIES / spec.group());
    items_.clear();
    if (last)
        for (const int32_t row : batch_->wanted) plan_rows(seen, row, 1);
    else
        for (size_t s = 0; s < batch_->sequences(); s++) {
            const size_t end = batch_->starts[s + 1];
            for (size_t row = batch_->starts[s]; row < end; row += per_block)
                plan_rows(seen, row, std::min(per_block, end - row));
        }
    split_ = items_.size() < 4 * static_cast<size_t>(model.pool().size());
    size_t partials = 0;
    for (AttentionItem& item : items_) {
        item.partial = partials;
        partials += split_ ? item.chunks : 0;
    }
    partials_.grow(4 * partials * per_block * spec.group() * (padded(spec.head_dim) + 2));
}

// One item for each head of some neighbouring rows of a sequence.
void Work::plan_rows(const Seen& seen, size_t row, size_t rows) {
    const size_t first = visible(seen, position_[row]).begin / CHUNK, last = position_[row + rows - 1] / CHUNK;
    for (size_t head = 0; head < spec.kv_heads; head++)
        items_.push_back({sequence_of_[row], head, row, rows, first, last + 1 - first, 0});
}

void Work::attend(const Seen& seen, int thread) {
    const int threads = model.pool().size();
    const size_t size = padded(spec.head_dim), most = std::max<size_t>(1, QUERIES / spec.group()) * spec.group();
    Scratch& scratch = scratch_[thread];
    scratch.scores.grow(4 * most * CHUNK);
    scratch.weights.grow(4 * most * CHUNK);
    scratch.sums.grow(4 * most * (2 * size + 4));
    const QType type = cache_->type();
    scratch.p.resize(most, CHUNK, type == QType::Q8_0 ? unsigned(FLOATS) : unsigned(k.form[static_cast<int>(type)]));
    if (!split_) {
        for (size_t i = thread; i < items_.size(); i += threads) attend_item(items_[i], seen, thread);
    } else {
        size_t turn = 0;
        for (const AttentionItem& item : items_)
            for (size_t c = 0; c < item.chunks; c++, turn++) {
                if (turn % threads != static_cast<size_t>(thread)) continue;
                const size_t rows = item.rows * spec.group();
                float* sums = partials_.floats() + (item.partial + c) * most * (size + 2);
                chunk(item, seen, item.first_chunk + c, sums, sums + rows * size, sums + rows * (size + 1), scratch);
            }
        model.pool().barrier();
        for (size_t i = thread; i < items_.size(); i += threads) combine(items_[i]);
    }
}

namespace {

// Joins a chunk's (peak, total, sums) to what came before it.
void join(const Kernels& k, size_t size, const float* sums, float peak, float total, float* all, float& all_peak,
          float& all_total) {
    if (peak == -INFINITY) return;
    if (all_peak == -INFINITY) {
        std::memcpy(all, sums, size * sizeof(float));
        all_peak = peak;
        all_total = total;
        return;
    }
    const float highest = std::max(peak, all_peak);
    const float share = std::exp(peak - highest), keep = std::exp(all_peak - highest);
    k.blend(sums, size, share, keep, all);
    all_total = all_total * keep + total * share;
    all_peak = highest;
}

}  // namespace

void Work::attend_item(const AttentionItem& item, const Seen& seen, int thread) {
    Scratch& scratch = scratch_[thread];
    const size_t size = padded(spec.head_dim), group = spec.group(), rows = item.rows * group;
    float* all = scratch.sums.floats();
    float* part = all + rows * size;
    float* peaks = part + rows * size;
    float* totals = peaks + rows;
    float* all_peaks = totals + rows;
    float* all_totals = all_peaks + rows;
    std::fill(all_peaks, all_peaks + rows, -INFINITY);
    for (size_t c = 0; c < item.chunks; c++) {
        chunk(item, seen, item.first_chunk + c, part, peaks, totals, scratch);
        for (size_t m = 0; m < rows; m++)
            join(k, size, part + m * size, peaks[m], totals[m], all + m * size, all_peaks[m], all_totals[m]);
    }
    for (size_t m = 0; m < rows; m++) {
        float* to = attended_.floats() + (item.row + m / group) * q_stride_ + (item.head * group + m % group) * spec.head_dim;
        for (size_t h = 0; h < spec.head_dim; h++) to[h] = all[m * size + h] / all_totals[m];
    }
}

// The partial results of an item's chunks, joined.
void Work::combine(const AttentionItem& item) {
    const size_t size = padded(spec.head_dim), group = spec.group(), rows = item.rows * group;
    const size_t most = std::max<size_t>(1, QUERIES / group) * group, step = most * (size + 2);
    float* first = partials_.floats() + item.partial * step;
    for (size_t m = 0; m < rows; m++) {
        float* all = first + m * size;
        float& peak = first[rows * size + m];
        float& total = first[rows * (size + 1) + m];
        for (size_t c = 1; c < item.chunks; c++) {
            const float* part = first + c * step;
            join(k, size, part + m * size, part[rows * size + m], part[rows * (size + 1) + m], all, peak, total);
        }
        float* to = attended_.floats() + (item.row + m / group) * q_stride_ + (item.head * group + m % group) * spec.head_dim;
        for (size_t h = 0; h < spec.head_dim; h++) to[h] = all[h] / total;
    }
}

// One chunk of positions for all rows of an item: for each the largest score, Σ e^(score - peak), and the values so
// weighted: (rows, padded head).
void Work::chunk(const AttentionItem& item, const Seen& seen, size_t index, float* sums, float* peaks, float* totals,
                 Scratch& scratch) {
    const size_t group = spec.group(), rows = item.rows * group, begin = index * CHUNK;
    const int32_t* table = batch_->table(seen.group, item.sequence);
    const Range first = visible(seen, position_[item.row]), last = visible(seen, position_[item.row + item.rows - 1]);
    const Range pages = {std::max(first.begin, begin) / PAGE, (std::min(last.end, begin + CHUNK) + PAGE - 1) / PAGE};
    float* scores = scratch.scores.floats();
    const Acts queries = queries_of(item, scratch);
    for (size_t p = pages.begin; p < pages.end; p++) {
        if (rows <= FEW && p + 1 < pages.end) k.ask_for(cache_->keys(seen, table[p + 1], item.head), cache_->key_bytes());
        if (rows <= FEW && p + 1 == pages.end)
            k.ask_for(cache_->values(seen, table[pages.begin], item.head), cache_->value_bytes());
        k.matmul[static_cast<int>(cache_->type())](cache_->keys(seen, table[p], item.head), PAGE / PANEL,
                                                   cache_->key_panel_bytes(), queries, scores + p * PAGE - begin, CHUNK,
                                                   false);
    }
    const size_t low = pages.begin * PAGE - begin, high = pages.end * PAGE - begin;
    for (size_t m = 0; m < rows; m++) {
        float* row = scores + m * CHUNK;
        const Range see = visible(seen, position_[item.row + m / group]);
        const size_t from = std::min(high, std::max(see.begin, begin + low) - begin);
        const size_t to = std::max(from, std::min(std::max(see.end, begin) - begin, high));
        k.scale_and_cap(row + low, high - low, spec.scale, spec.attn_softcap);
        std::fill(row + low, row + from, -INFINITY);
        std::fill(row + to, row + high, -INFINITY);
        peaks[m] = k.largest(row + low, high - low);
        totals[m] = 0;
        if (peaks[m] == -INFINITY)
            std::fill(row + low, row + high, 0.0f);
        else
            totals[m] = k.exponentials(row + low, high - low, peaks[m]);
    }
    Acts p = scratch.p.acts();
    p.rows = rows;
    values_times_weights(item, seen, pages, rows, p, sums, scratch);
}

void Work::values_times_weights(const AttentionItem& item, const Seen& seen, Range pages, size_t rows, Acts p,
                                float* sums, Scratch& scratch) {
    const size_t size = padded(spec.head_dim), first = pages.begin % PAGES * PAGE, panels = cache_->value_panels();
    const size_t count = (pages.end - pages.begin) * PAGE, bytes = cache_->value_panel_bytes();
    const int32_t* table = batch_->table(seen.group, item.sequence);
    const float* scores = scratch.scores.floats();
    const bool integers = cache_->type() == QType::Q8_0;
    Acts part = part_of(p, 0, first);
    part.columns = count;
    for (size_t m = 0; m < rows && !integers; m++) k.prepare(scores + m * CHUNK + first, scratch.p.forms(), part, m);
    for (size_t page = pages.begin; page < pages.end; page++) {
        const uint8_t* values = cache_->values(seen, table[page], item.head);
        Acts columns = part_of(p, 0, page % PAGES * PAGE);
        columns.columns = PAGE;
        const bool add = page > pages.begin;
        if (rows <= FEW && page + 1 < pages.end)
            k.ask_for(cache_->values(seen, table[page + 1], item.head), cache_->value_bytes());
        if (!integers) {
            k.matmul[static_cast<int>(cache_->type())](values, panels, bytes, columns, sums, size, add);
            continue;
        }
        for (size_t b = 0; b < spec.head_dim / 32; b++) {  // the scale of a position's 32 channels goes to its weight
            const float* scales = cache_->value_scales(values) + b * PAGE;
            for (size_t m = 0; m < rows; m++)
                for (size_t i = 0; i < PAGE; i++)
                    columns.floats[m * columns.stride + i] = scores[m * CHUNK + page % PAGES * PAGE + i] * scales[i];
            k.matmul_i8(values + 2 * b * bytes, 2, bytes, columns, sums + 32 * b, size, add);
        }
    }
}

}  // namespace geode
