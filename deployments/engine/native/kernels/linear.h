// Linears with int8 weights and activations.
//
// A row of activations has a scale for each group of 64 values, and so has each column of weights:
//   y[n] = sum over groups g of (sum over k in g of x[k] w[k][n]) * (scale_x[g] * scale_w[g][n]).
// vpdpbusd multiplies unsigned with signed bytes, so weights are stored plus 128; -128 * (sum of x in g) takes it back.
#pragma once

#include <algorithm>

#include "team.h"
#include "vectors.h"

namespace tritext {

constexpr int GROUP = 64;     // values that share a scale
constexpr int COLUMNS = 48;   // columns of a weight block: three registers
constexpr int TILE_ROWS = 8;  // rows of activations that pass a weight block together: 24 registers of sums

// Rows of quantised activations: values [rows][k]; scales and offsets (-128 * sum of values) [rows][k / GROUP].
struct Activations {
    int8_t* values;
    float* scales;
    int32_t* offsets;
    int k;

    void quantize(int row, const float* x) const {
        for (int g = 0; g < k / GROUP; ++g, x += GROUP) {
            __m512 v[4];
            for (int i = 0; i < 4; ++i) v[i] = _mm512_loadu_ps(x + LANES * i);
            const __m512 a = _mm512_max_ps(_mm512_abs_ps(v[0]), _mm512_abs_ps(v[1]));
            const __m512 b = _mm512_max_ps(_mm512_abs_ps(v[2]), _mm512_abs_ps(v[3]));
            const float largest = _mm512_reduce_max_ps(_mm512_max_ps(a, b));
            const __m512 inverse = _mm512_set1_ps(largest > 0.0f ? 127.0f / largest : 0.0f);
            __m512i sum = _mm512_setzero_si512();
            int8_t* to = values + size_t(row) * k + g * GROUP;
            for (int i = 0; i < 4; ++i) {
                const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));
                sum = _mm512_add_epi32(sum, q);
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to + LANES * i), _mm512_cvtsepi32_epi8(q));
            }
            const size_t at = size_t(row) * (k / GROUP) + g;
            scales[at] = largest / 127.0f;
            offsets[at] = -128 * _mm512_reduce_add_epi32(sum);
        }
    }
};

// A weight matrix [k][n] in blocks of 48 columns; or two, gate and up, whose blocks stand in turn. A block holds its
// bytes as [k / 4][48][4], then its scales as bfloat16 [k / GROUP][48], and is padded to whole cache lines.
struct Linear {
    const uint8_t* weights;
    int k, n;
    int parts = 1;  // 2: gate and up

    int blocks() const { return (n + COLUMNS - 1) / COLUMNS; }
    const uint8_t* block(int index) const {
        const size_t bytes = size_t(k) * COLUMNS + size_t(k / GROUP) * COLUMNS * sizeof(uint16_t);
        return weights + (bytes + 63) / 64 * 64 * index;
    }
};

// acc += the four products of an unsigned and a signed byte, in each 32-bit lane. In assembly because GCC 12 moves the
// sums through memory around the intrinsic.
inline void dot(__m512i& acc, __m512i weights, __m512i values) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(values));
}

// out[r][:] = row `row + r` of x times one block of weights, for R rows. On the way it fetches what comes next from
// memory, from `ahead` on: `ahead_bytes` for each cache line of weights that it multiplies.
template <int R>
void multiply_tile(const Activations& x, int row, const uint8_t* block, const uint8_t* ahead, int ahead_bytes,
                   float (*out)[COLUMNS]) {
    const int k = x.k, groups = k / GROUP;
    const int8_t* values = x.values + size_t(row) * k;
    const float* scales = x.scales + size_t(row) * groups;
    const int32_t* offsets = x.offsets + size_t(row) * groups;
    const uint16_t* column_scales = reinterpret_cast<const uint16_t*>(block + size_t(k) * COLUMNS);
    __m512 total[R][3];
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < 3; ++j) total[r][j] = _mm512_setzero_ps();
    for (int g = 0; g < groups; ++g) {
        __m512i acc[R][3];
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < 3; ++j) acc[r][j] = _mm512_set1_epi32(offsets[r * groups + g]);
        for (int step = 0; step < GROUP / 4; ++step, block += 4 * COLUMNS, values += 4) {
            __m512i w[3];
            for (int j = 0; j < 3; ++j) {
                w[j] = _mm512_load_si512(block + 64 * j);
                _mm_prefetch(ahead, _MM_HINT_T1);
                ahead += ahead_bytes;
            }
            for (int r = 0; r < R; ++r) {
                int32_t four;
                std::memcpy(&four, values + size_t(r) * k, 4);
                const __m512i v = _mm512_set1_epi32(four);
                for (int j = 0; j < 3; ++j) dot(acc[r][j], w[j], v);
            }
        }
        __m512 s[3];
        for (int j = 0; j < 3; ++j) s[j] = load_bfloat(column_scales + g * COLUMNS + LANES * j);
        for (int r = 0; r < R; ++r) {
            const __m512 scale = _mm512_set1_ps(scales[r * groups + g]);
            for (int j = 0; j < 3; ++j)
                total[r][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][j]), _mm512_mul_ps(s[j], scale), total[r][j]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < 3; ++j) _mm512_store_ps(out[r] + LANES * j, total[r][j]);
}

// What becomes of a linear's result y: out = y, out += y, or out = silu(y) * y', with gate and up blocks in turn.
enum class Then { store, add, gate };

// A thread's blocks of columns of `rows` rows of x times the weights, into out [rows][stride]. next: the block of
// weights that the thread reads after these. added: for Then::gate, what adapters add, [n] to gate and [n] to up of each
// row; null for rows without an adapter, or for all.
inline void multiply(const Linear& linear, const Activations& x, int rows, Range blocks, Then then, float* out,
                     size_t stride, const uint8_t* next, const float* const* added = nullptr) {
    alignas(64) float y[TILE_ROWS][COLUMNS], gate[TILE_ROWS][COLUMNS];
    if (rows == 0) return;
    const bool gated = then == Then::gate;
    // Each tile of rows fetches an equal part of the next block, so that memory and arithmetic work at the same time.
    const int ahead_bytes = 64 / ((rows + TILE_ROWS - 1) / TILE_ROWS);
    for (int b = blocks.begin; b < blocks.end; ++b) {
        const uint8_t* block = linear.block(linear.parts * b);
        const uint8_t* up = linear.block(linear.parts * b + 1);
        const uint8_t* following = b + 1 < blocks.end ? linear.block(linear.parts * (b + 1)) : next;
        for (int i = 0; i < linear.k / GROUP * COLUMNS * 2; i += 64)
            _mm_prefetch(following + size_t(linear.k) * COLUMNS + i, _MM_HINT_T1);
        for (int row = 0; row < rows; row += TILE_ROWS) {
            const int count = std::min(TILE_ROWS, rows - row);
            const uint8_t* ahead = following + size_t(linear.k) * COLUMNS / 64 * ahead_bytes * (row / TILE_ROWS);
            with_constant<TILE_ROWS>(count, [&](auto R) {
                if (gated) {
                    multiply_tile<R>(x, row, block, ahead, ahead_bytes, gate);
                    multiply_tile<R>(x, row, up, ahead + (up - block), ahead_bytes, y);
                } else {
                    multiply_tile<R>(x, row, block, ahead, ahead_bytes, y);
                }
            });
            for (int r = 0; r < count; ++r) {
                for (int j = 0; j < COLUMNS && b * COLUMNS + j < linear.n; j += LANES) {
                    const __mmask16 mask = first_lanes(linear.n - b * COLUMNS - j);
                    float* to = out + size_t(row + r) * stride + b * COLUMNS + j;
                    __m512 v = _mm512_load_ps(y[r] + j);
                    if (then == Then::add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to));
                    if (then == Then::gate) {
                        __m512 g = _mm512_load_ps(gate[r] + j);
                        if (added && added[row + r]) {
                            const float* more = added[row + r] + b * COLUMNS + j;
                            g = _mm512_add_ps(g, _mm512_maskz_loadu_ps(mask, more));
                            v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, more + linear.n));
                        }
                        v = _mm512_mul_ps(silu(g), v);
                    }
                    _mm512_mask_storeu_ps(to, mask, v);
                }
            }
        }
    }
}

}  // namespace tritext
