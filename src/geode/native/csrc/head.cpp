#include "head.h"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <functional>

#include "half.h"

namespace geode {

namespace {

constexpr size_t BLOCK = 34, HALF_PLANE = 16;  // bytes of a block in a file, and of its high or low bits
constexpr size_t STEP = 16;                    // panels that are looked at together
constexpr float LARGEST_SUM = 1e30f;           // far from overflow, whatever the kernel adds up first

// Where one row's bytes of a block lie.
struct Place {
    size_t scale, high, low;
    Place(const Planes& m, size_t row, size_t block) {
        const size_t panel = row / PANEL, inside = row % PANEL, line = block / LINE_BLOCKS * LINE_BLOCKS;
        const size_t in_line = std::min(LINE_BLOCKS, m.blocks - line);
        scale = 2 * ((panel * m.blocks + block) * PANEL + inside);
        high = (panel * m.blocks + block) * HALF_PLANE * PANEL + 4 * inside;  // and every 64 bytes from there
        low = ((panel * m.blocks + line) * PANEL + inside * in_line + (block - line)) * HALF_PLANE;
    }
};

// Bits SHIFT … SHIFT + 3 of 32 bytes in 16: byte i has number i low and number i + 16 high.
template <int SHIFT>
void take_nibbles(const uint8_t* q, uint8_t* out) {
    for (int i = 0; i < 16; i++) out[i] = static_cast<uint8_t>((q[i] >> SHIFT & 15) | (q[i + 16] >> SHIFT & 15) << 4);
}

template <int SHIFT>
void put_nibbles(const uint8_t* nibbles, uint8_t* q) {
    for (int i = 0; i < 16; i++) {
        q[i] = static_cast<uint8_t>(q[i] | (nibbles[i] & 15) << SHIFT);
        q[i + 16] = static_cast<uint8_t>(q[i + 16] | (nibbles[i] >> 4) << SHIFT);
    }
}

}  // namespace

// ---- weights ----

bool ScreenedHead::pack_rows(const uint8_t* source, size_t first, size_t last, float& largest) {
    for (size_t row = first; row < last; row++)
        for (size_t b = 0; b < planes_.blocks; b++) {
            const uint8_t* block = source + (row * planes_.blocks + b) * BLOCK;
            const Place at(planes_, row, b);
            uint16_t half;
            std::memcpy(&half, block, 2);
            const float scale = from_half(half);
            if (!(scale >= 0 && scale <= FLT_MAX)) return false;
            largest = std::max(largest, scale);
            uint8_t q[32], nibbles[HALF_PLANE];
            for (int i = 0; i < 32; i++) q[i] = block[2 + i] ^ 0x80;
            std::memcpy(scale_.bytes() + at.scale, &half, 2);
            take_nibbles<0>(q, low_.bytes() + at.low);
            take_nibbles<4>(q, nibbles);
            for (int g = 0; g < 4; g++) std::memcpy(high_.bytes() + at.high + 64 * g, nibbles + 4 * g, 4);
        }
    return true;
}

bool ScreenedHead::load(size_t rows, size_t columns, const uint8_t* source, bool mapped, Pool& pool) {
    const size_t blocks = columns / 32, all = (rows + PANEL - 1) / PANEL * PANEL * blocks;
    scale_ = Buffer(2 * all), high_ = Buffer(HALF_PLANE * all), low_ = Buffer(HALF_PLANE * all);
    planes_ = {rows, blocks, scale_.bytes(), high_.bytes(), low_.bytes()};
    const size_t step = std::max<size_t>(1, (size_t{1} << 20) / (blocks * BLOCK * PANEL)) * PANEL;
    std::vector<float> largest(pool.size(), 0.0f);
    std::vector<uint8_t> good(pool.size(), 1);
    pool.run([&](int thread) {
        const Range mine = share(rows, thread, pool.size(), PANEL);
        for (size_t first = mine.begin; first < mine.end && good[thread]; first += step) {
            const size_t last = std::min(first + step, mine.end);
            good[thread] = pack_rows(source, first, last, largest[thread]);
            if (mapped) forget_pages(source + first * blocks * BLOCK, (last - first) * blocks * BLOCK);
        }
    });
    largest_scale_ = *std::max_element(largest.begin(), largest.end());
    note_all_read();
    const bool all_good = std::count(good.begin(), good.end(), 1) == pool.size();
    if (!all_good) clear();
    return all_good;
}

void ScreenedHead::unpack_row(size_t row, uint8_t* out) const {
    for (size_t b = 0; b < planes_.blocks; b++, out += BLOCK) {
        const Place at(planes_, row, b);
        uint8_t nibbles[HALF_PLANE];
        for (int g = 0; g < 4; g++) std::memcpy(nibbles + 4 * g, planes_.high + at.high + 64 * g, 4);
        std::memcpy(out, planes_.scale + at.scale, 2);
        std::memset(out + 2, 0, 32);
        put_nibbles<0>(planes_.low + at.low, out + 2);
        put_nibbles<4>(nibbles, out + 2);
        for (int i = 2; i < 34; i++) out[i] ^= 0x80;
    }
}

// ---- activations ----

HeadInput::HeadInput(const Kernels& k, const float* hidden, size_t rows, size_t width, float largest_scale) {
    const size_t blocks = width / 32;
    buffer_.resize(rows, width, INTEGERS, 0);
    raise_.resize(rows * blocks), lower_.resize(rows * blocks), spread_.resize(rows * blocks);
    view_ = {buffer_.acts(), raise_.data(), lower_.data(), spread_.data()};
    for (size_t row = 0; row < rows; row++) {
        const float* x = hidden + row * width;
        k.prepare(x, INTEGERS, buffer_.acts(), row);
        double most = 0;
        for (size_t b = 0; b < blocks; b++) {
            add_block(row, b);
            most += double{view_.acts.scale[block_at(view_.acts, row, b)]} * largest_scale * (1 << 20);
        }
        finite_ = finite_ && most < LARGEST_SUM && std::all_of(x, x + width, [](float v) { return std::isfinite(v); });
    }
}

void HeadInput::add_block(size_t row, size_t block) {
    const Acts& acts = view_.acts;
    const int8_t* q = acts.q + 32 * block_at(acts, row, block);
    int32_t sum = 0, positive = 0;
    for (int i = 0; i < 32; i++) sum += q[i], positive += std::max<int32_t>(q[i], 0);
    const size_t at = row * (acts.columns / 32) + block;
    const int32_t need = 15 * positive - 128 * sum, raise = need >= 0 ? (need + 15) / 16 : -(-need / 16);
    raise_[at] = raise;
    lower_[at] = -(16 * raise + 128 * sum);
    spread_[at] = 7.5f * static_cast<float>(2 * positive - sum) * acts.scale[block_at(acts, row, block)];  // Σ |q|: the middle of what is open
}

// ---- finding ----

namespace {

// The rows with the largest values that were offered, so many.
class Best {
public:
    using Entry = std::pair<float, uint32_t>;

    explicit Best(size_t count = 0) : count_(count) {}
    float least() const { return heap_.size() < count_ ? -FLT_MAX : heap_.front().first; }
    const std::vector<Entry>& entries() const { return heap_; }

    void offer(float value, uint32_t row) {
        if (heap_.size() == count_) {
            if (!(value > heap_.front().first)) return;
            std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
            heap_.pop_back();
        }
        heap_.emplace_back(value, row);
        std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
    }

private:
    size_t count_;
    std::vector<Entry> heap_;  // the least in front
};

// The largest number that no logit lies below whose cap · tanh(logit / cap) reaches `value`, computed with a relative
// error of 1e-6. Different logits may have the same capped one.
float before_cap(double value, float cap) {
    if (cap != 0) {
        const double share = value / cap, low = share - 4e-6 * std::fabs(share);
        value = low <= -1 ? -FLT_MAX : cap * std::atanh(low);
    }
    return std::max(std::nextafter(static_cast<float>(value), -INFINITY), -FLT_MAX);
}

// One call of ScreenedHead::find: what its threads share.
class Search {
public:
    // `bounds` holds a row of all panels for each need.
    Search(const ScreenedHead& head, const Kernels& k, Pool& pool, const HeadInput& in, const std::vector<Need>& needs,
           float cap, float* bounds)
        : head_(head), k_(k), pool_(pool), in_(in), needs_(needs), cap_(cap), stride_(head.panels() * PANEL),
          upper_(bounds), known_(needs.size()), found_(needs.size()), floor_(needs.size()),
          best_(pool.size() * needs.size()), passed_(pool.size() * needs.size()), bytes_(pool.size()) {}

    std::vector<Found> run();
    size_t bytes_read() const;

private:
    float* upper(size_t m) { return upper_ + m * stride_; }
    size_t cell(int thread, size_t m) const { return thread * needs_.size() + m; }
    static size_t tried(const Need& need) { return std::max<size_t>(8, 2 * need.k); }

    void estimate(int thread);
    void look(size_t m, const float* middle, size_t begin, size_t end, Best& best);
    void choose(size_t m);
    void settle_known(int thread);
    void set_floor(size_t m);
    void sift(int thread, size_t m);
    Found gather(size_t m);

    const ScreenedHead& head_;
    const Kernels& k_;
    Pool& pool_;
    const HeadInput& in_;
    const std::vector<Need>& needs_;
    const float cap_;
    const size_t stride_;
    float* const upper_;                        // (needs, stride): bounds, lowered where a row was looked into
    std::vector<std::vector<uint32_t>> known_;  // of each need: rows that are computed first, whatever comes out
    std::vector<std::vector<std::pair<int32_t, float>>> found_;
    std::vector<float> floor_;
    std::vector<Best> best_;                     // of each thread and need
    std::vector<std::vector<uint32_t>> passed_;  // the same: rows that reached the floor
    std::vector<size_t> bytes_;
};

std::vector<Found> Search::run() {
    const size_t count = needs_.size();
    pool_.run([&](int thread) {
        estimate(thread);
        pool_.barrier();
        for (size_t m = 0; m < count && thread == 0; m++) choose(m);
        pool_.barrier();
        settle_known(thread);
        pool_.barrier();
        for (size_t m = 0; m < count && thread == 0; m++) set_floor(m);
        pool_.barrier();
        for (size_t m = 0; m < count; m++) sift(thread, m);
    });
    std::vector<Found> out;
    for (size_t m = 0; m < count; m++) out.push_back(gather(m));
    return out;
}

size_t Search::bytes_read() const {
    const Planes& p = head_.planes();
    size_t total = head_.panels() * PANEL * p.blocks * (2 + HALF_PLANE);
    for (size_t bytes : bytes_) total += bytes;
    return total;
}

// Bounds of this thread's rows, and which of them look best.
void Search::estimate(int thread) {
    const Range mine = share(head_.panels(), thread, pool_.size());
    std::vector<float> middle(needs_.size() * STEP * PANEL);
    for (size_t m = 0; m < needs_.size(); m++) best_[cell(thread, m)] = Best(tried(needs_[m]));
    for (size_t first = mine.begin; first < mine.end; first += STEP) {
        const size_t count = std::min(STEP, mine.end - first), begin = first * PANEL, end = begin + count * PANEL;
        k_.head_bounds(head_.planes(), first, count, in_.acts(), upper_ + begin, stride_, middle.data(), STEP * PANEL);
        for (size_t m = 0; m < needs_.size(); m++) {
            look(m, middle.data() + m * STEP * PANEL, begin, std::min(end, needs_[m].size), best_[cell(thread, m)]);
            for (size_t row = std::max(begin, needs_[m].size); row < end; row++) upper(m)[row] = -INFINITY;
        }
    }
}

void Search::look(size_t m, const float* middle, size_t begin, size_t end, Best& best) {
    if (begin >= end || k_.largest(middle, end - begin) <= best.least()) return;
    const std::vector<int32_t>& ids = needs_[m].ids;
    for (size_t row = begin; row < end; row++) {
        const float value = middle[row - begin];
        if (value > best.least() && !std::binary_search(ids.begin(), ids.end(), static_cast<int32_t>(row)))
            best.offer(value, static_cast<uint32_t>(row));
    }
}

// The rows to be computed first: those asked for, and the best of all threads.
void Search::choose(size_t m) {
    Best best(tried(needs_[m]));
    for (int t = 0; t < pool_.size(); t++)
        for (const auto& [value, row] : best_[cell(t, m)].entries()) best.offer(value, row);
    known_[m].assign(needs_[m].ids.begin(), needs_[m].ids.end());
    for (const auto& [value, row] : best.entries()) known_[m].push_back(row);
    std::sort(known_[m].begin(), known_[m].end());
}

void Search::settle_known(int thread) {
    for (size_t m = 0; m < needs_.size(); m++) {
        const Range mine = share(known_[m].size(), thread, pool_.size());
        std::vector<uint32_t> rows(known_[m].begin() + mine.begin, known_[m].begin() + mine.end);
        size_t count = rows.size();
        bytes_[thread] += k_.head_rows(head_.planes(), in_.acts(), m, rows.data(), count, -INFINITY, upper(m));
    }
}

// The least logit that a row must reach, by those that are known; these are done with.
void Search::set_floor(size_t m) {
    const Need& need = needs_[m];
    std::vector<float> rivals;
    for (uint32_t row : known_[m]) {
        found_[m].emplace_back(row, upper(m)[row]);
        if (!std::binary_search(need.ids.begin(), need.ids.end(), static_cast<int32_t>(row)))
            rivals.push_back(upper(m)[row]);
        upper(m)[row] = -INFINITY;
    }
    if (cap_ != 0) k_.scale_and_cap(rivals.data(), rivals.size(), 1, cap_);
    std::sort(rivals.begin(), rivals.end(), std::greater<>());
    double floor = -FLT_MAX;
    if (need.k && need.k <= rivals.size()) floor = rivals[need.k - 1];
    if (!rivals.empty()) floor = std::max(floor, double{rivals[0]} - need.gap);
    floor_[m] = before_cap(floor, cap_);
}

// Of this thread's rows those that reach the floor.
void Search::sift(int thread, size_t m) {
    const Range mine = share(head_.panels(), thread, pool_.size());
    std::vector<uint32_t> rows((mine.end - mine.begin) * PANEL);
    const float* bounds = upper(m);
    size_t count = 0;
    for (size_t first = mine.begin * PANEL; first < mine.end * PANEL; first += STEP * PANEL) {
        const size_t last = std::min(first + STEP * PANEL, mine.end * PANEL);
        if (k_.largest(bounds + first, last - first) < floor_[m]) continue;
        for (size_t row = first; row < last; row++) {  // no branch: in a flat distribution nobody could predict it
            rows[count] = static_cast<uint32_t>(row);
            count += bounds[row] >= floor_[m];
        }
    }
    bytes_[thread] += k_.head_rows(head_.planes(), in_.acts(), m, rows.data(), count, floor_[m], upper(m));
    passed_[cell(thread, m)].assign(rows.begin(), rows.begin() + count);
}

Found Search::gather(size_t m) {
    auto& all = found_[m];
    for (int t = 0; t < pool_.size(); t++)
        for (uint32_t row : passed_[cell(t, m)]) all.emplace_back(row, upper(m)[row]);
    std::sort(all.begin(), all.end());
    Found out;
    for (const auto& [row, logit] : all) {
        out.ids.push_back(row);
        out.logits.push_back(logit);
    }
    if (cap_ != 0) k_.scale_and_cap(out.logits.data(), out.logits.size(), 1, cap_);
    return out;
}

}  // namespace

std::vector<Found> ScreenedHead::find(const Kernels& k, Pool& pool, const HeadInput& in, const std::vector<Need>& needs,
                                      float cap) {
    const size_t size = 4 * panels() * PANEL * needs.size();
    if (bounds_.size() < size) bounds_.grow(size);
    Search search(*this, k, pool, in, needs, cap, bounds_.floats());
    auto found = search.run();
    bytes_read_ = search.bytes_read();
    return found;
}

}  // namespace geode
