// Passes over activations that a training step makes between its matrix products, for rows of bfloat16 or float32;
// sums, maxima and functions are worked out in float32. Tensors, gradients' graphs and threads are not known here.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels.h"
#include "pool.h"

namespace geode {

enum class Number : uint8_t { FLOAT32, BFLOAT16 };

// A slice of a head's logits z (rows, columns), through cap · tanh(z / cap) if cap is not 0, after those gone by:
// `most` and `total` are a row's largest and Σ exp(z - most) so far. z becomes exp(z - most), times the cap's slope,
// and what was summed before the slice is worth `shrink` of itself now.
struct Softmax {
    Number type;
    void* z;
    size_t columns;
    float cap;
    float *most, *total, *shrink;  // (rows,)
};

// to (rows, columns) float32 = to · keep + x.
struct Blend {
    Number type;
    const void* x;
    size_t columns;
    const float* keep;  // (rows,)
    float* to;
};

// y = x · scale · weight with scale = 1 / √(mean x² + eps); `cast_first` rounds x · scale and the weight before.
struct RmsNorm {
    Number type;
    const void* x;
    size_t columns;
    const float* weight;
    float eps;
    bool cast_first;
    void* y;
    float* scale;  // (rows,)
};

// The gradient for x, from that for y.
struct RmsNormBack {
    Number type;
    const void *x, *dy;
    size_t columns;
    const float *weight, *scale;
    void* dx;
};

// y = act(gate) · up, of numbers; backwards dgate and dup from dy.
struct Gate {
    Number type;
    Activation kind;
    const void *gate, *up;
    void* y;
};
struct GateBack {
    Number type;
    Activation kind;
    const void *gate, *up, *dy;
    void *dgate, *dup;
};

// Channels i and i + pairs of each head turned against each other by the row's angles, for i < pairs; the others as they
// are. `back` turns the other way: the gradient.
struct Turn {
    Number type;
    const void* x;  // (rows, heads, size)
    size_t heads, size, pairs;
    const float *cos, *sin;  // (rows, pairs)
    bool back;
    void* y;
};

struct Trainer {
    void (*softmax)(const Softmax&, Range rows);
    void (*blend)(const Blend&, Range rows);
    void (*rms_norm)(const RmsNorm&, Range rows);
    // `weight`, if not nullptr, gets the gradient for the weight that these rows alone cause.
    void (*rms_norm_back)(const RmsNormBack&, Range rows, float* weight);
    void (*gate)(const Gate&, Range numbers);
    void (*gate_back)(const GateBack&, Range numbers);
    void (*turn)(const Turn&, Range rows);
};

// The same code compiled for four CPUs; the portable one where the compiler had no such instructions.
const Trainer& portable_trainer();
const Trainer& avx2_trainer();
const Trainer& avx512_trainer();
const Trainer& neon_trainer();

// The one for an instruction set by its name, see cpu.h.
const Trainer& trainer(const std::string& isa);

// Who does the work: `parallel` is the address of GOMP_parallel of the OpenMP that the framework's own threads belong to,
// which spin between its operations, so that threads of ours would fight them for the cores; 0: threads of ours.
struct Crew {
    int threads;
    size_t parallel;
};

// work(part, rows) for consecutive parts of `size` rows each, whatever the number of threads.
void in_parts(const Crew& crew, size_t rows, size_t size, const std::function<void(size_t, Range)>& work);

}  // namespace geode
