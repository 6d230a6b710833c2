// A network's weights and its forward pass: many sequences of unequal length in one call.
//
// What a family is called, how text becomes ids and which token is chosen are not known here.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cache.h"
#include "kernels.h"
#include "layout.h"
#include "pool.h"

namespace geode {

enum class BlockKind { PRE, POST, SANDWICH, PARALLEL, PARALLEL_SHARED };
enum class NormKind { RMS, LAYER };
enum class QKNorm { NONE, SHARED, PER_HEAD, WHOLE };

// config.Config in numbers; 0 stands for None.
struct Spec {
    size_t vocab, width, depth, heads, kv_heads, head_dim, ffn;
    BlockKind block;
    NormKind norm;
    float eps;
    QKNorm qk_norm;
    Activation activation;
    bool gated;
    float scale, attn_softcap, final_softcap, clip_qkv, embedding_scale;
    bool tied;         // the embedding is the head
    bool screen_head;  // where it can be: see head.h

    size_t group() const { return heads / kv_heads; }
    // Columns of all that matrices of one layer are multiplied with: see Input.
    size_t inputs() const { return 2 * width + heads * head_dim + ffn; }
    bool is_parallel() const { return block == BlockKind::PARALLEL || block == BlockKind::PARALLEL_SHARED; }
};

// What matrices of a layer are multiplied with: q, k and v; gate and up; output; down. Side by side in Taps::squares.
enum class Input { ATTENTION, FEED_FORWARD, ATTENDED, HIDDEN };

struct Rope {
    std::vector<float> frequencies;
    float magnitude;
};

constexpr size_t LINEARS = 7;  // matrices of a layer: q, k, v, output, gate, up, down

struct Linear {
    Matrix weight;
    std::vector<float> bias;  // empty: none
    size_t number = 0;        // LINEARS for each layer, and then the head
};

struct Norm {
    bool present = false;
    std::vector<float> weight, bias;
};

struct Layer {
    Norm attn_norm, post_attention_norm, ffn_norm, post_ffw_norm;
    std::vector<float> q_norm, k_norm;
    Linear q, k, v, output, gate, up, down;
    int rope = 0;
};

class Adapter;  // see adapters.h
using Adapters = std::vector<const Adapter*>;

// A batch: rows of tokens, consecutive ones of each sequence together.
struct Batch {
    std::vector<int32_t> tokens;                 // (N,)
    std::vector<int32_t> starts;                 // (S + 1,): first row of each sequence, and N
    std::vector<int32_t> past;                   // (S,): tokens of the sequence before these
    std::vector<std::vector<int32_t>> tables;    // a group of layers: (S · width,) page numbers, -1 where released
    std::vector<int32_t> wanted;                 // (W,): rows whose hidden state is asked for
    Adapters adapters;                           // (S,), nullptr: none; or empty where no sequence has one

    size_t rows() const { return tokens.size(); }
    size_t sequences() const { return past.size(); }
    const int32_t* table(size_t group, size_t sequence) const {
        return tables[group].data() + sequence * (tables[group].size() / sequences());
    }
};

// What somebody sees of a forward besides its result; nothing by default. With it every row must be wanted, for the last
// layer goes on with wanted rows only.
struct Taps {
    double* squares = nullptr;  // (depth, Spec::inputs()): the squares of what matrices are multiplied with, summed over rows
    float* residual = nullptr;  // (depth + 1, rows, width): after the embedding, and after each block
};

struct Work;  // buffers of a forward
class ScreenedHead;
struct Need;
struct Found;

class Model {
public:
    // `layers`: what each sees, see cache.h; `rope_of`: which of `ropes` each turns by.
    Model(const Spec& spec, std::vector<Seen> layers, std::vector<int> rope_of, std::vector<Rope> ropes,
          const Kernels& kernels, int threads);
    ~Model();

    // The place of a vector by its canonical name; throws std::out_of_range, as do others that take a name.
    std::vector<float>& vector(const std::string& name) { return *vectors_.at(name); }

    // Fills a matrix from the rows of a file. `mapped`: they are pages of a file, which may be let go when read.
    void load(const std::string& name, QType type, size_t rows, size_t columns, const uint8_t* source, bool mapped);

    // Runs the batch through all layers, adding to the cache. out: (W, width), normed.
    void forward(const Batch& batch, Cache& cache, float* out, const Taps& taps = {});

    // Logits of hidden states: hidden (W, width) -> out (W, stride), stride a multiple of 16 and >= vocab. `adapters`:
    // of each hidden state, here and below; or none.
    void head(const float* hidden, size_t rows, float* out, size_t stride, const Adapters& adapters = {});

    // Of each hidden state the rows that are needed, see head.h; only where the model screens.
    std::vector<Found> candidates(const float* hidden, const std::vector<Need>& needs);
    bool screens() const;
    size_t head_bytes_read() const;  // by the last call of `candidates` or `head`; of the matrix, not of activations

    // For each hidden state the log-probability of its target, and whether it is the likeliest of the first `real` ids.
    void score(const float* hidden, const int32_t* targets, size_t rows, size_t real, double* logprobs, bool* greedy,
               const Adapters& adapters = {});

    const Spec& spec() const { return spec_; }
    const Kernels& kernels() const { return kernels_; }
    const std::vector<Seen>& seen() const { return seen_; }
    Pool& pool() { return pool_; }
    size_t nbytes() const;
    size_t nbytes(const std::string& name) const;
    uint64_t fingerprint() const;  // of all weights' bytes: tells models apart, but keeps no secret

    // The matrix of a canonical name that rows are multiplied with, and the shape of any: (rows, columns).
    const Linear& linear(const std::string& name) const { return *linears_.at(name); }
    std::pair<size_t, size_t> shape(const std::string& name) const;
    size_t serial() const { return serial_; }  // of no other model in this process

    // Rows of a matrix, and the bytes of one as its file had them.
    std::pair<size_t, size_t> packed_shape(const std::string& name) const;
    // One row of a matrix: its bytes as its file had them, or its numbers.
    void unpack(const std::string& name, size_t row, uint8_t* out) const;
    void embed(size_t token, float* out, std::vector<uint8_t>& scratch) const;
    std::mutex& busy() { return busy_; }

private:
    friend struct Work;
    void name_weights();
    const char* head_name() const { return spec_.tied ? "token_embd.weight" : "output.weight"; }
    bool is_screened(const std::string& name) const { return screens() && name == head_name(); }

    const size_t serial_;
    Spec spec_;
    std::vector<Seen> seen_;
    std::vector<Rope> ropes_;
    const Kernels& kernels_;
    Pool pool_;
    std::mutex busy_;
    Matrix token_embd_;
    Linear output_;
    Norm output_norm_;
    std::vector<Layer> layers_;
    std::map<std::string, Matrix*> matrices_;
    std::map<std::string, const Linear*> linears_;
    std::map<std::string, std::vector<float>*> vectors_;
    std::unique_ptr<ScreenedHead> screened_;  // instead of the matrix of `head_name`, or nothing
    std::unique_ptr<Work> work_;
};

}  // namespace geode
