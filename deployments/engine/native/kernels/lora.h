// What adapters add to a linear's output: y += (x A') B', each row with the adapter of its sequence.
//
// x is what the linear itself reads, quantised in groups. Every sum runs in an order of its own row alone: integers
// exactly, groups of x from first to last. A row without an adapter is not touched.
#pragma once

#include <cmath>

#include "linear.h"
#include "vectors.h"

namespace tritext {

constexpr int AHEAD_BYTES = 1536;  // how far ahead of its use an adapter is fetched from memory
constexpr int ADAPTED_ROWS = 4;    // rows with the same adapter that pass it together
constexpr int RANK_TILE = 8;       // ranks are padded with zeros up to a multiple
constexpr int MAX_RANK = 256;      // a multiple of RANK_TILE

// One linear's pair of one adapter, packed by native_adapter.py and declared again there.
// A: bytes plus 128 [ranks / 8][k / 8][8 ranks][8], scales [ranks / 8][k / GROUP][8].
// B: bytes plus 128 [n / GROUP][ranks / 4][GROUP][4 ranks], scales [ranks].
struct LowRank {
    const uint8_t* a;
    const float* a_scales;
    const uint8_t* b;
    const float* b_scales;
    int32_t ranks;  // 0: the linear stays as it is
};

// Four bytes, in each 32-bit lane.
inline __m512i four(const int8_t* bytes) {
    int32_t all;
    std::memcpy(&all, bytes, 4);
    return _mm512_set1_epi32(all);
}

// The linears of a layer that adapters change, in the order of `TARGETS` in native_adapter.py.
enum Target { LORA_Q, LORA_K, LORA_V, LORA_OUTPUT, LORA_GATE, LORA_UP, LORA_DOWN, LORA_TARGETS };

// h[m][0..ranks) = row `row + m` of x times A, for R rows.
template <int R>
void shrink(const LowRank& pair, const Activations& x, int row, float (*h)[MAX_RANK]) {
    const int groups = x.k / GROUP;
    const int8_t* values = x.values + size_t(row) * x.k;
    const float* scales = x.scales + size_t(row) * groups;
    const int32_t* offsets = x.offsets + size_t(row) * groups;
    const uint8_t* a = pair.a;
    const float* a_scales = pair.a_scales;
    for (int r = 0; r < pair.ranks; r += RANK_TILE) {
        __m256 total[R];
        for (int m = 0; m < R; ++m) total[m] = _mm256_setzero_ps();
        for (int g = 0; g < groups; ++g, a_scales += RANK_TILE) {
            // Two 32-bit sums for each rank: of the first and of the last four of eight values.
            __m512i acc[R][2];
            for (int m = 0; m < R; ++m) acc[m][0] = acc[m][1] = _mm512_setzero_si512();
            for (int i = 0; i < GROUP / 8; ++i, a += 64) {
                const __m512i bytes = _mm512_load_si512(a);
                _mm_prefetch(a + AHEAD_BYTES, _MM_HINT_T0);
                for (int m = 0; m < R; ++m) {
                    int64_t eight;
                    std::memcpy(&eight, values + size_t(m) * x.k + g * GROUP + 8 * i, 8);
                    dot(acc[m][i % 2], bytes, _mm512_set1_epi64(eight));
                }
            }
            const __m256 of_group = _mm256_loadu_ps(a_scales);
            for (int m = 0; m < R; ++m) {
                const __m512i sum = _mm512_add_epi32(acc[m][0], acc[m][1]);
                const __m256i of_ranks = _mm512_cvtepi64_epi32(_mm512_add_epi32(sum, _mm512_srli_epi64(sum, 32)));
                const int at = m * groups + g;
                const __m256 exact = _mm256_cvtepi32_ps(_mm256_add_epi32(of_ranks, _mm256_set1_epi32(offsets[at])));
                total[m] = _mm256_fmadd_ps(exact, _mm256_mul_ps(of_group, _mm256_set1_ps(scales[at])), total[m]);
            }
        }
        for (int m = 0; m < R; ++m) _mm256_storeu_ps(h[m] + r, total[m]);
    }
}

// h in 15 bits: h[r] * scales[r] = (128 * high[r] + low[r]) * scale, both parts signed bytes. The products of two bytes
// are then all that is needed, and h loses nothing that could be seen beside the eight bits of B.
struct Coefficients {
    alignas(64) int8_t high[MAX_RANK], low[MAX_RANK];
    float scale;
    int32_t minus_sum;  // 128 times this takes back that B's bytes are stored plus 128

    void set(const float* h, const float* scales, int ranks) {
        constexpr float largest_integer = 127 * 128;
        alignas(64) float scaled[MAX_RANK];
        __m512 most = _mm512_setzero_ps();
        for (int r = 0; r < ranks; r += LANES) {
            const __mmask16 mask = first_lanes(ranks - r);
            const __m512 product = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, h + r),
                                                 _mm512_maskz_loadu_ps(mask, scales + r));
            most = _mm512_max_ps(_mm512_abs_ps(product), most);
            _mm512_store_ps(scaled + r, product);
        }
        const float largest = _mm512_reduce_max_ps(most);
        const __m512 inverse = _mm512_set1_ps(largest > 1e-30f ? largest_integer / largest : 0.0f);
        __m512i sum = _mm512_setzero_si512();
        for (int r = 0; r < ranks; r += LANES) {
            const __m512i value = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(scaled + r), inverse));
            const __m512i rounded = _mm512_srai_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(64)), 7);
            const __m512i rest = _mm512_sub_epi32(value, _mm512_slli_epi32(rounded, 7));
            _mm_store_si128(reinterpret_cast<__m128i*>(high + r), _mm512_cvtepi32_epi8(rounded));
            _mm_store_si128(reinterpret_cast<__m128i*>(low + r), _mm512_cvtepi32_epi8(rest));
            sum = _mm512_add_epi32(sum, value);
        }
        scale = largest / largest_integer;
        minus_sum = int32_t(0u - uint32_t(_mm512_reduce_add_epi32(sum)));
    }
};

// y[m][0..n) = or += (add) h[m] times B, each column times its factor where there are factors, for R rows.
template <int R>
void expand(const LowRank& pair, const Coefficients* h, const float* factors, int n, bool add, float* y,
            size_t stride) {
    const int quads = pair.ranks / 4;
    const uint8_t* b = pair.b;
    for (int column = 0; column < n; column += GROUP, b += quads * 4 * GROUP) {
        for (int i = 0; i < GROUP / LANES; ++i) {
            const uint8_t* of_lanes = b + 4 * LANES * i;
            __m512i acc[R];
            for (int m = 0; m < R; ++m) acc[m] = _mm512_set1_epi32(h[m].minus_sum);
            for (int quad = 0; quad < quads; ++quad) {
                const __m512i bytes = _mm512_load_si512(of_lanes + quad * 4 * GROUP);
                _mm_prefetch(of_lanes + quad * 4 * GROUP + AHEAD_BYTES, _MM_HINT_T0);
                for (int m = 0; m < R; ++m) dot(acc[m], bytes, four(h[m].high + 4 * quad));
            }
            for (int m = 0; m < R; ++m) acc[m] = _mm512_slli_epi32(acc[m], 7);
            for (int quad = 0; quad < quads; ++quad) {
                const __m512i bytes = _mm512_load_si512(of_lanes + quad * 4 * GROUP);
                for (int m = 0; m < R; ++m) dot(acc[m], bytes, four(h[m].low + 4 * quad));
            }
            const int at = column + LANES * i;
            const __mmask16 mask = first_lanes(n - at);
            for (int m = 0; m < R; ++m) {
                float* to = y + m * stride + at;
                __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[m]), _mm512_set1_ps(h[m].scale));
                if (factors) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, factors + at));
                if (add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to));
                _mm512_mask_storeu_ps(to, mask, v);
            }
        }
    }
}

// y[m][0..n) += what the pair adds for row `row + m` of x; count: of rows, up to ADAPTED_ROWS.
inline void adapt(const LowRank& pair, const Activations& x, int row, int count, int n, float* y, size_t stride,
                  const float* factors = nullptr, bool add = true) {
    if (pair.ranks == 0) return;
    with_constant<ADAPTED_ROWS>(count, [&](auto R) {
        alignas(64) float h[R][MAX_RANK];
        Coefficients of_rows[R];
        shrink<R>(pair, x, row, h);
        for (int m = 0; m < R; ++m) of_rows[m].set(h[m], pair.b_scales, pair.ranks);
        expand<R>(pair, of_rows, factors, n, add, y, stride);
    });
}

}  // namespace tritext
