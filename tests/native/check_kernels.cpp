// Every table of kernels that runs here, against the definitions of numbers (`dequantize`) and doubles.
// Prints what is wrong and returns 1, or one line for each instruction set.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cpu.h"
#include "expect.h"
#include "half.h"
#include "layout.h"

using namespace geode;

namespace {

std::mt19937 generator(7);

float normal() { return std::normal_distribution<float>()(generator); }

std::vector<float> normals(size_t n) {
    std::vector<float> x(n);
    for (float& v : x) v = normal();
    return x;
}

// Where a block keeps its half-precision numbers; the rest may be any bits.
const std::vector<int> HALVES[TYPES] = {{},     {},   {},       {0},   {0},    {0, 2}, {0},
                                        {0, 2}, {80, 82}, {108}, {0, 2}, {0, 2}, {208}};

std::vector<uint8_t> random_rows(QType type, size_t rows, size_t columns) {
    std::vector<uint8_t> bytes(rows * row_bytes(type, columns));
    if (type == QType::F32)
        for (size_t i = 0; i < bytes.size(); i += 4) {
            const float x = normal();
            std::memcpy(&bytes[i], &x, 4);
        }
    else if (!is_integer(type))
        for (size_t i = 0; i < bytes.size(); i += 2) {
            const uint16_t x = type == QType::F16 ? to_half(normal()) : to_bfloat(normal());
            std::memcpy(&bytes[i], &x, 2);
        }
    else
        for (uint8_t& b : bytes) b = static_cast<uint8_t>(generator());
    for (int at : HALVES[static_cast<int>(type)])
        for (size_t i = at; i < bytes.size(); i += block_info(type).nbytes) {
            const uint16_t x = to_half(normal() * 0.01f);
            std::memcpy(&bytes[i], &x, 2);
        }
    return bytes;
}

struct Batch {
    Acts acts;
    std::vector<float> floats, scale, sum, half_sum;
    std::vector<uint16_t> bfloats;
    std::vector<int8_t> q;
    std::vector<int32_t> minus, half_minus;

    Batch(const Kernels& kernels, const std::vector<float>& x, size_t rows, size_t columns) {
        const size_t stride = round_up(columns, 32), all = round_up(rows, 16) * stride;
        floats.resize(all), bfloats.resize(all), q.resize(all);
        scale.resize(all / 32), sum.resize(all / 32), minus.resize(all / 32);
        half_sum.resize(all / 16), half_minus.resize(all / 16);
        acts.rows = rows, acts.columns = columns, acts.stride = stride, acts.tall = rows > 1 ? 4 : 0;
        acts.floats = floats.data(), acts.bfloats = bfloats.data(), acts.q = q.data();
        acts.scale = scale.data(), acts.sum = sum.data(), acts.minus = minus.data();
        acts.half_sum = half_sum.data(), acts.half_minus = half_minus.data();
        for (size_t row = 0; row < rows; row++)
            kernels.prepare(&x[row * columns], FLOATS | BFLOATS | INTEGERS, acts, row);
    }
};

void check_prepare(const Kernels& k) {
    for (size_t n : {1, 17, 32, 95, 256}) {
        auto x = normals(n);
        for (float& v : x) v *= std::exp(3 * normal());
        if (n == 256) std::fill(x.begin(), x.begin() + 32, 0.0f);
        Batch batch(k, x, 1, n);
        for (size_t i = 0; i < round_up(n, 32); i++) {
            const size_t block = i / 32;
            float most = 0;
            for (size_t j = 32 * block; j < std::min(n, 32 * block + 32); j++) most = std::max(most, std::fabs(x[j]));
            const float value = i < n ? x[i] : 0, inverse = most > 0 ? 127.0f / most : 0;
            expect(batch.scale[block] == most / 127.0f, "scale of an activation");
            expect(batch.q[i] == std::nearbyint(value * inverse), "number of an activation");
            expect(batch.floats[i] == value, "float of an activation");
            expect(batch.bfloats[i] == to_bfloat(value), "bfloat of an activation");
        }
        for (size_t g = 0; g < batch.sum.size(); g++) {
            int sums[2] = {};
            for (size_t j = 0; j < 32; j++) sums[j / 16] += batch.q[32 * g + j];
            const int all = sums[0] + sums[1];
            expect(batch.sum[g] == all && batch.minus[g] == -all, "sum of an activation");
            for (size_t i = 0; i < 2; i++)
                expect(batch.half_sum[2 * g + i] == sums[i] && batch.half_minus[2 * g + i] == -sums[i], "half a sum");
        }
    }
}

struct Case {
    QType type;
    size_t rows, columns, m;
    std::string name() const {
        return std::string(type_name(type)) + " " + std::to_string(rows) + "x" + std::to_string(columns) + " m=" +
               std::to_string(m);
    }
};

// What the kernel reads of activation number i: what it was rounded to. AMX rounds the weights too: see `slack`.
float seen(const Kernels& k, QType type, const Acts& acts, size_t row, size_t i) {
    unsigned form = k.form[static_cast<int>(type)];
    if ((form & INTEGERS) && (form & BFLOATS)) form = acts.rows < 16 ? INTEGERS : BFLOATS;  // AMX
    const size_t at = row * acts.stride + i;
    const size_t block = block_at(acts, row, i / 32);
    if (form & INTEGERS) return acts.scale[block] * acts.q[32 * block + i % 32];
    return form & BFLOATS ? from_bfloat(acts.bfloats[at]) : acts.floats[at];
}

void check_product(const Kernels& k, const Case& c) {
    const auto bytes = random_rows(c.type, c.rows, c.columns);
    const size_t stride = row_bytes(c.type, c.columns);
    Matrix matrix = empty_matrix(c.type, c.rows, c.columns);
    pack_panels(matrix, bytes.data(), stride, 0, matrix.panels());
    Batch batch(k, normals(c.m * c.columns), c.m, c.columns);
    const size_t ldy = matrix.panels() * PANEL + 3;
    const float guard = 3;
    std::vector<float> y(c.m * ldy, guard), added = y, single(ldy, guard);
    const auto matmul = k.matmul[static_cast<int>(c.type)];
    matmul(matrix.data.bytes(), matrix.panels(), matrix.panel_bytes, batch.acts, y.data(), ldy, false);
    matmul(matrix.data.bytes(), matrix.panels(), matrix.panel_bytes, batch.acts, added.data(), ldy, true);
    const bool tiles = std::string(k.isa) == "amx" && c.type != QType::F32 && c.type != QType::F16 && c.m >= 16;
    std::vector<float> weights(c.columns);
    for (size_t row = 0; row < c.rows; row++) {
        dequantize(c.type, &bytes[row * stride], c.columns, weights.data());
        for (size_t m = 0; m < c.m; m++) {
            double sum = 0, size = 0;
            for (size_t i = 0; i < c.columns; i++) {
                const double term = double{weights[i]} * seen(k, c.type, batch.acts, m, i);
                sum += term, size += std::fabs(term);
            }
            const double slack = (tiles ? 0x1p-7 : 1e-5) * size + 1e-20;
            expect(std::fabs(y[m * ldy + row] - sum) <= slack, c.name() + ": product");
            expect(std::fabs(added[m * ldy + row] - sum - guard) <= slack + 1e-4, c.name() + ": product added");
        }
    }
    for (size_t m = 0; m < c.m; m++) {
        for (size_t i = matrix.panels() * PANEL; i < ldy; i++) expect(y[m * ldy + i] == guard, c.name() + ": bounds");
        Acts one = part_of(batch.acts, m);
        one.rows = 1;
        matmul(matrix.data.bytes(), matrix.panels(), matrix.panel_bytes, one, single.data(), ldy, false);
        const bool same = std::memcmp(single.data(), &y[m * ldy], matrix.panels() * PANEL * sizeof(float)) == 0;
        expect(tiles || same, c.name() + ": alone and in a batch");
    }
}

void check_products(const Kernels& k) {
    for (int t = 0; t < TYPES; t++) {
        const QType type = static_cast<QType>(t);
        const size_t elements = block_info(type).elements;
        for (size_t m : {1, 2, 3, 5, 16, 17, 33})
            for (size_t columns : {1, 3, 8, 1376})
                check_product(k, {type, 37, elements < 32 ? columns + (columns > 8) : columns * elements % 2816, m});
    }
}

void check_function(const std::string& name, const std::vector<float>& x, const std::vector<float>& y,
                    const std::function<double(double)>& f, double relative, double absolute) {
    for (size_t i = 0; i < x.size(); i++) {
        const double right = f(x[i]), wrong = std::fabs(y[i] - right);
        expect(wrong <= relative * std::fabs(right) + absolute,
               name + "(" + std::to_string(x[i]) + ") = " + std::to_string(y[i]));
    }
}

std::vector<float> sweep(float most, size_t n) {
    std::vector<float> x(n);
    for (size_t i = 0; i < n; i++) x[i] = most * (2.0f * static_cast<float>(i) / static_cast<float>(n - 1) - 1);
    for (size_t i = 1; i < n; i += 3) x[i] *= 1e-3f;
    return x;
}

void check_functions(const Kernels& k) {
    const auto x = sweep(30, 4999);  // not a multiple of sixteen
    std::vector<float> y(x.size());
    k.activate(Activation::SILU, x.data(), nullptr, x.size(), y.data());
    check_function("silu", x, y, [](double v) { return v / (1 + std::exp(-v)); }, 1e-6, 1e-12);
    k.activate(Activation::GELU, x.data(), nullptr, x.size(), y.data());
    check_function("gelu", x, y, [](double v) { return v / 2 * (1 + std::erf(v / std::sqrt(2.0))); }, 1e-6, 1e-6);
    k.activate(Activation::GELU_TANH, x.data(), x.data(), x.size(), y.data());
    check_function("gelu_tanh", x, y, [](double v) {
        return v * v / 2 * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    }, 1e-6, 1e-5);
    y = x;
    k.scale_and_cap(y.data(), y.size(), 3, 50);
    check_function("cap", x, y, [](double v) { return 50 * std::tanh(3 * v / 50); }, 1e-6, 1e-6);
    auto e = sweep(100, 4992);
    e[7] = -INFINITY;
    y = e;
    const float sum = k.exponentials(y.data(), y.size(), 100);
    check_function("exp", e, y, [](double v) { return float(v) - 100.0f < -87 ? 0 : std::exp(double{float(v) - 100.0f}); }, 1e-6, 1e-37);
    double right = 0;
    for (float v : y) right += v;
    expect(std::fabs(sum - right) <= 1e-5 * right, "sum of exponentials");
    expect(k.largest(e.data(), 4991) == *std::max_element(e.begin(), e.end() - 1), "largest");
}

void check_rows(const Kernels& k) {
    for (size_t n : {1, 16, 37, 640}) {
        const auto x = normals(n), w = normals(n), b = normals(n);
        std::vector<float> y(n);
        double mean = 0, square = 0, spread = 0;
        for (float v : x) mean += v / double(n), square += double{v} * v / double(n);
        for (float v : x) spread += (v - mean) * (v - mean) / double(n);
        k.rms_norm(x.data(), n, 1e-6f, w.data(), nullptr, y.data());
        for (size_t i = 0; i < n; i++)
            expect(std::fabs(y[i] - w[i] * x[i] / std::sqrt(square + 1e-6)) < 1e-5, "rms_norm");
        k.layer_norm(x.data(), n, 1e-5f, w.data(), b.data(), y.data());
        for (size_t i = 0; i < n; i++)
            expect(std::fabs(y[i] - (w[i] * (x[i] - mean) / std::sqrt(spread + 1e-5) + b[i])) < 1e-4, "layer_norm");
        auto turned = normals(2 * n);
        const auto before = turned;
        k.rotate(turned.data(), w.data(), b.data(), n);
        for (size_t i = 0; i < n; i++) {
            const double first = double{before[i]} * w[i] - double{before[n + i]} * b[i];
            const double second = double{before[n + i]} * w[i] + double{before[i]} * b[i];
            expect(std::fabs(turned[i] - first) + std::fabs(turned[n + i] - second) < 1e-5, "rotate");
        }
        y = w;
        k.add(x.data(), n, y.data());
        for (size_t i = 0; i < n; i++) expect(y[i] == w[i] + x[i], "add");
        k.blend(x.data(), n, 0.5f, 2.0f, y.data());
        for (size_t i = 0; i < n; i++) expect(std::fabs(y[i] - (2 * (w[i] + x[i]) + x[i] / 2)) < 1e-5, "blend");
    }
}

void check_i8(const Kernels& k) {
    for (size_t m : {1, 3, 16, 21})
        for (size_t columns : {5, 64}) {
            std::vector<uint8_t> w(2 * PANEL * columns);
            for (uint8_t& b : w) b = static_cast<uint8_t>(generator());
            Batch batch(k, normals(m * columns), m, columns);
            std::vector<float> y(m * 2 * PANEL);
            k.matmul_i8(w.data(), 2, PANEL * columns, batch.acts, y.data(), 2 * PANEL, false);
            for (size_t i = 0; i < y.size(); i++) {
                const size_t row = i % 32;
                double sum = 0;
                for (size_t c = 0; c < columns; c++)
                    sum += static_cast<int8_t>(w[row / 16 * PANEL * columns + c * 16 + row % 16]) *
                           double{batch.floats[i / 32 * batch.acts.stride + c]};
                expect(std::fabs(y[i] - sum) < 0.02, "matmul_i8");
            }
        }
}

void check(const Kernels& k) {
    generator.seed(7);
    const int before = failures;
    check_prepare(k);
    check_products(k);
    check_i8(k);
    check_functions(k);
    check_rows(k);
    std::printf("%s: %s\n", k.isa, failures == before ? "right" : "wrong");
}

const Kernels& named(const std::string& name) {
#if defined(GEODE_FAKE_TILES)
    if (name == "amx") return *amx_kernels();  // no CPU is asked
#endif
    return kernels(name.c_str());
}

}  // namespace

int main(int count, char** names) {
    for (int i = 1; i < count; i++) check(named(names[i]));
    if (count == 1)
        for (const auto& name : supported_isas()) check(kernels(name.c_str()));
    return failures != 0;
}
