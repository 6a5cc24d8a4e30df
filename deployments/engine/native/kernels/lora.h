// What adapters add to a linear's output, row by row: y += (x A') B', each row with the adapter of its sequence.
//
// x is what the linear itself reads, quantised in groups. Every sum runs in an order of its own row alone: integers
// exactly within a group, groups from first to last, ranks from first to last. A row without an adapter is not touched.
#pragma once

#include "linear.h"
#include "vectors.h"

namespace tritext {

constexpr int RANK_TILE = 8;   // ranks of A that stand side by side
constexpr int MAX_RANK = 256;  // a multiple of RANK_TILE

// One linear's pair of one adapter, packed by native_adapter.py and declared again there. Null: the linear stays as it
// is. A: bytes plus 128 [rank tiles][k / 8][8 ranks][8], scales [rank tiles][k / GROUP][8].
// B: signed bytes [n / GROUP][rank][GROUP], scales [n / GROUP][rank].
struct LowRank {
    const uint8_t* a;
    const float* a_scales;
    const int8_t* b;
    const float* b_scales;
    int32_t rank;
};

// The linears of a layer that adapters change, in the order of `TARGETS` in native_adapter.py.
enum Target { LORA_Q, LORA_K, LORA_V, LORA_OUTPUT, LORA_GATE, LORA_UP, LORA_DOWN, LORA_TARGETS };

// h[0..rank) = row `row` of x times A; writes whole tiles.
inline void shrink(const LowRank& pair, const Activations& x, int row, float* h) {
    const int groups = x.k / GROUP;
    const int8_t* values = x.values + size_t(row) * x.k;
    const float* scales = x.scales + size_t(row) * groups;
    const int32_t* offsets = x.offsets + size_t(row) * groups;
    const uint8_t* a = pair.a;
    const float* a_scales = pair.a_scales;
    for (int r = 0; r < pair.rank; r += RANK_TILE) {
        __m256 total = _mm256_setzero_ps();
        for (int g = 0; g < groups; ++g, a_scales += RANK_TILE) {
            // A 64-bit lane holds a rank's sums of two quarters of the bytes.
            __m512i acc[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
            for (int i = 0; i < GROUP / 8; ++i, a += 64) {
                int64_t eight;
                std::memcpy(&eight, values + g * GROUP + 8 * i, 8);
                _mm_prefetch(a + 1536, _MM_HINT_T0);
                dot(acc[i % 2], _mm512_load_si512(a), _mm512_set1_epi64(eight));
            }
            const __m512i sum = _mm512_add_epi32(acc[0], acc[1]);
            const __m256i of_ranks = _mm512_cvtepi64_epi32(_mm512_add_epi32(sum, _mm512_srli_epi64(sum, 32)));
            const __m256 exact = _mm256_cvtepi32_ps(_mm256_add_epi32(of_ranks, _mm256_set1_epi32(offsets[g])));
            const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(a_scales), _mm256_set1_ps(scales[g]));
            total = _mm256_fmadd_ps(exact, scale, total);
        }
        _mm256_storeu_ps(h + r, total);
    }
}

// y[0..n) += h times B.
inline void expand(const LowRank& pair, const float* h, int n, float* y) {
    const int8_t* b = pair.b;
    const float* scales = pair.b_scales;
    for (int column = 0; column < n; column += GROUP, scales += pair.rank) {
        __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int r = 0; r < pair.rank; ++r, b += GROUP) {
            const __m512 factor = _mm512_set1_ps(h[r] * scales[r]);
            _mm_prefetch(b + 1536, _MM_HINT_T0);
            for (int i = 0; i < 4; ++i) {
                const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + LANES * i));
                acc[i] = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), acc[i]);
            }
        }
        for (int i = 0; i < 4; ++i) {
            const __mmask16 mask = first_lanes(n - column - LANES * i);
            float* to = y + column + LANES * i;
            _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), acc[i]));
        }
    }
}

// y[0..n) += what the pair adds for row `row` of x.
inline void adapt(const LowRank& pair, const Activations& x, int row, int n, float* y) {
    if (pair.rank == 0) return;
    alignas(64) float h[MAX_RANK];
    shrink(pair, x, row, h);
    expand(pair, h, n, y);
}

}  // namespace tritext
