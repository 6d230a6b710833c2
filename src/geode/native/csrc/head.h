// The vocabulary head in two planes of four bits: most rows are decided by their high bits and never read whole.
//
// A weight of Q8_0 is q = 16 · high + low, low in 0 … 15. With s the scale of a block, and its activations quantised to
// a · x (x integers, a > 0), the logit of a row is *defined* as
//
//     bound  = Σ over blocks  16 · s·a · (Σ high · x + raise)              raise = ceil((15 · Σ max(x, 0) - 128 · Σ x) / 16)
//     logit  = bound - one line after the other of  Σ s·a · (most - Σ low · x)       most = 16 · raise + 128 · Σ x
//
// in float32, in this order (high is stored with 8 added, which is where the 128 come from; a line is four blocks).
// Every integer in the second row is at least 0, because Σ low · x <= 15 · Σ max(x, 0) <= most. Scales are not negative
// either, so neither is any term, and since rounding is monotone each line leaves the number where it was or lower, in
// float32 itself: what was computed so far is never below the logit. No tolerance is needed.
//
// To find the k best rows, the bounds of all rows are computed from the high plane (18 of 34 bytes). A few rows that
// look best are computed whole; their k-th best logit is a floor, and any other row is given up at the first line that
// takes it below. All rows that reach the floor come out with their logits, ties included, bit for bit those of `product`.
#pragma once
#include <array>
#include <vector>

#include "layout.h"
#include "planes.h"
#include "pool.h"
#include "work.h"

namespace geode {

// Which rows are wanted: those among the `k` largest logits (0: all) that are at most `gap` below the largest, and the
// rows `ids`, ascending, which count for neither. Rows from `size` on are no tokens.
struct Need {
    size_t k;
    float gap;
    std::vector<int32_t> ids;
    size_t size;
};

// Rows, ascending, that hold all that were needed, and their logits.
struct Found {
    std::vector<int32_t> ids;
    std::vector<float> logits;
};

// Hidden states as the head reads them.
class HeadInput {
public:
    HeadInput(const Kernels& k, const float* hidden, size_t rows, size_t width, float largest_scale);
    const HeadActs& acts() const { return view_; }
    size_t rows() const { return view_.acts.rows; }
    bool is_finite() const { return finite_; }  // so that no bound can be infinite

private:
    void add_block(size_t row, size_t block);

    ActBuffer buffer_;
    std::vector<int32_t> raise_, lower_;
    std::vector<float> spread_;
    HeadActs view_;
    bool finite_ = true;
};

class ScreenedHead {
public:
    // Whether a matrix can be held so; its scales decide too, see `load`.
    static bool fits(QType type, size_t columns) { return type == QType::Q8_0 && columns % 32 == 0; }

    // Takes the rows of a file. False, and nothing is held, where a scale is negative or not finite.
    bool load(size_t rows, size_t columns, const uint8_t* source, bool mapped, Pool& pool);
    void clear() { *this = ScreenedHead(); }

    // One row's bytes as its file had them.
    void unpack_row(size_t row, uint8_t* out) const;

    // Logits of panels [first, first + count) for all rows: y[m · ldy + 16 · p + i].
    void product(const Kernels& k, size_t first, size_t count, const HeadInput& in, float* y, size_t ldy) const {
        k.head_product(planes_, first, count, in.acts(), y, ldy);
    }

    // What each row of `in`, which must be finite, needs; logits go through `cap` where that is not 0.
    std::vector<Found> find(const Kernels& k, Pool& pool, const HeadInput& in, const std::vector<Need>& needs, float cap);
    size_t bytes_read() const { return bytes_read_; }  // by the last `find`, of `nbytes`
    void note_all_read() { bytes_read_ = nbytes(); }

    explicit operator bool() const { return planes_.rows != 0; }
    size_t rows() const { return planes_.rows; }
    size_t columns() const { return 32 * planes_.blocks; }
    size_t panels() const { return (planes_.rows + PANEL - 1) / PANEL; }
    size_t nbytes() const { return scale_.size() + high_.size() + low_.size(); }
    float largest_scale() const { return largest_scale_; }
    std::array<const Buffer*, 3> buffers() const { return {&scale_, &high_, &low_}; }
    const Planes& planes() const { return planes_; }

private:
    bool pack_rows(const uint8_t* source, size_t first, size_t last, float& largest);

    Buffer scale_, high_, low_, bounds_;
    Planes planes_;
    float largest_scale_ = 0;
    size_t bytes_read_ = 0;
};

}  // namespace geode
