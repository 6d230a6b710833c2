// The passes of training.h of the instruction sets that are named, against their definitions in doubles.
// Prints what is wrong and returns 1, or one line for each. Memory ends where its numbers do, for sanitizers to see.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "half.h"
#include "expect.h"
#include "training.h"

using namespace geode;

namespace {

std::mt19937 generator(7);

template <class T>
constexpr Number NUMBER = sizeof(T) == 4 ? Number::FLOAT32 : Number::BFLOAT16;

double wide(float x) { return x; }
double wide(uint16_t x) { return from_bfloat(x); }

template <class T>
T narrow(float x) {
    if constexpr (sizeof(T) == 4) return x;
    else return to_bfloat(x);
}

template <class T>
std::vector<T> normals(size_t n, float spread = 1) {
    std::vector<T> x(n);
    for (T& v : x) v = narrow<T>(std::normal_distribution<float>(0, spread)(generator));
    return x;
}

// Within the rounding of T, so many times, and of float32 on the way to it.
template <class T>
void near(T found, double expected, double scale, const std::string& what, int times = 1) {
    const double relative = times * (sizeof(T) == 4 ? 4e-6 : 0x1.02p-8);
    expect(std::fabs(wide(found) - expected) <= relative * std::fabs(expected) + 2e-6 * scale,
           what + ": " + std::to_string(wide(found)) + ", not " + std::to_string(expected));
}

std::string named(const char* pass, size_t rows, size_t columns) {
    return std::string(pass) + " " + std::to_string(rows) + "x" + std::to_string(columns);
}

// Two slices of the same rows, one after the other.
template <class T>
void check_softmax(const Trainer& t, size_t rows, size_t columns, float cap) {
    const std::string what = named("softmax", rows, columns);
    std::vector<float> most(rows, -1e30f), total(rows), shrink(rows);
    std::vector<double> sums(rows), peaks(rows, -1e30);
    for (const float spread : {3.0f, 9.0f}) {
        auto z = normals<T>(rows * columns, spread);
        const auto before = z;
        t.softmax({NUMBER<T>, z.data(), columns, cap, most.data(), total.data(), shrink.data()}, {0, rows});
        for (size_t row = 0; row < rows; row++) {
            const auto logit = [&](size_t i) {
                const double x = wide(before[row * columns + i]);
                return cap != 0 ? cap * std::tanh(x / cap) : x;
            };
            double peak = peaks[row], sum = 0;
            for (size_t i = 0; i < columns; i++) peak = std::max(peak, logit(i));
            for (size_t i = 0; i < columns; i++) {
                const double p = std::exp(logit(i) - peak);
                const double slope = cap != 0 ? 1 - logit(i) * logit(i) / cap / cap : 1;
                near(z[row * columns + i], p * slope, 4, what);
                sum += p;
            }
            near(shrink[row], std::exp(peaks[row] - peak), 8, what + " shrink");
            sums[row] = sums[row] * std::exp(peaks[row] - peak) + sum;
            peaks[row] = peak;
            near(most[row], peak, 1, what + " most");
            near(total[row], sums[row], 8, what + " total");
        }
    }
}

template <class T>
void check_blend(const Trainer& t, size_t rows, size_t columns) {
    const auto x = normals<T>(rows * columns);
    const auto keep = normals<float>(rows), before = normals<float>(rows * columns);
    auto to = before;
    t.blend({NUMBER<T>, x.data(), columns, keep.data(), to.data()}, {0, rows});
    for (size_t i = 0; i < to.size(); i++)
        near(to[i], wide(before[i]) * keep[i / columns] + wide(x[i]), 1, named("blend", rows, columns));
}

template <class T>
void check_norm(const Trainer& t, size_t rows, size_t columns, bool cast_first) {
    const auto x = normals<T>(rows * columns, 3), dy = normals<T>(rows * columns);
    const auto weight = normals<float>(columns);
    std::vector<T> y(rows * columns), dx(rows * columns);
    std::vector<float> scale(rows), d_weight(columns, 5.0f);
    t.rms_norm({NUMBER<T>, x.data(), columns, weight.data(), 1e-6f, cast_first, y.data(), scale.data()}, {0, rows});
    const RmsNormBack back{NUMBER<T>, x.data(), dy.data(), columns, weight.data(), scale.data(), dx.data()};
    t.rms_norm_back(back, {0, rows}, d_weight.data());
    std::vector<double> drift(columns);
    for (size_t row = 0; row < rows; row++) {
        const auto value = [&](const std::vector<T>& of, size_t i) { return wide(of[row * columns + i]); };
        double square = 0, mean = 0;
        for (size_t i = 0; i < columns; i++) square += value(x, i) * value(x, i) / double(columns);
        const double factor = 1 / std::sqrt(square + 1e-6);
        near(scale[row], factor, 0, named("rms_norm's scale", rows, columns));
        for (size_t i = 0; i < columns; i++) mean += value(dy, i) * weight[i] * value(x, i) * factor / double(columns);
        for (size_t i = 0; i < columns; i++) {
            const double unit = value(x, i) * factor;
            near(y[row * columns + i], unit * weight[i], 1, named("rms_norm", rows, columns), cast_first ? 3 : 1);
            near(dx[row * columns + i], (value(dy, i) * weight[i] - unit * mean) * factor, 10 * factor,
                 named("rms_norm_back", rows, columns));
            drift[i] += value(dy, i) * unit;
        }
    }
    for (size_t i = 0; i < columns; i++) near(d_weight[i], drift[i], 10, named("the weight's gradient", rows, columns));
    const auto once = dx;
    t.rms_norm_back(back, {0, rows}, nullptr);
    expect(dx == once, "a gradient depends on whether the weight's is asked for");
}

// The function and its slope.
std::pair<double, double> bent(Activation kind, double x) {
    const double pi = 3.141592653589793;
    if (kind == Activation::SILU) {
        const double share = 1 / (1 + std::exp(-x));
        return {x * share, share * (1 + x * (1 - share))};
    }
    if (kind == Activation::GELU) {
        const double share = (1 + std::erf(x / std::sqrt(2.0))) / 2;
        return {x * share, share + x * std::exp(-x * x / 2) / std::sqrt(2 * pi)};
    }
    const double k = std::sqrt(2 / pi), t = std::tanh(k * (x + 0.044715 * x * x * x));
    return {x * (1 + t) / 2, (1 + t) / 2 + x / 2 * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x)};
}

template <class T>
void check_gate(const Trainer& t, size_t n) {
    for (const Activation kind : {Activation::SILU, Activation::GELU, Activation::GELU_TANH}) {
        const auto gate = normals<T>(n, 2), up = normals<T>(n), dy = normals<T>(n);
        std::vector<T> y(n), d_gate(n), d_up(n);
        t.gate({NUMBER<T>, kind, gate.data(), up.data(), y.data()}, {0, n});
        t.gate_back({NUMBER<T>, kind, gate.data(), up.data(), dy.data(), d_gate.data(), d_up.data()}, {0, n});
        for (size_t i = 0; i < n; i++) {
            const auto [value, slope] = bent(kind, wide(gate[i]));
            near(y[i], value * wide(up[i]), 10, named("gate", 1, n));
            near(d_gate[i], wide(dy[i]) * wide(up[i]) * slope, 10, named("the gate's gradient", 1, n));
            near(d_up[i], wide(dy[i]) * value, 10, named("up's gradient", 1, n));
        }
    }
}

template <class T>
void check_turn(const Trainer& t, size_t rows, size_t heads, size_t size, size_t pairs) {
    const auto x = normals<T>(rows * heads * size);
    const auto angles = normals<float>(rows * pairs, 3);
    std::vector<float> cos(angles.size()), sin(angles.size());
    for (size_t i = 0; i < angles.size(); i++) cos[i] = std::cos(angles[i]), sin[i] = std::sin(angles[i]);
    for (const bool back : {false, true}) {
        std::vector<T> y(x.size());
        t.turn({NUMBER<T>, x.data(), heads, size, pairs, cos.data(), sin.data(), back, y.data()}, {0, rows});
        for (size_t i = 0; i < x.size(); i++) {
            const size_t channel = i % size, at = i / size / heads * pairs + channel % std::max<size_t>(1, pairs);
            if (channel >= 2 * pairs) {
                expect(y[i] == x[i], named("a channel that stays", heads, size));
                continue;
            }
            const bool second = channel >= pairs;
            const double other = wide(x[second ? i - pairs : i + pairs]), side = second == back ? -1 : 1;
            near(y[i], wide(x[i]) * cos[at] + side * other * sin[at], 2, named("turn", heads, size));
        }
    }
}

template <class T>
void check_all(const Trainer& t) {
    for (const size_t columns : {1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 80, 257})
        for (const size_t rows : {0, 1, 3}) {
            for (const float cap : {0.0f, 5.0f}) check_softmax<T>(t, rows, columns, cap);
            check_blend<T>(t, rows, columns);
            for (const bool cast_first : {false, true}) check_norm<T>(t, rows, columns, cast_first);
            check_gate<T>(t, rows * columns);
        }
    for (const size_t heads : {1, 5})
        for (const size_t pairs : {0, 1, 7, 16, 33})
            for (const size_t more : {1, 2, 20}) check_turn<T>(t, 3, heads, 2 * pairs + more, pairs);
    check_turn<T>(t, 3, 4, 80, 40);
}

// Threads of Python ask for passes at the same time, each with threads of its own wish.
void check_parts() {
    std::vector<std::thread> askers;
    std::vector<std::vector<int>> seen(3, std::vector<int>(1001));
    for (int asker = 0; asker < 3; asker++)
        askers.emplace_back([&, asker] {
            for (int threads = 1; threads <= 3; threads++)
                in_parts({threads, 0}, 1001, 10, [&](size_t part, Range rows) {
                    for (size_t i = rows.begin; i < rows.end; i++) seen[asker][i] += i / 10 == part;
                });
        });
    for (auto& asker : askers) asker.join();
    for (const auto& counts : seen)
        expect(std::count(counts.begin(), counts.end(), 3) == 1001, "a row was in no part, or in two");
    in_parts({2, 0}, 0, 1, [](size_t, Range) { expect(false, "a part of no rows"); });
}

}  // namespace

int main(int count, char** names) {
    for (int i = 1; i < count; i++) {
        const int before = failures;
        generator.seed(7);
        check_all<float>(trainer(names[i]));
        check_all<uint16_t>(trainer(names[i]));
        std::printf("%s: %s\n", names[i], failures == before ? "right" : "wrong");
    }
    check_parts();
    return failures != 0;
}
