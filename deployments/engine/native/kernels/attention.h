// Attention of one sequence over its pages of the KV cache.
#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace tritext {

constexpr int PAGE = 16;          // tokens of a page
constexpr int LINE = 32;          // numbers of a cache line
constexpr int TILE_QUERIES = 12;  // query vectors that pass the keys together

// The keys and values of one sequence at one layer and key head. A page holds keys as [head_dim][PAGE], so that scores
// of 16 tokens need no horizontal sums, and values as [PAGE][head_dim].
struct Pages {
    half* cache;           // this layer's and head's keys in page 0
    const int32_t* pages;  // the sequence's
    size_t page_stride;    // from a page of the cache to the next
    int head_dim;

    half* keys(int page) const { return cache + size_t(pages[page]) * page_stride; }
    half* values(int page) const { return keys(page) + PAGE * head_dim; }

    // Begins to load pages from memory, keys and values.
    void fetch(int first, int end) const {
        for (int page = first; page < end; ++page)
            for (int i = 0; i < 2 * PAGE * head_dim; i += LINE) _mm_prefetch(keys(page) + i, _MM_HINT_T1);
    }
};

// What a thread will attend to next. It is fetched meanwhile, a page of it for each page that is read now: the cache is
// in memory, and pages lie apart, so that the processor cannot guess what comes.
struct Upcoming {
    Pages pages;
    int num_pages;

    const half* keys(int page) const { return pages.keys(std::min(page, num_pages - 1)); }
    const half* values(int page) const { return pages.values(std::min(page, num_pages - 1)); }
};

// The loops over M are unrolled by hand: left to itself, GCC 12 does it too late to keep the sums in registers.

// scores[m][t] of M query vectors q [head_dim][M] with the keys of N pages, from page `page` on.
template <int M, int N>
void score_pages(const Pages& pages, int page, const Upcoming& next, const float* q, float* scores, size_t stride) {
    const half *keys[N], *ahead[N];
    for (int i = 0; i < N; ++i) keys[i] = pages.keys(page + i), ahead[i] = next.keys(page + i);
    __m512 acc[M][N];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
        for (int i = 0; i < N; ++i) acc[m][i] = _mm512_setzero_ps();
    for (int d = 0; d < pages.head_dim; ++d, q += M) {
        __m512 k[N];
        for (int i = 0; i < N; ++i) k[i] = load_half(keys[i] + d * PAGE);
        if (d * PAGE % LINE == 0)
            for (int i = 0; i < N; ++i) _mm_prefetch(ahead[i] + d * PAGE, _MM_HINT_T1);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < N; ++i) add_product(acc[m][i], _mm512_set1_ps(q[m]), k[i]);
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
        for (int i = 0; i < N; ++i) _mm512_storeu_ps(scores + m * stride + (page + i) * PAGE, acc[m][i]);
}

// Turns the first `length` scores into exp(score - largest), the rest up to `padded` into 0; returns 1 / their sum.
inline float soften(float* scores, int length, int padded) {
    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (int t = 0; t < length; t += LANES)
        largest = _mm512_mask_max_ps(largest, first_lanes(length - t), largest, _mm512_loadu_ps(scores + t));
    largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (int t = 0; t < padded; t += LANES) {
        const __m512 e = _mm512_maskz_mov_ps(
            first_lanes(length - t), exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + t), largest)));
        _mm512_storeu_ps(scores + t, e);
        sum = _mm512_add_ps(sum, e);
    }
    return 1.0f / _mm512_reduce_add_ps(sum);
}

// out[m][:] = inverse[m] * sum over t of weights[m][t] * values[t], for M query vectors and V registers of the head.
template <int M, int V>
void mix_values(const Pages& pages, int length, int at, const Upcoming& next, const float* weights, size_t stride,
                const float* inverse, float* const* out) {
    __m512 acc[M][V];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < V; ++j) acc[m][j] = _mm512_setzero_ps();
    for (int start = 0; start < length; start += PAGE) {
        const half* values = pages.values(start / PAGE) + at;
        const half* ahead = next.values(start / PAGE) + at;
        const int count = std::min(PAGE, length - start);
        for (int t = 0; t < count; ++t) {
            __m512 v[V];
            for (int j = 0; j < V; ++j) v[j] = load_half(values + t * pages.head_dim + LANES * j);
            for (int j = 0; j < V; j += LINE / LANES)
                _mm_prefetch(ahead + t * pages.head_dim + LANES * j, _MM_HINT_T1);
#pragma GCC unroll 12
            for (int m = 0; m < M; ++m) {
                const __m512 w = _mm512_set1_ps(weights[m * stride + start + t]);
                for (int j = 0; j < V; ++j) add_product(acc[m][j], w, v[j]);
            }
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < V; ++j)
            _mm512_storeu_ps(out[m] + at + LANES * j, _mm512_mul_ps(acc[m][j], _mm512_set1_ps(inverse[m])));
}

// Attention of up to TILE_QUERIES query vectors of one sequence that share a key head. lengths: how many tokens each
// sees, in rising order. Looks at nothing behind a row's own position, so that the row's result is its own.
inline void attend(const Pages& pages, int count, const float* const* queries, const int* lengths, float* const* out,
                   const Upcoming& next, float* scratch) {
    const int head_dim = pages.head_dim, length = lengths[count - 1];
    const int num_pages = (length + PAGE - 1) / PAGE, padded = num_pages * PAGE;
    const size_t stride = padded + LANES;  // no power of two, so that the rows do not share cache sets
    float* q = scratch;  // [head_dim][count]
    float* scores = scratch + round_up(head_dim * TILE_QUERIES, LANES);
    for (int m = 0; m < count; ++m)
        for (int d = 0; d < head_dim; ++d) q[d * count + m] = queries[m][d];
    with_constant<TILE_QUERIES>(count, [&](auto M) {
        int page = 0;
        for (; page + 2 <= num_pages; page += 2) score_pages<M, 2>(pages, page, next, q, scores, stride);
        if (page < num_pages) score_pages<M, 1>(pages, page, next, q, scores, stride);
    });
    float inverse[TILE_QUERIES];
    for (int m = 0; m < count; ++m) inverse[m] = soften(scores + m * stride, lengths[m], padded);
    with_constant<TILE_QUERIES>(count, [&](auto M) {
        constexpr int most = M <= 6 ? 4 : 2;  // what 24 registers of sums allow
        for (int at = 0; at < head_dim; at += most * LANES)
            with_constant<most>(std::min(most, (head_dim - at) / LANES), [&](auto V) {
                mix_values<M, V>(pages, length, at, next, scores, stride, inverse, out);
            });
    });
    next.pages.fetch(num_pages, next.num_pages);
}

}  // namespace tritext
