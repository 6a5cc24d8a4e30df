// What adapters add to a linear's output, row by row: y += (x A') B', each row with the adapter of its sequence.
//
// x is what the linear itself reads, quantised in groups. Every sum runs in an order of its own row alone: integers
// exactly, groups of x from first to last. A row without an adapter is not touched.
#pragma once

#include <cmath>

#include "linear.h"
#include "vectors.h"

namespace tritext {

constexpr int AHEAD_BYTES = 1536;  // how far ahead of its use an adapter is fetched from memory
constexpr int RANK_TILE = 8;   // ranks are padded with zeros up to a multiple
constexpr int MAX_RANK = 256;  // a multiple of RANK_TILE

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

// The linears of a layer that adapters change, in the order of `TARGETS` in native_adapter.py.
enum Target { LORA_Q, LORA_K, LORA_V, LORA_OUTPUT, LORA_GATE, LORA_UP, LORA_DOWN, LORA_TARGETS };

// h[0..ranks) = row `row` of x times A.
inline void shrink(const LowRank& pair, const Activations& x, int row, float* h) {
    const int groups = x.k / GROUP;
    const int8_t* values = x.values + size_t(row) * x.k;
    const float* scales = x.scales + size_t(row) * groups;
    const int32_t* offsets = x.offsets + size_t(row) * groups;
    const uint8_t* a = pair.a;
    const float* a_scales = pair.a_scales;
    for (int r = 0; r < pair.ranks; r += RANK_TILE) {
        __m256 total = _mm256_setzero_ps();
        for (int g = 0; g < groups; ++g, a_scales += RANK_TILE) {
            // Two 32-bit sums for each rank: of the first and of the last four of eight values.
            __m512i acc[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
            for (int i = 0; i < GROUP / 8; ++i, a += 64) {
                int64_t eight;
                std::memcpy(&eight, values + g * GROUP + 8 * i, 8);
                _mm_prefetch(a + AHEAD_BYTES, _MM_HINT_T0);
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

// h in 15 bits: h[r] * scales[r] = (128 * high[r] + low[r]) * scale, both parts signed bytes. The products of two bytes
// are then all that is needed, and h loses nothing that could be seen beside the eight bits of B.
struct Coefficients {
    alignas(64) int8_t high[MAX_RANK], low[MAX_RANK];
    float scale;
    int32_t offset;  // -128 * the sum, for B's bytes are stored plus 128

    Coefficients(const float* h, const float* scales, int ranks) {
        constexpr float largest_integer = 127 * 128;
        float scaled[MAX_RANK], largest = 0.0f;
        for (int r = 0; r < ranks; ++r) {
            scaled[r] = h[r] * scales[r];
            largest = std::max(largest, std::abs(scaled[r]));
        }
        const float inverse = largest > 1e-30f ? largest_integer / largest : 0.0f;
        uint32_t sum = 0;
        for (int r = 0; r < ranks; ++r) {
            const int32_t value = _mm_cvtss_si32(_mm_set_ss(scaled[r] * inverse));
            high[r] = int8_t((value + 64) >> 7);
            low[r] = int8_t(value - 128 * high[r]);
            sum += uint32_t(value);
        }
        scale = largest / largest_integer;
        offset = int32_t(0u - 128u * sum);
    }
};

// y[0..n) = or += (add) h times B, each column times its factor where there are factors.
inline void expand(const LowRank& pair, const Coefficients& h, const float* factors, int n, bool add, float* y) {
    const uint8_t* b = pair.b;
    const __m512 scale = _mm512_set1_ps(h.scale);
    for (int column = 0; column < n; column += GROUP) {
        __m512i high[4], low[4];
        for (int i = 0; i < 4; ++i) high[i] = _mm512_setzero_si512(), low[i] = _mm512_set1_epi32(h.offset);
        for (int r = 0; r < pair.ranks; r += 4, b += 4 * GROUP) {
            int32_t four_high, four_low;
            std::memcpy(&four_high, h.high + r, 4);
            std::memcpy(&four_low, h.low + r, 4);
            for (int i = 0; i < 4; ++i) {
                const __m512i bytes = _mm512_load_si512(b + 64 * i);
                _mm_prefetch(b + 64 * i + AHEAD_BYTES, _MM_HINT_T0);
                dot(high[i], bytes, _mm512_set1_epi32(four_high));
                dot(low[i], bytes, _mm512_set1_epi32(four_low));
            }
        }
        for (int i = 0; i < 4; ++i) {
            const int at = column + LANES * i;
            const __mmask16 mask = first_lanes(n - at);
            const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[i], 7), low[i]);
            __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
            if (factors) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, factors + at));
            if (add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, y + at));
            _mm512_mask_storeu_ps(y + at, mask, v);
        }
    }
}

// y[0..n) += what the pair adds for row `row` of x.
inline void adapt(const LowRank& pair, const Activations& x, int row, int n, float* y, const float* factors = nullptr,
                  bool add = true) {
    if (pair.ranks == 0) return;
    alignas(64) float h[MAX_RANK];
    shrink(pair, x, row, h);
    expand(pair, Coefficients(h, pair.b_scales, pair.ranks), factors, n, add, y);
}

}  // namespace tritext
