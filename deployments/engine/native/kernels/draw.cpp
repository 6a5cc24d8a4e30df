// Draws tokens from rows of logits: temperature, top_k, top_p and min_p, without sorting a vocabulary.
//
// A draw inverts the cumulative distribution of the tokens that are kept, in the order of the vocabulary, at one
// uniform number. Only tokens that reach a bound are looked at closely; the bound is lowered if they are not enough.
// A row's token does not depend on the rows beside it, nor on the number of threads.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

using namespace tritext;

// Declared again, field by field, in native_draw.py.
struct Draw {
    double uniform, top_p;  // uniform in [0, 1)
    float temperature, min_p;
    int32_t top_k;  // 0: all
    int32_t row;    // of the logits
};

namespace {

constexpr int BLOCK = 256;             // tokens whose mass is kept as one sum
constexpr int FEW = 8;                // rows that are done before another thread is awake
constexpr double FIRST_BOUND = 1e-4;  // of the mass: leaves at most ten thousand tokens, and mostly some hundred

struct Candidate {
    float weight;
    int32_t token;
};

// What a thread keeps from row to row: its memory.
struct Workspace {
    Buffer<float> weights;
    std::vector<double> sums;  // of each block of weights
    std::vector<Candidate> candidates;
    std::vector<uint64_t> order;
};

// weights = e^((logits - maximum) / temperature), 0 below `floor`; returns their sum.
double weigh(const float* logits, int size, float maximum, float temperature, float floor, Workspace& space) {
    float* weights = space.weights.reserve(round_up(size, BLOCK));
    space.sums.clear();
    const __m512 largest = _mm512_set1_ps(maximum), least = _mm512_set1_ps(floor);
    const __m512 inverse = _mm512_set1_ps(1.0f / std::max(temperature, 1.17549435e-38f));
    double total = 0.0;
    for (int start = 0; start < size; start += BLOCK) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = start; i < std::min(start + BLOCK, size); i += LANES) {
            const __mmask16 valid = first_lanes(size - i);
            const __m512 below = _mm512_sub_ps(_mm512_maskz_loadu_ps(valid, logits + i), largest);
            const __m512 weight = exponential(_mm512_mul_ps(below, inverse));
            const __mmask16 kept = _mm512_mask_cmp_ps_mask(valid, weight, least, _CMP_GE_OQ);
            _mm512_storeu_ps(weights + i, _mm512_maskz_mov_ps(kept, weight));
            sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(kept, weight));
        }
        space.sums.push_back(_mm512_reduce_add_ps(sum));
        total += space.sums.back();
    }
    return total;
}

// The token at which the mass of the weights, in the order of the vocabulary, passes `target`.
int draw_from_all(double target, int size, const Workspace& space, const float* weights) {
    double mass = 0.0;
    size_t block = 0;
    while (block + 1 < space.sums.size() && mass + space.sums[block] <= target) mass += space.sums[block++];
    for (int i = int(block) * BLOCK; i < size; ++i) {
        mass += weights[i];
        if (mass > target && weights[i] > 0.0f) return i;
    }
    // Rounding left less than the target: the last token that can be drawn.
    int last = size - 1;
    while (last > 0 && weights[last] == 0.0f) --last;
    return last;
}

// The tokens with at least this weight, in the order of the vocabulary; returns their mass.
double gather(float bound, int size, const float* weights, std::vector<Candidate>& candidates) {
    candidates.clear();
    const __m512 least = _mm512_set1_ps(bound);
    double mass = 0.0;
    for (int i = 0; i < size; i += LANES) {
        unsigned mask = _mm512_mask_cmp_ps_mask(first_lanes(size - i), _mm512_loadu_ps(weights + i), least, _CMP_GE_OQ);
        for (; mask; mask &= mask - 1) {
            const int token = i + __builtin_ctz(mask);
            if (weights[token] > 0.0f) {
                candidates.push_back({weights[token], token});
                mass += weights[token];
            }
        }
    }
    return mass;
}

// Draws among the candidates that top_k, top_p and the floor keep. `total` is the mass of all tokens.
int draw_from(const Draw& draw, double total, float floor, Workspace& space) {
    std::vector<Candidate>& candidates = space.candidates;
    // Positive floats order as their bits do: heaviest first, then the order of the vocabulary.
    space.order.clear();
    for (size_t i = 0; i < candidates.size(); ++i) {
        uint32_t bits;
        std::memcpy(&bits, &candidates[i].weight, 4);
        space.order.push_back(uint64_t(~bits) << 32 | i);
    }
    std::sort(space.order.begin(), space.order.end());
    const auto ranked = [&](size_t rank) -> Candidate& { return candidates[uint32_t(space.order[rank])]; };

    size_t count = candidates.size();
    if (draw.top_k > 0 && size_t(draw.top_k) < count) {
        const float least = ranked(draw.top_k - 1).weight;  // equal ones are kept
        for (count = draw.top_k; count < candidates.size() && ranked(count).weight >= least;) ++count;
    }
    if (draw.top_k > 0) {
        total = 0.0;
        for (size_t rank = 0; rank < count; ++rank) total += ranked(rank).weight;
    }
    const double limit = draw.top_p < 1.0 ? draw.top_p * total : INFINITY;
    double before = 0.0;
    for (size_t rank = 0; rank < candidates.size(); ++rank) {
        Candidate& candidate = ranked(rank);
        const bool kept = rank < count && (rank == 0 || before < limit) && (rank == 0 || candidate.weight >= floor);
        before += candidate.weight;
        if (!kept) candidate.weight = 0.0f;
    }
    double mass = 0.0;
    for (const Candidate& candidate : candidates) mass += candidate.weight;
    const double target = draw.uniform * mass;
    int last = candidates[0].token;
    mass = 0.0;
    for (const Candidate& candidate : candidates) {
        if (candidate.weight == 0.0f) continue;
        last = candidate.token;
        mass += candidate.weight;
        if (mass > target) break;
    }
    return last;
}

int draw_token(const Draw& draw, const float* logits, int size, float maximum, Workspace& space) {
    const bool truncated = draw.top_k > 0 || draw.top_p < 1.0;
    // The largest weight is 1, so that min_p is a weight itself. With top_p the mass counts before min_p cuts.
    const double total = weigh(logits, size, maximum, draw.temperature, truncated ? 0.0f : draw.min_p, space);
    const float* weights = space.weights.reserve(0);
    if (!truncated) return draw_from_all(draw.uniform * total, size, space, weights);
    double mass = gather(float(FIRST_BOUND * total), size, weights, space.candidates);
    const bool enough = draw.top_k > 0 ? space.candidates.size() >= size_t(draw.top_k) : mass >= draw.top_p * total;
    if (!enough) {
        // All tokens below this bound together have less mass than top_p leaves out.
        const double bound = draw.top_k > 0 ? 0.0 : (1.0 - draw.top_p) * total / (2.0 * size);
        gather(float(bound), size, weights, space.candidates);
    }
    return draw_from(draw, total, draw.min_p, space);
}

// The largest value of a row, NaN where it holds one, and its first index.
void find_maximum(const float* row, int size, float* maximum, int64_t* index) {
    __m512 largest = _mm512_set1_ps(-INFINITY);
    __mmask16 broken = 0;
    for (int i = 0; i < size; i += LANES) {
        const __mmask16 valid = first_lanes(size - i);
        const __m512 v = _mm512_mask_loadu_ps(largest, valid, row + i);
        broken |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        largest = _mm512_max_ps(largest, v);
    }
    *maximum = broken ? NAN : _mm512_reduce_max_ps(largest);
    *index = 0;
    if (broken) return;
    const __m512 wanted = _mm512_set1_ps(*maximum);
    for (int i = 0; i < size; i += LANES) {
        const __mmask16 valid = first_lanes(size - i);
        const __m512 v = _mm512_maskz_loadu_ps(valid, row + i);
        const __mmask16 found = _mm512_mask_cmp_ps_mask(valid, v, wanted, _CMP_EQ_OQ);
        if (found) {
            *index = i + __builtin_ctz(found);
            return;
        }
    }
}

}  // namespace

extern "C" {

// The largest value and its first index for each of `rows` rows of logits [rows][size].
void tritext_maxima(const float* logits, int rows, int size, float* maxima, int64_t* indices, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (rows >= FEW)
    for (int row = 0; row < rows; ++row) find_maximum(logits + size_t(row) * size, size, maxima + row, indices + row);
}

// A token for each of `count` draws. maxima: of each row of the logits, finite where it is drawn from.
void tritext_draw(const float* logits, int size, const float* maxima, const Draw* draws, int count, int64_t* tokens,
                  int threads) {
#pragma omp parallel num_threads(threads) if (count >= FEW)
    {
        Workspace space;
#pragma omp for schedule(dynamic)
        for (int i = 0; i < count; ++i)
            tokens[i] = draw_token(draws[i], logits + size_t(draws[i].row) * size, size, maxima[draws[i].row], space);
    }
}
}
