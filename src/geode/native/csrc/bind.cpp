// The face towards Python: checks what comes in, lets go of the interpreter's lock, and nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <optional>
#include <stdexcept>

#include "adapters.h"
#include "cpu.h"
#include "head.h"
#include "machine.h"
#include "model.h"
#include "quantize.h"
#include "training.h"
#include "work.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace geode;

namespace {

using Bytes2 = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints1 = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints2 = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using BytesOut = nb::ndarray<nb::numpy, uint8_t, nb::ndim<2>>;

template <class T, class Array>
Array new_array(size_t rows, size_t columns) {
    T* data = new T[std::max<size_t>(1, rows * columns)];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return Array(data, {rows, columns}, owner);
}

QType type_of(const std::string& name) {
    for (int i = 0; i < TYPES; i++)
        if (name == BLOCKS[i].name) return static_cast<QType>(i);
    throw nb::value_error(("the engine has no weights of type " + name).c_str());
}

void check(bool good, const char* what) {
    if (!good) throw nb::value_error(what);
}

template <class T>
T value_of(const nb::dict& dict, const char* name) {
    return nb::cast<T>(dict[name]);
}

template <class Kind>
Kind one_of(const nb::dict& dict, const char* key, std::initializer_list<const char*> names) {
    const auto given = value_of<std::string>(dict, key);
    int index = 0;
    for (const char* name : names) {
        if (given == name) return static_cast<Kind>(index);
        index++;
    }
    throw nb::value_error((std::string(key) + " cannot be " + given).c_str());
}

Spec spec_of(const nb::dict& d) {
    Spec s{};
    s.vocab = value_of<size_t>(d, "vocab");
    s.width = value_of<size_t>(d, "width");
    s.depth = value_of<size_t>(d, "depth");
    s.heads = value_of<size_t>(d, "heads");
    s.kv_heads = value_of<size_t>(d, "kv_heads");
    s.head_dim = value_of<size_t>(d, "head_dim");
    s.ffn = value_of<size_t>(d, "ffn");
    s.block = one_of<BlockKind>(d, "block", {"pre", "post", "sandwich", "parallel", "parallel_shared"});
    s.norm = one_of<NormKind>(d, "norm", {"rms", "layer"});
    s.eps = value_of<float>(d, "eps");
    s.qk_norm = one_of<QKNorm>(d, "qk_norm", {"none", "shared", "per_head", "whole"});
    s.activation = one_of<Activation>(d, "activation", {"silu", "gelu", "gelu_tanh"});
    s.gated = value_of<bool>(d, "gated");
    s.scale = value_of<float>(d, "scale");
    s.attn_softcap = value_of<float>(d, "attn_softcap");
    s.final_softcap = value_of<float>(d, "final_softcap");
    s.clip_qkv = value_of<float>(d, "clip_qkv");
    s.embedding_scale = value_of<float>(d, "embedding_scale");
    s.tied = value_of<bool>(d, "tied");
    s.screen_head = !d.contains("screen_head") || value_of<bool>(d, "screen_head");
    return s;
}

using SeenTuple = std::tuple<size_t, size_t, size_t>;

std::vector<Seen> seen_of(const std::vector<SeenTuple>& layers) {
    std::vector<Seen> out;
    for (const auto& [window, group, place] : layers) out.push_back({window, group, place});
    return out;
}

Model* make_model(const nb::dict& spec, const std::vector<SeenTuple>& layers, const std::vector<int>& rope_of,
                  const std::vector<std::pair<Floats1, float>>& ropes, const std::optional<std::string>& isa,
                  int threads) {
    std::vector<Rope> turns;
    for (const auto& [frequencies, magnitude] : ropes)
        turns.push_back({std::vector<float>(frequencies.data(), frequencies.data() + frequencies.size()), magnitude});
    const Spec s = spec_of(spec);
    check(layers.size() == s.depth && rope_of.size() == s.depth, "one entry for each layer is needed");
    return new Model(s, seen_of(layers), rope_of, std::move(turns), kernels(isa ? isa->c_str() : nullptr), threads);
}

void load_matrix(Model& model, const std::string& name, const std::string& type, Bytes2 data, size_t columns,
                 bool mapped) {
    const QType kind = type_of(type);
    check(data.shape(1) == row_bytes(kind, columns), "a row has another number of bytes");
    nb::gil_scoped_release free;
    model.load(name, kind, data.shape(0), columns, data.data(), mapped);
}

void load_vector(Model& model, const std::string& name, Floats1 data) {
    model.vector(name).assign(data.data(), data.data() + data.size());
}

// Everything that indexes memory is checked here, so that a wrong caller gets an error and not another's memory.
void check_batch(const Model& model, const Cache& cache, const Batch& b) {
    const size_t rows = b.rows(), sequences = b.sequences();
    check(rows > 0 && b.starts.size() == sequences + 1 && b.starts.front() == 0 &&
              b.starts.back() == static_cast<int32_t>(rows),
          "starts must go from 0 to the number of rows, one more than there are sequences");
    check(b.tables.size() == cache.groups(), "one page table for each group of layers is needed");
    for (int32_t token : b.tokens) check(token >= 0 && token < static_cast<int32_t>(model.spec().vocab), "no such token");
    int32_t before = -1;
    for (int32_t row : b.wanted) {
        check(row > before && row < static_cast<int32_t>(rows), "wanted rows must be there, and in ascending order");
        before = row;
    }
    std::vector<size_t> windows(cache.groups());
    for (const Seen& seen : model.seen()) windows[seen.group] = seen.window;
    for (size_t s = 0; s < sequences; s++) {
        check(b.starts[s + 1] > b.starts[s] && b.past[s] >= 0, "a sequence has no rows");
        const size_t end = b.past[s] + b.starts[s + 1] - b.starts[s];
        for (size_t g = 0; g < cache.groups(); g++) {
            const size_t width = b.tables[g].size() / sequences, first = b.past[s] + 1, window = windows[g];
            check(end <= width * PAGE, "a page table is too short");
            for (size_t p = (window && first > window ? first - window : 0) / PAGE; p * PAGE < end; p++) {
                const int32_t page = b.table(g, s)[p];
                check(page >= 0 && page < static_cast<int32_t>(cache.pages(g)), "a page is not there");
            }
        }
    }
}

std::vector<int32_t> ints(const Ints1& array) { return {array.data(), array.data() + array.size()}; }

Batch checked_batch(const Model& model, const Cache& cache, const Ints1& tokens, const Ints1& starts, const Ints1& past,
                    const std::vector<Ints2>& tables, const Ints1& wanted) {
    Batch batch{ints(tokens), ints(starts), ints(past), {}, ints(wanted), {}};
    for (const Ints2& table : tables) {
        check(table.shape(0) == batch.sequences(), "a page table has a row for each sequence");
        batch.tables.emplace_back(table.data(), table.data() + table.size());
    }
    check_batch(model, cache, batch);
    return batch;
}

void add_pair(Adapter& adapter, const Model& model, const std::string& name, Floats2 a, Floats2 b, float scale) {
    check(adapter.fits(model), "the adapter was made for another model");
    const auto [rows, columns] = model.shape(name);
    const size_t rank = a.shape(0);
    check(rank > 0 && b.shape(1) == rank && a.shape(1) == columns && b.shape(0) == rows, "a pair has another shape");
    nb::gil_scoped_release free;
    adapter.add(model, name, a.data(), b.data(), rank, scale);
}

// One for each of `count` sequences or hidden states, None for none; or nothing at all. A tuple, which nobody changes
// while the lock is let go.
Adapters checked_adapters(const Model& model, const nb::tuple& given, size_t count) {
    check(given.size() == 0 || given.size() == count, "one adapter, or None, is needed for each");
    Adapters adapters;
    bool any = false;
    for (const nb::handle one : given) {
        adapters.push_back(one.is_none() ? nullptr : nb::cast<const Adapter*>(one));
        check(!adapters.back() || adapters.back()->fits(model), "the adapter was made for another model");
        any |= adapters.back() != nullptr;
    }
    return any ? adapters : Adapters();
}

FloatsOut forward(Model& model, Cache& cache, Ints1 tokens, Ints1 starts, Ints1 past, const std::vector<Ints2>& tables,
                  Ints1 wanted, nb::tuple adapters) {
    Batch batch = checked_batch(model, cache, tokens, starts, past, tables, wanted);
    batch.adapters = checked_adapters(model, adapters, batch.sequences());
    auto out = new_array<float, FloatsOut>(batch.wanted.size(), model.spec().width);
    nb::gil_scoped_release free;
    std::lock_guard<std::mutex> alone(model.busy());
    model.forward(batch, cache, out.data());
    return out;
}

using DoublesInOut = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatsInOut3 = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

// A forward of all rows that fills what is given of `squares` (added to) and `residual`, see Taps.
FloatsOut observe(Model& model, Cache& cache, Ints1 tokens, Ints1 starts, Ints1 past, const std::vector<Ints2>& tables,
                  Ints1 wanted, std::optional<DoublesInOut> squares, std::optional<FloatsInOut3> residual) {
    const Batch batch = checked_batch(model, cache, tokens, starts, past, tables, wanted);
    const Spec& spec = model.spec();
    check(batch.wanted.size() == batch.rows(), "all rows must be wanted");
    check(!squares || (squares->shape(0) == spec.depth && squares->shape(1) == spec.inputs()), "squares have another shape");
    check(!residual || (residual->shape(0) == spec.depth + 1 && residual->shape(1) == batch.rows() &&
                        residual->shape(2) == spec.width),
          "the residual stream has another shape");
    auto out = new_array<float, FloatsOut>(batch.rows(), spec.width);
    nb::gil_scoped_release free;
    std::lock_guard<std::mutex> alone(model.busy());
    model.forward(batch, cache, out.data(), {squares ? squares->data() : nullptr, residual ? residual->data() : nullptr});
    return out;
}

// (rows, stride): the caller takes the first `vocab` columns.
FloatsOut head(Model& model, Floats2 hidden, nb::tuple adapters) {
    const Adapters changes = checked_adapters(model, adapters, hidden.shape(0));
    check(hidden.shape(1) == model.spec().width, "hidden states have another width");
    const size_t stride = round_up(model.spec().vocab, PANEL);
    auto out = new_array<float, FloatsOut>(hidden.shape(0), stride);
    nb::gil_scoped_release free;
    std::lock_guard<std::mutex> alone(model.busy());
    model.head(hidden.data(), hidden.shape(0), out.data(), stride, changes);
    return out;
}

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> to_array(const std::vector<T>& values) {
    T* data = new T[std::max<size_t>(1, values.size())];
    std::copy(values.begin(), values.end(), data);
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, {values.size()}, owner);
}

Need need_of(size_t vocab, int32_t k, float gap, Ints1 ids, int32_t size) {
    check(size >= 1 && static_cast<size_t>(size) <= vocab && k >= 0 && gap >= 0, "size, k or gap out of range");
    Need need{static_cast<size_t>(k), gap, ints(ids), static_cast<size_t>(size)};
    std::sort(need.ids.begin(), need.ids.end());
    need.ids.erase(std::unique(need.ids.begin(), need.ids.end()), need.ids.end());
    check(need.ids.empty() || (need.ids.front() >= 0 && need.ids.back() < size), "no such token");
    return need;
}

// For each hidden state (ids, logits), see head.h.
nb::list candidates(Model& model, Floats2 hidden, Ints1 ks, Floats1 gaps, const std::vector<Ints1>& extras, Ints1 sizes) {
    const size_t rows = hidden.shape(0);
    check(model.screens(), "this model's head cannot be screened");
    check(hidden.shape(1) == model.spec().width && ks.size() == rows && gaps.size() == rows && extras.size() == rows &&
              sizes.size() == rows,
          "one need for each hidden state is needed");
    std::vector<Need> needs;
    for (size_t i = 0; i < rows; i++)
        needs.push_back(need_of(model.spec().vocab, ks.data()[i], gaps.data()[i], extras[i], sizes.data()[i]));
    std::vector<Found> found;
    {
        nb::gil_scoped_release free;
        std::lock_guard<std::mutex> alone(model.busy());
        found = model.candidates(hidden.data(), needs);
    }
    nb::list out;
    for (const Found& some : found) out.append(nb::make_tuple(to_array(some.ids), to_array(some.logits)));
    return out;
}

// A row's bytes as its file had them.
BytesOut row_of(const Model& model, const std::string& name, size_t row, size_t size) {
    const auto [rows, bytes] = model.packed_shape(name);
    check(row < rows, "no such row");
    check(size == bytes, "a row has another number of bytes");
    auto out = new_array<uint8_t, BytesOut>(1, size);
    model.unpack(name, row, out.data());
    return out;
}

nb::tuple score(Model& model, Floats2 hidden, Ints1 targets, size_t real, nb::tuple adapters) {
    const size_t rows = hidden.shape(0);
    const Adapters changes = checked_adapters(model, adapters, rows);
    check(hidden.shape(1) == model.spec().width && targets.size() == rows, "one target for each hidden state is needed");
    const size_t vocab = model.spec().vocab;
    check(real >= 1 && real <= vocab, "size out of range");
    for (size_t i = 0; i < rows; i++)
        check(targets.data()[i] >= 0 && targets.data()[i] < static_cast<int32_t>(vocab), "no such token");
    std::vector<double> logprobs(rows);
    std::unique_ptr<bool[]> greedy(new bool[rows]);
    {
        nb::gil_scoped_release free;
        std::lock_guard<std::mutex> alone(model.busy());
        model.score(hidden.data(), targets.data(), rows, real, logprobs.data(), greedy.get(), changes);
    }
    return nb::make_tuple(logprobs, std::vector<bool>(greedy.get(), greedy.get() + rows));
}

Cache* make_cache(const std::string& type, size_t kv_heads, size_t head_dim, const std::vector<SeenTuple>& layers,
                  const std::vector<size_t>& pages) {
    const QType kind = type_of(type);
    check(kind <= QType::Q8_0, "a cache holds F32, F16, BF16 or Q8_0");
    check(kind != QType::Q8_0 || head_dim % 32 == 0, "a cache of Q8_0 needs heads of whole blocks of 32 channels");
    return new Cache(kind, kv_heads, head_dim, seen_of(layers), pages);
}

// A page's bytes, as they lie in this build's memory.
nb::bytes read_page(Cache& cache, size_t group, size_t page) {
    check(group < cache.groups() && page < cache.pages(group), "a page is not there");
    return nb::bytes(cache.page(group, page), cache.page_bytes(group));
}

void write_page(Cache& cache, size_t group, size_t page, const nb::bytes& bytes) {
    check(group < cache.groups() && page < cache.pages(group), "a page is not there");
    check(bytes.size() == cache.page_bytes(group), "a page has another number of bytes");
    std::memcpy(cache.page(group, page), bytes.data(), bytes.size());
}

// ---- one step at a time, for tests ----

FloatsOut multiply(const std::string& isa, const std::string& type, Bytes2 data, size_t columns, Floats2 x) {
    const Kernels& k = kernels(isa.c_str());
    const QType kind = type_of(type);
    const size_t rows = data.shape(0), m = x.shape(0);
    check(data.shape(1) == row_bytes(kind, columns) && x.shape(1) == columns, "shapes do not fit");
    Matrix matrix = empty_matrix(kind, rows, columns);
    pack_panels(matrix, data.data(), data.shape(1), 0, matrix.panels());
    ActBuffer acts;
    acts.resize(m, columns, k.form[static_cast<int>(kind)]);
    for (size_t row = 0; row < m; row++) k.prepare(x.data() + row * columns, acts.forms(), acts.acts(), row);
    auto out = new_array<float, FloatsOut>(m, matrix.panels() * PANEL);
    k.matmul[static_cast<int>(kind)](matrix.data.bytes(), matrix.panels(), matrix.panel_bytes, acts.acts(), out.data(),
                                     matrix.panels() * PANEL, false);
    return out;
}

FloatsOut numbers(const std::string& type, Bytes2 data, size_t columns) {
    const QType kind = type_of(type);
    check(data.shape(1) == row_bytes(kind, columns), "a row has another number of bytes");
    auto out = new_array<float, FloatsOut>(data.shape(0), columns);
    for (size_t row = 0; row < data.shape(0); row++)
        dequantize(kind, data.data() + row * data.shape(1), columns, out.data() + row * columns);
    return out;
}

BytesOut roundtrip(const std::string& type, Bytes2 data, size_t columns) {
    const QType kind = type_of(type);
    check(data.shape(1) == row_bytes(kind, columns), "a row has another number of bytes");
    Matrix matrix = empty_matrix(kind, data.shape(0), columns);
    pack_panels(matrix, data.data(), data.shape(1), 0, matrix.panels());
    auto out = new_array<uint8_t, BytesOut>(data.shape(0), data.shape(1));
    for (size_t row = 0; row < data.shape(0); row++) unpack_row(matrix, row, out.data() + row * data.shape(1));
    return out;
}

using Row = std::vector<float>;

// The functions on single rows by name, for tests: x and what else each needs, in `more`.
Row elementwise(const std::string& isa, const std::string& name, Row x, const std::vector<Row>& more) {
    const Kernels& k = kernels(isa.c_str());
    const auto row = [&](size_t i) { return i < more.size() && !more[i].empty() ? more[i].data() : nullptr; };
    const size_t n = x.size();
    for (const Row& other : more) check(other.empty() || other.size() == n || other.size() <= 2, "rows differ in length");
    Row out(n);
    if (name == "rms_norm") k.rms_norm(x.data(), n, row(0)[0], row(1), row(2), out.data());
    if (name == "layer_norm") k.layer_norm(x.data(), n, row(0)[0], row(1), row(2), out.data());
    if (name == "silu") k.activate(Activation::SILU, x.data(), row(0), n, out.data());
    if (name == "gelu") k.activate(Activation::GELU, x.data(), row(0), n, out.data());
    if (name == "gelu_tanh") k.activate(Activation::GELU_TANH, x.data(), row(0), n, out.data());
    if (name == "rotate") {  // more: cos and sin of n / 2 pairs, each filled up to n
        k.rotate(x.data(), row(0), row(1), n / 2);
        return x;
    }
    if (name == "scale_and_cap") {  // more: (scale, cap)
        k.scale_and_cap(x.data(), n, row(0)[0], row(0)[1]);
        return x;
    }
    if (name == "largest") return {k.largest(x.data(), n)};
    if (name == "exponentials") {  // more: (peak); the sum comes last
        check(n % PANEL == 0, "the length must be a multiple of 16");
        x.push_back(k.exponentials(x.data(), n, row(0)[0]));
        return x;
    }
    if (name == "add") {
        k.add(row(0), n, x.data());
        return x;
    }
    if (name == "blend") {  // more: a row, (share, keep)
        k.blend(row(0), n, row(1)[0], row(1)[1], x.data());
        return x;
    }
    return out;
}

using BytesInOut = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// `work` on ranges of rows, on all threads at once.
void on_rows(size_t rows, int threads, const std::function<void(Range)>& work) {
    Pool pool(threads);
    pool.run([&](int thread) {
        const Range mine = share(rows, thread, pool.size(), 16);
        if (mine.begin < mine.end) work(mine);
    });
}

QType float_type_of(const std::string& name) {
    const QType type = type_of(name);
    check(!is_integer(type), "F32, F16 or BF16 is expected");
    return type;
}

size_t size_of(QType type) { return type == QType::F32 ? 4 : 2; }

// Rows of F32, F16 or BF16 as bytes, packed into `out`; `importance` of each column, or none.
void quantize(const std::string& type, const std::string& source_type, Bytes2 source, BytesInOut out, int threads,
              const std::string& isa, std::optional<Floats1> importance) {
    const QType to = type_of(type), from = float_type_of(source_type);
    const size_t columns = source.shape(1) / size_of(from);
    check(is_integer(to), "a packed type is expected");
    check(source.shape(1) == columns * size_of(from) && columns % block_info(to).elements == 0, "rows are no whole blocks");
    check(out.shape(0) == source.shape(0) && out.shape(1) == row_bytes(to, columns), "the output has another shape");
    check(!importance || importance->size() == columns, "one importance for each column is needed");
    const Quantizer& q = quantizer(isa);
    std::atomic<bool> good{true};
    {
        nb::gil_scoped_release free;
        on_rows(source.shape(0), threads, [&](Range mine) {
            if (!q.pack(to, from, source.data() + mine.begin * source.shape(1), mine.end - mine.begin, columns,
                        importance ? importance->data() : nullptr, out.data() + mine.begin * out.shape(1)))
                good = false;
        });
    }
    check(good, "numbers that are not finite, or too large for the type, cannot be quantised");
}

// Rows of a packed type, unpacked into `out` as F32, F16 or BF16.
void unpack(const std::string& type, Bytes2 source, const std::string& out_type, BytesInOut out, int threads,
            const std::string& isa) {
    const QType from = type_of(type), to = float_type_of(out_type);
    const size_t columns = out.shape(1) / size_of(to);
    check(is_integer(from), "a packed type is expected");
    check(out.shape(1) == columns * size_of(to) && columns % block_info(from).elements == 0, "rows are no whole blocks");
    check(out.shape(0) == source.shape(0) && source.shape(1) == row_bytes(from, columns), "the output has another shape");
    const Quantizer& q = quantizer(isa);
    nb::gil_scoped_release free;
    on_rows(source.shape(0), threads, [&](Range mine) {
        q.unpack(from, to, source.data() + mine.begin * source.shape(1), mine.end - mine.begin, columns,
                 out.data() + mine.begin * out.shape(1));
    });
}

// A framework's tensors come as addresses, which geode/network/kernels_torch.py has checked.
struct Passes {
    const Trainer& trainer;
    Crew crew;
    Number type;

    static constexpr size_t NUMBERS = 1 << 15;  // in a part: enough to be worth a thread, few enough for its cache

    Passes(const std::string& isa, int threads, size_t parallel, bool is_bfloat16)
        : trainer(geode::trainer(isa)), crew{threads, parallel},
          type(is_bfloat16 ? Number::BFLOAT16 : Number::FLOAT32) {}

    static float* floats(size_t at) { return reinterpret_cast<float*>(at); }
    static void* any(size_t at) { return reinterpret_cast<void*>(at); }
    static size_t rows_of_part(size_t columns) { return std::max<size_t>(1, NUMBERS / std::max<size_t>(1, columns)); }

    template <class Args>
    void run(void (*pass)(const Args&, Range), const Args& args, size_t rows, size_t columns) const {
        nb::gil_scoped_release free;
        in_parts(crew, rows, rows_of_part(columns), [&](size_t, Range mine) { pass(args, mine); });
    }

    void softmax(size_t z, size_t rows, size_t columns, float cap, size_t most, size_t total, size_t shrink) const {
        const Softmax args{type, any(z), columns, cap, floats(most), floats(total), floats(shrink)};
        run(trainer.softmax, args, rows, columns);
    }
    void blend(size_t x, size_t rows, size_t columns, size_t keep, size_t to) const {
        run(trainer.blend, {type, any(x), columns, floats(keep), floats(to)}, rows, columns);
    }
    void rms_norm(size_t x, size_t rows, size_t columns, size_t weight, float eps, bool cast_first, size_t y,
                  size_t scale) const {
        const RmsNorm args{type, any(x), columns, floats(weight), eps, cast_first, any(y), floats(scale)};
        run(trainer.rms_norm, args, rows, columns);
    }
    // The weight's gradient is added up part by part, in the parts' order: the same bits with any number of threads.
    void rms_norm_back(size_t x, size_t dy, size_t rows, size_t columns, size_t weight, size_t scale, size_t dx,
                       size_t d_weight) const {
        const RmsNormBack args{type, any(x), any(dy), columns, floats(weight), floats(scale), any(dx)};
        const size_t part = rows_of_part(columns), parts = (rows + part - 1) / part;
        std::vector<float> sums(d_weight ? parts * columns : 0);
        nb::gil_scoped_release free;
        in_parts(crew, rows, part, [&](size_t index, Range mine) {
            trainer.rms_norm_back(args, mine, d_weight ? sums.data() + index * columns : nullptr);
        });
        for (size_t i = 0; i < sums.size(); i++) floats(d_weight)[i % columns] += sums[i];
    }
    void gate(int kind, size_t gate, size_t up, size_t count, size_t y) const {
        run(trainer.gate, {type, static_cast<Activation>(kind), any(gate), any(up), any(y)}, count, 1);
    }
    void gate_back(int kind, size_t gate, size_t up, size_t dy, size_t count, size_t dgate, size_t dup) const {
        const GateBack args{type, static_cast<Activation>(kind), any(gate), any(up), any(dy), any(dgate), any(dup)};
        run(trainer.gate_back, args, count, 1);
    }
    void turn(size_t x, size_t rows, size_t heads, size_t size, size_t pairs, size_t cos, size_t sin, bool back,
              size_t y) const {
        const Turn args{type, any(x), heads, size, pairs, floats(cos), floats(sin), back, any(y)};
        run(trainer.turn, args, rows, heads * size);
    }
};

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The kernels, the weights and the forward pass of geode.native";
    nb::exception<std::out_of_range>(m, "NoSuchWeight", PyExc_KeyError);

    nb::class_<Cache>(m, "Cache")
        .def(nb::new_(&make_cache))
        .def("page_bytes", &Cache::page_bytes)
        .def("read", &read_page)
        .def("write", &write_page)
        .def("pages", &Cache::pages);

    nb::class_<Adapter>(m, "Adapter", nb::is_weak_referenceable())
        .def(nb::init<const Model&>())
        .def("add", &add_pair)
        .def_prop_ro("changes_head", &Adapter::changes_head)
        .def_prop_ro("nbytes", &Adapter::nbytes);

    nb::class_<Model>(m, "Model")
        .def(nb::new_(&make_model))
        .def("load_matrix", &load_matrix)
        .def("load_vector", &load_vector)
        .def("forward", &forward, "cache"_a, "tokens"_a, "starts"_a, "past"_a, "tables"_a, "wanted"_a,
             "adapters"_a = nb::tuple())
        .def("observe", &observe, "cache"_a, "tokens"_a, "starts"_a, "past"_a, "tables"_a, "wanted"_a,
             "squares"_a = nb::none(), "residual"_a = nb::none())
        .def("head", &head, "hidden"_a, "adapters"_a = nb::tuple())
        .def("candidates", &candidates)
        .def("score", &score, "hidden"_a, "targets"_a, "real"_a, "adapters"_a = nb::tuple())
        .def("unpack", &row_of)
        .def("matrix_bytes", [](const Model& model, const std::string& name) { return model.nbytes(name); })
        .def_prop_ro("nbytes", [](const Model& model) { return model.nbytes(); })
        .def_prop_ro("fingerprint", &Model::fingerprint)
        .def_prop_ro("screens", &Model::screens)
        .def_prop_ro("head_bytes_read", &Model::head_bytes_read)
        .def_prop_ro("threads", [](Model& model) { return model.pool().size(); })
        .def_prop_ro("isa", [](const Model& model) { return model.kernels().isa; });

    nb::class_<Passes>(m, "Passes")
        .def(nb::init<const std::string&, int, size_t, bool>())
        .def("softmax", &Passes::softmax)
        .def("blend", &Passes::blend)
        .def("rms_norm", &Passes::rms_norm)
        .def("rms_norm_back", &Passes::rms_norm_back)
        .def("gate", &Passes::gate)
        .def("gate_back", &Passes::gate_back)
        .def("turn", &Passes::turn);

    m.def("isas", &supported_isas);
    m.def("usable_cores", &usable_cores);
    m.def("quantize", &quantize, "type"_a, "source_type"_a, "source"_a, "out"_a, "threads"_a, "isa"_a,
          "importance"_a = nb::none());
    m.def("unpack", &unpack);
    m.def(
        "read_bandwidth",
        [](int threads, const std::optional<std::string>& isa) {
            Pool pool(threads);
            return read_bandwidth(pool, kernels(isa ? isa->c_str() : nullptr));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "peak_flops",
        [](int threads, const std::optional<std::string>& isa, const std::string& type) {
            Pool pool(threads);
            return peak_flops(pool, kernels(isa ? isa->c_str() : nullptr), type_of(type));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def("matmul", &multiply);
    m.def("dequantize", &numbers);
    m.def("roundtrip", &roundtrip);
    m.def("elementwise", &elementwise);
}
