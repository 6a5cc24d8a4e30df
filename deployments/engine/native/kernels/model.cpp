// One step of a Llama-family model in int8 on a CPU with AVX-512 VNNI: a ragged batch over a paged fp16 KV cache.
//
// Exactness: a row's logits are the same bits alone, in any batch, in prompt pieces of any size and on any number of
// threads. Integer sums are exact in any order. Every floating-point sum runs in an order that depends on the row's own
// position only: groups of a linear from first to last, keys and values from the first position on. Products are fused
// into sums only where it is written (-ffp-contract=off), and work is shared between threads by whole outputs.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "lora.h"
#include "team.h"
#include "vectors.h"

namespace tritext {

constexpr int CHUNK_ROWS = 128;  // rows that pass a layer together: what they need fits the second-level cache

// The next three are declared again, field by field, in native_runner.py.
struct Shape {
    int32_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, block_size, threads;
    float epsilon;
};

struct LayerWeights {
    const float* attention_norm;  // [hidden, rounded up to a group]
    const uint8_t* qkv;           // hidden -> (heads + 2 * kv_heads) * head_dim
    const float* qkv_bias;        // or null
    const uint8_t* output;        // heads * head_dim -> hidden
    const float* mlp_norm;
    const uint8_t* gate_up;  // hidden -> intermediate, twice: gate and up blocks in turn
    const uint8_t* down;     // intermediate -> hidden
    const float *values_factor, *up_factor;  // smoothing by column, for what adapters add to values and up
};

struct Step {
    int32_t rows, sequences, logit_rows;
    const int32_t* tokens;        // [rows], sequence after sequence
    const int32_t* positions;     // [rows], rising by one within a sequence
    const int32_t* starts;        // [sequences + 1]: the first row of each
    const int32_t* tables;        // the blocks of all sequences, one after the other
    const int32_t* table_starts;  // [sequences]: where in `tables`
    const int32_t* logits_of;     // [logit_rows]: rows whose logits are wanted
    const LowRank* const* adapters;  // [sequences]: [layers][LORA_TARGETS] of each, or null; null if nobody has one
    half* cache;                  // [blocks][block_size / PAGE][layers][kv_heads] of keys and values
    float* logits;                // [logit_rows][vocabulary]
};

class Model {
   public:
    Model(const Shape& shape, const half* embedding, const float* frequencies, const float* norm, const uint8_t* head,
          const LayerWeights* layers)
        : shape_(shape), embedding_(embedding), frequencies_(frequencies), norm_(norm),
          layers_(layers, layers + shape.layers),
          hidden_(round_up(shape.hidden, GROUP)),
          attended_(round_up(shape.heads * shape.head_dim, GROUP)),
          intermediate_(round_up(shape.intermediate, GROUP)),
          qkv_((shape.heads + 2 * shape.kv_heads) * shape.head_dim),
          head_{head, hidden_, shape.vocabulary} {}

    void run(const Step& step) {
        prepare(step);
#pragma omp parallel num_threads(shape_.threads)
        {
#pragma omp single
            team_.start(omp_get_num_threads());
            run_thread(step, omp_get_thread_num());
        }
    }

   private:
    // Query vectors of one sequence that pass the keys of a head together: numbers begin..end of the vectors of
    // the rows from `row` on, heads / kv_heads of them a row.
    struct Tile {
        int sequence, row, begin, end;
    };

    struct Chunk {
        int begin, end;  // rows
        std::vector<Tile> tiles;
        bool has_logits;  // whether logits of some of its rows are wanted
    };

    Linear qkv(int layer) const { return {layers_[layer].qkv, hidden_, qkv_}; }
    Linear output(int layer) const { return {layers_[layer].output, attended_, shape_.hidden}; }
    Linear gate_up(int layer) const { return {layers_[layer].gate_up, hidden_, shape_.intermediate, 2}; }
    Linear down(int layer) const { return {layers_[layer].down, intermediate_, shape_.hidden}; }

    // Sizes the buffers and lists the attention's work; one thread.
    void prepare(const Step& step) {
        chunks_.clear();
        for (int row = 0; row < step.rows; row += CHUNK_ROWS)
            chunks_.push_back({row, std::min(row + CHUNK_ROWS, step.rows), {}, false});
        for (int i = 0; i < step.logit_rows; ++i) chunks_[step.logits_of[i] / CHUNK_ROWS].has_logits = true;
        owners_.resize(step.rows);
        pages_.clear();
        page_starts_.clear();
        int longest = 1;
        const int per_key_head = shape_.heads / shape_.kv_heads;
        for (int s = 0; s < step.sequences; ++s) {
            page_starts_.push_back(int(pages_.size()));
            const int pages_per_block = shape_.block_size / PAGE;
            for (int page = 0; page * PAGE <= step.positions[step.starts[s + 1] - 1]; ++page)
                pages_.push_back(step.tables[step.table_starts[s] + page / pages_per_block] * pages_per_block +
                                 page % pages_per_block);
            for (int row = step.starts[s]; row < step.starts[s + 1]; ++row) {
                owners_[row] = s;
                longest = std::max(longest, step.positions[row] + 1);
            }
            for (Chunk& chunk : chunks_) {
                const int row = std::max(chunk.begin, step.starts[s]);
                const int vectors = (std::min(chunk.end, step.starts[s + 1]) - row) * per_key_head;
                for (int v = 0; v < vectors; v += TILE_QUERIES)
                    chunk.tiles.push_back({s, row, v, std::min(v + TILE_QUERIES, vectors)});
            }
        }
        const size_t rows = std::max(std::min(step.rows, CHUNK_ROWS), step.logit_rows);
        const int widest = std::max({hidden_, attended_, intermediate_});
        x_ = buffers_[0].reserve(size_t(step.rows) * hidden_);
        turns_ = buffers_[1].reserve(size_t(step.rows) * shape_.head_dim);
        projected_ = buffers_[2].reserve(rows * qkv_);
        mixed_ = buffers_[3].reserve(rows * attended_);
        gated_ = buffers_[4].reserve(rows * intermediate_);
        values_ = bytes_.reserve(rows * widest);
        scales_ = buffers_[5].reserve(rows * (widest / GROUP));
        offsets_ = integers_.reserve(rows * (widest / GROUP));
        added_.assign(step.adapters ? rows : 0, nullptr);
        if (step.adapters) additions_.reserve(rows * 2 * shape_.intermediate);
        scratch_floats_ = round_up(
            TILE_QUERIES * (shape_.head_dim + round_up(longest, PAGE) + LANES) + LANES + hidden_, LANES);
        scratch_.reserve(scratch_floats_ * shape_.threads);
    }

    void run_thread(const Step& step, int thread) {
        const Range rows = share(step.rows, thread, team_.size());
        for (int row = rows.begin; row < rows.end; ++row) embed(step, row);
        team_.barrier();
        for (int layer = 0; layer < shape_.layers; ++layer)
            for (const Chunk& chunk : chunks_) run_layer(step, layer, chunk, thread);
        const Activations x{values_, scales_, offsets_, hidden_};
        const Range wanted = share(step.logit_rows, thread, team_.size());
        for (int i = wanted.begin; i < wanted.end; ++i) normalize(step.logits_of[i], norm_, x, i, scratch(thread));
        team_.barrier();
        multiply(head_, x, step.logit_rows, blocks(head_, thread), Then::store, step.logits, shape_.vocabulary,
                 first_block(shape_.layers ? qkv(0) : head_, thread));
    }

    // One layer over the rows of a chunk. The threads share the columns of linears and the rows of everything else.
    void run_layer(const Step& step, int index, const Chunk& chunk, int thread) {
        const LayerWeights& layer = layers_[index];
        const int count = chunk.end - chunk.begin;
        const Range rows = share(count, thread, team_.size());
        const Activations of_hidden{values_, scales_, offsets_, hidden_};
        const Activations of_attended{values_, scales_, offsets_, attended_};
        const Activations of_gated{values_, scales_, offsets_, intermediate_};
        float* x = x_ + size_t(chunk.begin) * hidden_;

        for (int row = rows.begin; row < rows.end; ++row)
            normalize(chunk.begin + row, layer.attention_norm, of_hidden, row, scratch(thread));
        team_.barrier();
        multiply(qkv(index), of_hidden, count, blocks(qkv(index), thread), Then::store, projected_, qkv_,
                 first_block(output(index), thread));
        team_.barrier();
        fetch_first(step, index, chunk, thread);
        adapt_qkv(step, index, chunk, rows, of_hidden);
        for (int row = rows.begin; row < rows.end; ++row) turn_and_keep(step, index, chunk.begin + row, row);
        team_.barrier();
        // Of a prompt's last layer only keys and values are wanted, but for the rows that get logits.
        if (index == shape_.layers - 1 && !chunk.has_logits) return;
        attend_tiles(step, index, chunk, thread);
        team_.barrier();
        for (int row = rows.begin; row < rows.end; ++row)
            of_attended.quantize(row, mixed_ + size_t(row) * attended_);
        adapt_residual(step, index, chunk, rows, LORA_OUTPUT, of_attended);
        team_.barrier();
        multiply(output(index), of_attended, count, blocks(output(index), thread), Then::add, x, hidden_,
                 first_block(gate_up(index), thread));
        team_.barrier();
        for (int row = rows.begin; row < rows.end; ++row)
            normalize(chunk.begin + row, layer.mlp_norm, of_hidden, row, scratch(thread));
        adapt_gate_up(step, index, chunk, rows, of_hidden);
        team_.barrier();
        multiply(gate_up(index), of_hidden, count, blocks(gate_up(index), thread), Then::gate, gated_, intermediate_,
                 first_block(down(index), thread), step.adapters ? added_.data() : nullptr);
        team_.barrier();
        for (int row = rows.begin; row < rows.end; ++row)
            of_gated.quantize(row, gated_ + size_t(row) * intermediate_);
        adapt_residual(step, index, chunk, rows, LORA_DOWN, of_gated);
        team_.barrier();
        multiply(down(index), of_gated, count, blocks(down(index), thread), Then::add, x, hidden_,
                 first_block(index + 1 < shape_.layers ? qkv(index + 1) : head_, thread));
        team_.barrier();
    }

    float* scratch(int thread) { return scratch_.reserve(0) + scratch_floats_ * thread; }
    Range blocks(const Linear& linear, int thread) const { return share(linear.blocks(), thread, team_.size()); }
    const uint8_t* first_block(const Linear& linear, int thread) const {
        return linear.block(blocks(linear, thread).begin * linear.parts);
    }

    // The row's token embedding, and the cosines and sines of its position.
    void embed(const Step& step, int row) {
        const half* from = embedding_ + size_t(step.tokens[row]) * hidden_;
        for (int j = 0; j < hidden_; j += LANES) _mm512_storeu_ps(x_ + size_t(row) * hidden_ + j, load_half(from + j));
        float* turn = turns_ + size_t(row) * shape_.head_dim;
        const int half_dim = shape_.head_dim / 2;
        for (int d = 0; d < half_dim; ++d) {
            const float angle = float(step.positions[row]) * frequencies_[d];
            turn[d] = std::cos(angle);
            turn[half_dim + d] = std::sin(angle);
        }
    }

    // Row `to` of the activations = the quantised root-mean-square norm of a row of x.
    void normalize(int row, const float* weight, const Activations& activations, int to, float* scratch) {
        const float* x = x_ + size_t(row) * hidden_;
        __m512 squares[4] = {};
        for (int j = 0; j < hidden_; j += 4 * LANES) {
            for (int i = 0; i < 4; ++i) {
                const __m512 v = _mm512_loadu_ps(x + j + LANES * i);
                squares[i] = _mm512_fmadd_ps(v, v, squares[i]);
            }
        }
        const __m512 sum = _mm512_add_ps(_mm512_add_ps(squares[0], squares[1]), _mm512_add_ps(squares[2], squares[3]));
        const float mean = _mm512_reduce_add_ps(sum) / float(shape_.hidden);
        const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(mean + shape_.epsilon));
        for (int j = 0; j < hidden_; j += LANES)
            _mm512_storeu_ps(scratch + j, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + j), factor),
                                                        _mm512_loadu_ps(weight + j)));
        activations.quantize(to, scratch);
    }

    Pages pages(const Step& step, int sequence, int layer, int head) const {
        const size_t head_size = 2 * size_t(PAGE) * shape_.head_dim;
        return {step.cache + (size_t(layer) * shape_.kv_heads + head) * head_size,
                pages_.data() + page_starts_[sequence], size_t(shape_.layers) * shape_.kv_heads * head_size,
                shape_.head_dim};
    }

    // Adds the bias, rotates a row's queries and keys by its position, and writes keys and values to the cache.
    void turn_and_keep(const Step& step, int layer, int row, int row_in_chunk) {
        const int head_dim = shape_.head_dim, half_dim = head_dim / 2, position = step.positions[row];
        float* projected = projected_ + size_t(row_in_chunk) * qkv_;
        if (const float* bias = layers_[layer].qkv_bias)
            for (int j = 0; j < qkv_; ++j) projected[j] += bias[j];
        const float* cosine = turns_ + size_t(row) * head_dim;
        const float* sine = cosine + half_dim;
        const float scale = 1.0f / std::sqrt(float(head_dim));
        for (int head = 0; head < shape_.heads + shape_.kv_heads; ++head) {
            float* a = projected + head * head_dim;
            float* b = a + half_dim;
            const float factor = head < shape_.heads ? scale : 1.0f;
            for (int d = 0; d < half_dim; ++d) {
                const float u = a[d], v = b[d];
                a[d] = (u * cosine[d] - v * sine[d]) * factor;
                b[d] = (v * cosine[d] + u * sine[d]) * factor;
            }
        }
        const int page = position / PAGE, slot = position % PAGE;
        for (int head = 0; head < shape_.kv_heads; ++head) {
            const Pages of_head = pages(step, owners_[row], layer, head);
            const float* key = projected + (shape_.heads + head) * head_dim;
            const float* value = key + shape_.kv_heads * head_dim;
            half* keys = of_head.keys(page) + slot;
            half* values = of_head.values(page) + slot * head_dim;
            for (int d = 0; d < head_dim; d += LANES) {
                alignas(32) half turned[LANES];
                store_half(turned, _mm512_loadu_ps(key + d));
                for (int i = 0; i < LANES; ++i) keys[(d + i) * PAGE] = turned[i];
                store_half(values + d, _mm512_loadu_ps(value + d));
            }
        }
    }

    // The pairs of a row's adapter at a layer, by target; null if its sequence has none.
    const LowRank* pairs(const Step& step, int layer, int row) const {
        const LowRank* adapter = step.adapters ? step.adapters[owners_[row]] : nullptr;
        return adapter ? adapter + size_t(layer) * LORA_TARGETS : nullptr;
    }

    // Calls f with the pairs, the first row and the number of rows in turn that have the same adapter, within the chunk.
    template <typename F>
    void with_adapters(const Step& step, int layer, const Chunk& chunk, Range rows, F f) const {
        if (!step.adapters) return;
        for (int row = rows.begin, next; row < rows.end; row = next) {
            const LowRank* of_row = pairs(step, layer, chunk.begin + row);
            next = row + 1;
            while (next < std::min(rows.end, row + ADAPTED_ROWS) && pairs(step, layer, chunk.begin + next) == of_row)
                ++next;
            if (of_row) f(of_row, row, next - row);
        }
    }

    void adapt_qkv(const Step& step, int layer, const Chunk& chunk, Range rows, const Activations& x) {
        const int queries = shape_.heads * shape_.head_dim, keys = shape_.kv_heads * shape_.head_dim;
        const float* factors = layers_[layer].values_factor;
        with_adapters(step, layer, chunk, rows, [&](const LowRank* of_rows, int row, int count) {
            float* projected = projected_ + size_t(row) * qkv_;
            adapt(of_rows[LORA_Q], x, row, count, queries, projected, qkv_);
            adapt(of_rows[LORA_K], x, row, count, keys, projected + queries, qkv_);
            adapt(of_rows[LORA_V], x, row, count, keys, projected + queries + keys, qkv_, factors);
        });
    }

    // For the linears whose result is added to the row of x_: that of the adapter before it.
    void adapt_residual(const Step& step, int layer, const Chunk& chunk, Range rows, Target target,
                        const Activations& x) {
        with_adapters(step, layer, chunk, rows, [&](const LowRank* of_rows, int row, int count) {
            float* residual = x_ + size_t(chunk.begin + row) * hidden_;
            adapt(of_rows[target], x, row, count, shape_.hidden, residual, hidden_);
        });
    }

    // What adapters add to gate and up, put by for their multiplication.
    void adapt_gate_up(const Step& step, int layer, const Chunk& chunk, Range rows, const Activations& x) {
        const int n = shape_.intermediate;
        if (step.adapters) std::fill(added_.begin() + rows.begin, added_.begin() + rows.end, nullptr);
        with_adapters(step, layer, chunk, rows, [&](const LowRank* of_rows, int row, int count) {
            if (of_rows[LORA_GATE].ranks + of_rows[LORA_UP].ranks == 0) return;
            float* additions = additions_.reserve(0) + size_t(row) * 2 * n;
            for (int m = 0; m < count; ++m) {
                added_[row + m] = additions + size_t(m) * 2 * n;
                if (of_rows[LORA_GATE].ranks == 0) std::fill_n(additions + size_t(m) * 2 * n, n, 0.0f);
                if (of_rows[LORA_UP].ranks == 0) std::fill_n(additions + size_t(m) * 2 * n + n, n, 0.0f);
            }
            adapt(of_rows[LORA_GATE], x, row, count, n, additions, 2 * n, nullptr, false);
            adapt(of_rows[LORA_UP], x, row, count, n, additions + n, 2 * n, layers_[layer].up_factor, false);
        });
    }

    // A tile and a key head, by the number of the unit of work. The longest first: they come last in a prompt.
    std::pair<const Tile&, int> unit_of(const Chunk& chunk, int unit) const {
        return {chunk.tiles[chunk.tiles.size() - 1 - unit / shape_.kv_heads], unit % shape_.kv_heads};
    }

    Upcoming upcoming(const Step& step, int layer, const Chunk& chunk, int unit) const {
        const auto [tile, key_head] = unit_of(chunk, unit);
        const int last_row = tile.row + (tile.end - 1) / (shape_.heads / shape_.kv_heads);
        return {pages(step, tile.sequence, layer, key_head), step.positions[last_row] / PAGE + 1};
    }

    // Begins to load what the thread will attend to first.
    void fetch_first(const Step& step, int layer, const Chunk& chunk, int thread) const {
        if (thread >= int(chunk.tiles.size()) * shape_.kv_heads) return;
        const Upcoming first = upcoming(step, layer, chunk, thread);
        first.pages.fetch(0, first.num_pages);
    }

    // A thread's part of the attention: a first unit of work of its own, then whichever is next.
    void attend_tiles(const Step& step, int layer, const Chunk& chunk, int thread) {
        const int work = int(chunk.tiles.size()) * shape_.kv_heads;
        for (int unit = thread, next; unit < work; unit = next) {
            next = team_.size() + team_.claim();
            attend_tile(step, layer, chunk, unit, upcoming(step, layer, chunk, next < work ? next : unit),
                        scratch(thread));
        }
    }

    void attend_tile(const Step& step, int layer, const Chunk& chunk, int unit, const Upcoming& next, float* scratch) {
        const auto [tile, key_head] = unit_of(chunk, unit);
        const int per_key_head = shape_.heads / shape_.kv_heads, count = tile.end - tile.begin;
        const float* queries[TILE_QUERIES];
        float* out[TILE_QUERIES];
        int lengths[TILE_QUERIES];
        for (int m = 0; m < count; ++m) {
            const int row = tile.row + (tile.begin + m) / per_key_head;
            const int head = key_head * per_key_head + (tile.begin + m) % per_key_head;
            queries[m] = projected_ + size_t(row - chunk.begin) * qkv_ + head * shape_.head_dim;
            out[m] = mixed_ + size_t(row - chunk.begin) * attended_ + head * shape_.head_dim;
            lengths[m] = step.positions[row] + 1;
        }
        attend(pages(step, tile.sequence, layer, key_head), count, queries, lengths, out, next, scratch);
    }

    const Shape shape_;
    const half* embedding_;
    const float *frequencies_, *norm_;
    const std::vector<LayerWeights> layers_;
    const int hidden_, attended_, intermediate_, qkv_;  // widths, rounded up to a group where they are quantised
    const Linear head_;
    Team team_;
    Buffer<float> buffers_[6], scratch_;
    Buffer<int8_t> bytes_;
    Buffer<int32_t> integers_;
    float *x_, *projected_, *mixed_, *gated_, *turns_, *scales_;  // [rows] of each
    int8_t* values_;
    int32_t* offsets_;
    size_t scratch_floats_ = 0;
    std::vector<Chunk> chunks_;
    std::vector<int> owners_;           // the sequence of each row
    std::vector<int32_t> pages_;        // of all sequences, one after the other
    std::vector<int> page_starts_;      // of each sequence: where in `pages_`
    std::vector<const float*> added_;   // what a row's adapter adds to gate and up, in additions_; or null
    Buffer<float> additions_;           // [rows][2 * intermediate]
};

}  // namespace tritext

using namespace tritext;

extern "C" {

void* tritext_create(const Shape* shape, const half* embedding, const float* frequencies, const float* norm,
                     const uint8_t* head, const LayerWeights* layers) {
    return new (std::nothrow) Model(*shape, embedding, frequencies, norm, head, layers);
}

void tritext_destroy(void* model) { delete static_cast<Model*>(model); }

// Returns 0, or 1 when memory ran out.
int tritext_run(void* model, const Step* step) try {
    static_cast<Model*>(model)->run(*step);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
}
