// The passes of training.h, written once over a vector type S (simd_*.h).
#pragma once
#include "kernels.inl"
#include "training.h"

namespace geode {
namespace {

template <class S>
INLINE typename S::F floats(const float* at) {
    return S::load(at);
}
template <class S>
INLINE typename S::F floats(const uint16_t* at) {
    if constexpr (requires { S::load_bf16(at); }) {
        return S::load_bf16(at);
    } else {
        float lanes[R];
        for (int i = 0; i < R; i++) lanes[i] = from_bfloat(at[i]);
        return S::load(lanes);
    }
}
template <class S>
INLINE void put(float* at, typename S::F x) {
    S::store(at, x);
}
template <class S>
INLINE void put(uint16_t* at, typename S::F x) {
    S::store_bf16(at, x);
}

// Numbers [i, n) of x, at most sixteen, and `rest` in the lanes beyond them.
template <class S, class T>
INLINE typename S::F floats(const T* x, size_t i, size_t n, float rest = 0) {
    if (i + R <= n) return floats<S>(x + i);
    T part[R] = {};
    std::memcpy(part, x + i, (n - i) * sizeof(T));
    float lanes[R];
    S::store(lanes, floats<S>(part));
    for (size_t j = n - i; j < R; j++) lanes[j] = rest;
    return S::load(lanes);
}
template <class S, class T>
INLINE void put(T* x, size_t i, size_t n, typename S::F value) {
    if (i + R <= n) return put<S>(x + i, value);
    T part[R];
    put<S>(part, value);
    std::memcpy(x + i, part, (n - i) * sizeof(T));
}

template <class S>
typename S::F first_lanes(typename S::F x, size_t count) {
    float lanes[R];
    S::store(lanes, x);
    for (size_t i = count; i < R; i++) lanes[i] = 0;
    return S::load(lanes);
}

// As a number of type T would hold it.
template <class S, class T>
INLINE typename S::F rounded(typename S::F x) {
    if constexpr (sizeof(T) == sizeof(float)) return x;
    T part[R];
    put<S>(part, x);
    return floats<S>(part);
}

// term(i) for i in steps of sixteen below n, joined in four chains that do not wait for each other.
template <class S, class Join, class Term>
INLINE typename S::F joined(size_t n, float start, Join join, Term term) {
    typename S::F part[4] = {S::set(start), S::set(start), S::set(start), S::set(start)};
    size_t i = 0;
    for (; i + 4 * R <= n; i += 4 * R)
        for (int j = 0; j < 4; j++) part[j] = join(part[j], term(i + j * R));
    for (; i < n; i += R) part[0] = join(part[0], term(i));
    return join(join(part[0], part[1]), join(part[2], part[3]));
}

template <class S, class Term>
INLINE float sum_of(size_t n, Term term) {
    return S::sum(joined<S>(n, 0, [](auto a, auto b) { return S::add(a, b); }, term));
}

template <class S, class T>
void softmax_row(const Softmax& a, size_t row) {
    T* const z = static_cast<T*>(a.z) + row * a.columns;
    const auto larger = [](auto a, auto b) { return S::max(b, a); };
    const auto logits = [&](size_t i) { return floats<S>(z, i, a.columns, -INFINITY); };
    float here = S::largest(joined<S>(a.columns, -INFINITY, larger, logits));
    if (a.cap != 0) here = std::tanh(here / a.cap) * a.cap;
    const float most = std::max(a.most[row], here);
    const auto peak = S::set(most), cap = S::set(a.cap);
    const float sum = sum_of<S>(a.columns, [&](size_t i) {
        auto x = logits(i), slope = S::set(1);
        if (a.cap != 0) {
            const auto bent = hyperbolic_tangent<S>(S::div(x, cap));
            slope = S::fnma(bent, bent, slope);
            x = S::mul(bent, cap);
        }
        auto p = S::add(exponential<S>(S::sub(x, peak)), S::sub(x, x));  // a NaN stays one, see `exponential`
        if (i + R > a.columns) p = first_lanes<S>(p, a.columns - i);
        put<S>(z, i, a.columns, S::mul(p, slope));
        return p;
    });
    a.shrink[row] = std::exp(a.most[row] - most);
    a.total[row] = a.total[row] * a.shrink[row] + sum;
    a.most[row] = most;
}

template <class S, class T>
void softmax(const Softmax& a, Range rows) {
    for (size_t row = rows.begin; row < rows.end; row++) softmax_row<S, T>(a, row);
}

template <class S, class T>
void blend_rows(const Blend& a, Range rows) {
    for (size_t row = rows.begin; row < rows.end; row++) {
        const T* const x = static_cast<const T*>(a.x) + row * a.columns;
        float* const to = a.to + row * a.columns;
        const auto keep = S::set(a.keep[row]);
        for (size_t i = 0; i < a.columns; i += R)
            put<S>(to, i, a.columns, S::fma(floats<S>(to, i, a.columns), keep, floats<S>(x, i, a.columns)));
    }
}

template <class S, class T>
void norm_rows(const RmsNorm& a, Range rows) {
    for (size_t row = rows.begin; row < rows.end; row++) {
        const T* const x = static_cast<const T*>(a.x) + row * a.columns;
        T* const y = static_cast<T*>(a.y) + row * a.columns;
        const float squares = sum_of<S>(a.columns, [&](size_t i) {
            const auto each = floats<S>(x, i, a.columns);
            return S::mul(each, each);
        });
        a.scale[row] = 1.0f / std::sqrt(squares / static_cast<float>(a.columns) + a.eps);
        const auto scale = S::set(a.scale[row]);
        for (size_t i = 0; i < a.columns; i += R) {
            auto unit = S::mul(floats<S>(x, i, a.columns), scale), weight = floats<S>(a.weight, i, a.columns);
            if (a.cast_first) unit = rounded<S, T>(unit), weight = rounded<S, T>(weight);
            put<S>(y, i, a.columns, S::mul(unit, weight));
        }
    }
}

template <class S, class T>
void norm_row_back(const RmsNormBack& a, size_t row, float* d_weight) {
    const size_t n = a.columns;
    const T *const x = static_cast<const T*>(a.x) + row * n, *const dy = static_cast<const T*>(a.dy) + row * n;
    T* const dx = static_cast<T*>(a.dx) + row * n;
    const auto scale = S::set(a.scale[row]);
    const float sum = sum_of<S>(n, [&](size_t i) {
        const auto drift = S::mul(floats<S>(dy, i, n), S::mul(floats<S>(x, i, n), scale));
        if (d_weight) put<S>(d_weight, i, n, S::add(floats<S>(d_weight, i, n), drift));
        return S::mul(drift, floats<S>(a.weight, i, n));
    });
    const auto mean = S::set(sum / static_cast<float>(n));
    for (size_t i = 0; i < n; i += R) {
        const auto rise = S::mul(floats<S>(dy, i, n), floats<S>(a.weight, i, n));
        put<S>(dx, i, n, S::mul(S::fnma(S::mul(floats<S>(x, i, n), scale), mean, rise), scale));
    }
}

template <class S, class T>
void norm_rows_back(const RmsNormBack& a, Range rows, float* d_weight) {
    if (d_weight) std::memset(d_weight, 0, a.columns * sizeof(float));
    for (size_t row = rows.begin; row < rows.end; row++) norm_row_back<S, T>(a, row, d_weight);
}

// act(x), and its slope where it is asked for. Both SiLU and GELU's approximation are x / (1 + e^-u): u is x, or
// 2 · √(2/π) · (x + 0.044715 · x³).
template <class S, Activation KIND>
INLINE typename S::F bend(typename S::F x, typename S::F* slope) {
    const auto one = S::set(1), square = S::mul(x, x);
    if constexpr (KIND == Activation::GELU) {
        const auto bent = error_function<S>(S::mul(x, S::set(0.70710678f)));
        const auto share = S::mul(S::set(0.5f), S::add(one, bent));
        const auto density = [&] { return exponential<S>(S::mul(square, S::set(-0.5f))); };
        if (slope) *slope = S::fma(S::mul(x, S::set(0.39894228f)), density(), share);
        return S::mul(x, share);
    }
    auto u = x, steep = one;
    if constexpr (KIND == Activation::GELU_TANH) {
        const auto k = S::set(2 * 0.79788456f), cubic = S::set(0.044715f);
        u = S::mul(S::mul(k, x), S::fma(cubic, square, one));
        steep = S::mul(k, S::fma(S::set(3 * 0.044715f), square, one));
    }
    const auto e = exponential<S>(S::sub(S::zero(), u));
    const auto share = S::div(one, S::add(one, e)), y = S::mul(x, share);
    if (slope) *slope = S::fma(S::mul(y, S::mul(e, share)), steep, share);
    return y;
}

template <class S, class T, Activation KIND>
void gate_numbers(const Gate& a, Range numbers) {
    const T *const gate = static_cast<const T*>(a.gate), *const up = static_cast<const T*>(a.up);
    for (size_t i = numbers.begin, n = numbers.end; i < n; i += R)
        put<S>(static_cast<T*>(a.y), i, n, S::mul(bend<S, KIND>(floats<S>(gate, i, n), nullptr), floats<S>(up, i, n)));
}

template <class S, class T, Activation KIND>
void gate_numbers_back(const GateBack& a, Range numbers) {
    const T *const gate = static_cast<const T*>(a.gate), *const up = static_cast<const T*>(a.up);
    for (size_t i = numbers.begin, n = numbers.end; i < n; i += R) {
        const auto dy = floats<S>(static_cast<const T*>(a.dy), i, n);
        typename S::F slope;
        const auto bent = bend<S, KIND>(floats<S>(gate, i, n), &slope);
        put<S>(static_cast<T*>(a.dgate), i, n, S::mul(S::mul(dy, floats<S>(up, i, n)), slope));
        put<S>(static_cast<T*>(a.dup), i, n, S::mul(dy, bent));
    }
}

template <class S, class T>
void turn_head(const Turn& a, const T* x, T* y, const float* cos, const float* sin) {
    const size_t n = a.pairs;
    for (size_t i = 0; i < n; i += R) {
        const auto first = floats<S>(x, i, n), second = floats<S>(x + n, i, n);
        const auto c = floats<S>(cos, i, n), ahead = floats<S>(sin, i, n);
        const auto s = a.back ? S::sub(S::zero(), ahead) : ahead;
        put<S>(y, i, n, S::fnma(second, s, S::mul(first, c)));
        put<S>(y + n, i, n, S::fma(first, s, S::mul(second, c)));
    }
    std::memcpy(y + 2 * n, x + 2 * n, (a.size - 2 * n) * sizeof(T));
}

template <class S, class T>
void turn_rows(const Turn& a, Range rows) {
    for (size_t row = rows.begin; row < rows.end; row++)
        for (size_t at = row * a.heads * a.size, head = 0; head < a.heads; head++, at += a.size)
            turn_head<S, T>(a, static_cast<const T*>(a.x) + at, static_cast<T*>(a.y) + at, a.cos + row * a.pairs,
                            a.sin + row * a.pairs);
}

// FLOAT32's or BFLOAT16's function of the two.
template <auto OF_FLOATS, auto OF_BFLOATS, class Args, class... More>
void by_type(const Args& args, Range range, More... more) {
    return args.type == Number::FLOAT32 ? OF_FLOATS(args, range, more...) : OF_BFLOATS(args, range, more...);
}

template <class S, class T>
void gate_by_kind(const Gate& a, Range numbers) {
    if (a.kind == Activation::SILU) return gate_numbers<S, T, Activation::SILU>(a, numbers);
    if (a.kind == Activation::GELU) return gate_numbers<S, T, Activation::GELU>(a, numbers);
    gate_numbers<S, T, Activation::GELU_TANH>(a, numbers);
}

template <class S, class T>
void gate_back_by_kind(const GateBack& a, Range numbers) {
    if (a.kind == Activation::SILU) return gate_numbers_back<S, T, Activation::SILU>(a, numbers);
    if (a.kind == Activation::GELU) return gate_numbers_back<S, T, Activation::GELU>(a, numbers);
    gate_numbers_back<S, T, Activation::GELU_TANH>(a, numbers);
}

template <class S>
constexpr Trainer trainer_of() {
    using H = uint16_t;
    return {by_type<softmax<S, float>, softmax<S, H>, Softmax>,
            by_type<blend_rows<S, float>, blend_rows<S, H>, Blend>,
            by_type<norm_rows<S, float>, norm_rows<S, H>, RmsNorm>,
            by_type<norm_rows_back<S, float>, norm_rows_back<S, H>, RmsNormBack, float*>,
            by_type<gate_by_kind<S, float>, gate_by_kind<S, H>, Gate>,
            by_type<gate_back_by_kind<S, float>, gate_back_by_kind<S, H>, GateBack>,
            by_type<turn_rows<S, float>, turn_rows<S, H>, Turn>};
}

}  // namespace
}  // namespace geode
