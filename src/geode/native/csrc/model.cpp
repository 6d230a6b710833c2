#include "model.h"

#include <atomic>
#include <cmath>
#include <cstring>

#include "adapters.h"
#include "head.h"
#include "work.h"

namespace geode {

static std::atomic<size_t> models{0};  // made so far

Model::Model(const Spec& spec, std::vector<Seen> layers, std::vector<int> rope_of, std::vector<Rope> ropes,
             const Kernels& kernels, int threads)
    : serial_(models++),
      spec_(spec),
      seen_(std::move(layers)),
      ropes_(std::move(ropes)),
      kernels_(kernels),
      pool_(threads),
      layers_(spec.depth),
      screened_(std::make_unique<ScreenedHead>()),
      work_(std::make_unique<Work>(*this)) {
    for (size_t i = 0; i < spec.depth; i++) layers_[i].rope = rope_of[i];
    name_weights();
}

Model::~Model() = default;

void Model::name_weights() {
    const auto linear = [this](const std::string& name, Linear& to) {
        matrices_[name + ".weight"] = &to.weight;
        vectors_[name + ".bias"] = &to.bias;
        to.number = linears_.size();
        linears_[name + ".weight"] = &to;
    };
    const auto norm = [this](const std::string& name, Norm& to, bool present) {
        to.present = present;
        vectors_[name + ".weight"] = &to.weight;
        vectors_[name + ".bias"] = &to.bias;
    };
    const BlockKind kind = spec_.block;
    const bool before = kind != BlockKind::POST, after = kind == BlockKind::POST || kind == BlockKind::SANDWICH;
    for (size_t i = 0; i < spec_.depth; i++) {
        Layer& layer = layers_[i];
        const std::string at = "blk." + std::to_string(i) + ".";
        norm(at + "attn_norm", layer.attn_norm, before);
        norm(at + "ffn_norm", layer.ffn_norm, before && kind != BlockKind::PARALLEL_SHARED);
        norm(at + "post_attention_norm", layer.post_attention_norm, after);
        norm(at + "post_ffw_norm", layer.post_ffw_norm, after);
        vectors_[at + "attn_q_norm.weight"] = &layer.q_norm;
        vectors_[at + "attn_k_norm.weight"] = &layer.k_norm;
        linear(at + "attn_q", layer.q);
        linear(at + "attn_k", layer.k);
        linear(at + "attn_v", layer.v);
        linear(at + "attn_output", layer.output);
        linear(at + "ffn_gate", layer.gate);
        linear(at + "ffn_up", layer.up);
        linear(at + "ffn_down", layer.down);
    }
    norm("output_norm", output_norm_, true);
    matrices_["token_embd.weight"] = &token_embd_;
    matrices_["output.weight"] = &output_.weight;
    output_.number = linears_.size();
    linears_["output.weight"] = &output_;
}

void Model::load(const std::string& name, QType type, size_t rows, size_t columns, const uint8_t* source, bool mapped) {
    Matrix& matrix = *matrices_.at(name);
    if (name == head_name()) {
        screened_->clear();
        const bool may = spec_.screen_head && ScreenedHead::fits(type, columns) && rows == spec_.vocab;
        if (may && screened_->load(rows, columns, source, mapped, pool_)) {
            matrix = Matrix();
            return;
        }
    }
    const size_t stride = row_bytes(type, columns);
    matrix = empty_matrix(type, rows, columns);
    const size_t step = std::max<size_t>(1, (size_t{1} << 20) / (stride * PANEL));  // a megabyte of the file at a time
    pool_.run([&](int thread) {
        const Range mine = share(matrix.panels(), thread, pool_.size());
        for (size_t first = mine.begin; first < mine.end; first += step) {
            const size_t last = std::min(first + step, mine.end), end = std::min(last * PANEL, rows);
            pack_panels(matrix, source, stride, first, last);
            if (mapped) forget_pages(source + first * PANEL * stride, (end - first * PANEL) * stride);
        }
    });
}

void Model::forward(const Batch& batch, Cache& cache, float* out, const Taps& taps) {
    work_->forward(batch, cache, out, taps);
}

size_t Model::nbytes() const {
    size_t total = screened_->nbytes();
    for (const auto& [name, matrix] : matrices_) total += matrix->data.size();
    for (const auto& [name, vector] : vectors_) total += vector->size() * sizeof(float);
    return total;
}

namespace {

// Mixes some memory into a number: four lanes of multiply and rotate, which is as fast as memory.
uint64_t mixed(uint64_t seed, const void* data, size_t size) {
    constexpr uint64_t ODD = 0x9E3779B97F4A7C15u;
    uint64_t lanes[4] = {seed, seed + ODD, seed ^ ODD, seed - ODD};
    const auto add = [&](uint64_t& lane, const uint8_t* from, size_t count) {
        uint64_t word = 0;
        std::memcpy(&word, from, count);
        lane = (lane ^ word) * ODD;
        lane ^= lane >> 29;
    };
    const auto* at = static_cast<const uint8_t*>(data);
    size_t i = 0;
    for (; i + 32 <= size; i += 32)
        for (size_t lane = 0; lane < 4; lane++) add(lanes[lane], at + i + 8 * lane, 8);
    for (; i < size; i += 8) add(lanes[i / 8 % 4], at + i, std::min<size_t>(8, size - i));
    for (const uint64_t lane : {lanes[1], lanes[2], lanes[3], static_cast<uint64_t>(size)}) {
        lanes[0] = (lanes[0] ^ lane) * ODD;
        lanes[0] ^= lanes[0] >> 32;
    }
    return lanes[0];
}

}  // namespace

uint64_t Model::fingerprint() const {
    uint64_t found = 0;
    for (const auto& [name, matrix] : matrices_) {
        found = mixed(found, name.data(), name.size());
        found = mixed(found, matrix->data.bytes(), matrix->data.size());
    }
    for (const Buffer* buffer : screened_->buffers()) found = mixed(found, buffer->bytes(), buffer->size());
    for (const auto& [name, vector] : vectors_) {
        found = mixed(found, name.data(), name.size());
        found = mixed(found, vector->data(), vector->size() * sizeof(float));
    }
    return found;
}

size_t Model::nbytes(const std::string& name) const {
    return is_screened(name) ? screened_->nbytes() : matrices_.at(name)->data.size();
}

std::pair<size_t, size_t> Model::shape(const std::string& name) const {
    if (name == "output.weight" || name == "token_embd.weight") return {spec_.vocab, spec_.width};
    const Matrix& matrix = *matrices_.at(name);
    return {matrix.rows, matrix.columns};
}

std::pair<size_t, size_t> Model::packed_shape(const std::string& name) const {
    if (is_screened(name)) return {screened_->rows(), row_bytes(QType::Q8_0, screened_->columns())};
    const Matrix& matrix = *matrices_.at(name);
    return {matrix.rows, row_bytes(matrix.type, matrix.columns)};
}

void Model::unpack(const std::string& name, size_t row, uint8_t* out) const {
    if (is_screened(name)) return screened_->unpack_row(row, out);
    unpack_row(*matrices_.at(name), row, out);
}

void Model::embed(size_t token, float* out, std::vector<uint8_t>& scratch) const {
    if (!spec_.tied || !screens()) return read_row(token_embd_, token, out, scratch);
    scratch.resize(row_bytes(QType::Q8_0, spec_.width));
    screened_->unpack_row(token, scratch.data());
    dequantize(QType::Q8_0, scratch.data(), spec_.width, out);
}

bool Model::screens() const { return static_cast<bool>(*screened_); }

size_t Model::head_bytes_read() const { return screened_->bytes_read(); }

namespace {

// Hidden states times panels of the head, whichever way it is held.
class HeadProduct {
public:
    // `as_found`: bit for bit the logits of Model::candidates. Otherwise a screened head, too, is multiplied as its
    // type's panels are, which rounds elsewhere and takes half of the time where there are many rows.
    HeadProduct(const Kernels& k, const ScreenedHead& screened, const Matrix& plain, const float* hidden, size_t rows,
                size_t width, bool as_found, const Linear& changed, const Adapters& adapters)
        : k_(k), screened_(screened), plain_(plain), type_(screened ? QType::Q8_0 : plain.type), changed_(changed) {
        adapted_.assign(adapters, {width});
        for (size_t row = 0; row < adapters.size(); row++) adapted_.take(0, row, hidden + row * width, width);
        adapted_.lower(k, {&changed}, 0, {0, rows});
        if (screened && as_found) {
            input_ = std::make_unique<HeadInput>(k, hidden, rows, width, screened.largest_scale());
            return;
        }
        acts_.resize(rows, width, k.form[static_cast<int>(type_)]);
        for (size_t row = 0; row < rows; row++) k.prepare(hidden + row * width, acts_.forms(), acts_.acts(), row);
    }

    size_t rows() const { return screened_ ? screened_.rows() : plain_.rows; }
    size_t panels() const { return screened_ ? screened_.panels() : plain_.panels(); }

    // Panels [first, first + count): y[m · ldy + 16 · p + i]. `scratch` is the thread's own.
    void operator()(size_t first, size_t count, float* y, size_t ldy, std::vector<uint8_t>& scratch) const {
        multiply(first, count, y, ldy, scratch);
        Buffer gathered;
        adapted_.raise(k_, changed_, {first, first + count}, y, ldy, gathered);
    }

private:
    void multiply(size_t first, size_t count, float* y, size_t ldy, std::vector<uint8_t>& scratch) const {
        if (input_) return screened_.product(k_, first, count, *input_, y, ldy);
        const size_t bytes = panel_bytes(type_, acts_.acts().columns);
        if (screened_) {
            scratch.resize(count * bytes);
            for (size_t p = 0; p < count; p++) k_.head_panel(screened_.planes(), first + p, &scratch[p * bytes]);
        }
        const uint8_t* panels = screened_ ? scratch.data() : plain_.panel(first);
        k_.matmul[static_cast<int>(type_)](panels, count, bytes, acts_.acts(), y, ldy, false);
    }

    const Kernels& k_;
    const ScreenedHead& screened_;
    const Matrix& plain_;
    const QType type_;
    std::unique_ptr<HeadInput> input_;
    ActBuffer acts_;
    const Linear& changed_;
    AdaptedRows adapted_;
};

}  // namespace

void Model::head(const float* hidden, size_t rows, float* out, size_t stride, const Adapters& adapters) {
    const HeadProduct product(kernels_, *screened_, *matrices_.at(head_name()), hidden, rows, spec_.width, true, output_,
                              adapters);
    screened_->note_all_read();
    pool_.run([&](int thread) {
        const Range mine = share(product.panels(), thread, pool_.size());
        if (mine.begin == mine.end) return;
        float* y = out + mine.begin * PANEL;
        const size_t columns = (mine.end - mine.begin) * PANEL;
        std::vector<uint8_t> scratch;
        product(mine.begin, mine.end - mine.begin, y, stride, scratch);
        if (spec_.final_softcap == 0) return;
        for (size_t row = 0; row < rows; row++) kernels_.scale_and_cap(y + row * stride, columns, 1, spec_.final_softcap);
    });
}

std::vector<Found> Model::candidates(const float* hidden, const std::vector<Need>& needs) {
    const HeadInput in(kernels_, hidden, needs.size(), spec_.width, screened_->largest_scale());
    if (in.is_finite()) return screened_->find(kernels_, pool_, in, needs, spec_.final_softcap);
    std::vector<Found> all(needs.size());  // nothing is known of bounds that may not be numbers
    const size_t stride = round_up(spec_.vocab, PANEL);
    std::vector<float> logits(stride);
    for (size_t row = 0; row < needs.size(); row++) {
        head(hidden + row * spec_.width, 1, logits.data(), stride);
        all[row].logits.assign(logits.begin(), logits.begin() + needs[row].size);
        for (size_t id = 0; id < needs[row].size; id++) all[row].ids.push_back(static_cast<int32_t>(id));
    }
    return all;
}

namespace {

// What one thread has seen of a row's logits: the largest, where, and Σ e^(logit - largest).
struct Tally {
    float peak = -INFINITY;
    size_t best = 0;
    double total = 0;

    void add(float* logits, size_t n, size_t first, size_t real, const Kernels& k) {
        const float most = k.largest(logits, n);
        if (first < real) {
            const size_t mine = std::min(n, real - first);
            const float real_most = mine == n ? most : k.largest(logits, mine);
            if (real_most > best_value) {
                best_value = real_most;
                best = first + (std::find(logits, logits + mine, real_most) - logits);
            }
        }
        for (size_t i = 0; i < n; i++) wrong |= logits[i] != logits[i];  // maxima and exponentials pass over NaN
        join(most, 0);
        float part[64];
        for (size_t i = 0; i < n; i += 64) {
            const size_t size = std::min<size_t>(64, n - i);
            std::fill(std::copy(logits + i, logits + i + size, part), part + 64, -INFINITY);
            total += k.exponentials(part, 64, peak);
        }
    }

    void join(float other, double other_total) {
        const float highest = std::max(peak, other);
        if (highest == -INFINITY) return;
        total = total * std::exp(static_cast<double>(peak) - highest) +
                other_total * std::exp(static_cast<double>(other) - highest);
        peak = highest;
    }

    float best_value = -INFINITY;
    bool wrong = false;
};

}  // namespace

void Model::score(const float* hidden, const int32_t* targets, size_t rows, size_t real, double* logprobs,
                  bool* greedy, const Adapters& adapters) {
    const HeadProduct product(kernels_, *screened_, *matrices_.at(head_name()), hidden, rows, spec_.width, false, output_,
                              adapters);
    const int threads = pool_.size();
    constexpr size_t STEP = 16;  // panels: 256 logits of a row at a time
    std::vector<Tally> tallies(threads * rows);
    std::vector<float> hit(rows, 0.0f);
    std::vector<Buffer> buffers(threads);
    for (Buffer& buffer : buffers) buffer = Buffer(4 * rows * STEP * PANEL);
    pool_.run([&](int thread) {
        const Range mine = share(product.panels(), thread, threads);
        float* y = buffers[thread].floats();
        std::vector<uint8_t> scratch;
        for (size_t first = mine.begin; first < mine.end; first += STEP) {
            const size_t count = std::min(STEP, mine.end - first), begin = first * PANEL;
            const size_t columns = std::min(count * PANEL, product.rows() - begin);
            product(first, count, y, STEP * PANEL, scratch);
            for (size_t row = 0; row < rows; row++) {
                float* logits = y + row * STEP * PANEL;
                if (spec_.final_softcap != 0) kernels_.scale_and_cap(logits, columns, 1, spec_.final_softcap);
                const size_t target = targets[row];
                if (target >= begin && target < begin + columns) hit[row] = logits[target - begin];
                tallies[thread * rows + row].add(logits, columns, begin, real, kernels_);
            }
        }
    });
    for (size_t row = 0; row < rows; row++) {
        Tally all = tallies[row];
        for (int t = 1; t < threads; t++) {
            const Tally& other = tallies[t * rows + row];
            if (other.best_value > all.best_value) {
                all.best_value = other.best_value;
                all.best = other.best;
            }
            all.join(other.peak, other.total);
            all.wrong |= other.wrong;
        }
        logprobs[row] = all.wrong ? NAN : static_cast<double>(hit[row]) - all.peak - std::log(all.total);
        greedy[row] = all.best == static_cast<size_t>(targets[row]);
    }
}

}  // namespace geode
