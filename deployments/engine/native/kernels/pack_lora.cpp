// Packs the pairs of an adapter as lora.h reads them: int8, a scale for each group of a row of A and each rank of B.

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "lora.h"

using namespace tritext;

// One pair as it was trained, in float32, and where it goes. Declared again in native_adapter.py.
struct PairToPack {
    const float* a;          // [rank][k]
    const float* smoothing;  // [k]: what each input of A was divided by
    const float* b;          // [n][rank]
    int32_t rank, k, n;
    // Filled up to whole tiles and groups with what counts as zero.
    uint8_t* packed_a;
    float* a_scales;
    uint8_t* packed_b;
    float* b_scales;
};

namespace {

constexpr float LARGEST = 127.0f;
constexpr int ZERO = 128;  // stands for 0: bytes are stored plus 128

inline __m512 absolute(__m512 x) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), x); }

inline __m512 divisor(__m512 scales) { return _mm512_max_ps(scales, _mm512_set1_ps(FLT_MIN)); }

// 16 bytes of values / divisors, rounded to the nearest, plus 128.
inline __m128i quantized(__m512 values, __m512 divisors) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_div_ps(values, divisors));
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, _mm512_set1_epi32(ZERO)));
}

// False where a scale is no finite number.
bool pack_a(const PairToPack& pair) {
    const int groups = round_up(pair.k, GROUP) / GROUP;
    bool is_finite = true;
    for (int rank = 0; rank < round_up(pair.rank, RANK_TILE); ++rank) {
        const size_t tile = size_t(rank / RANK_TILE) * groups;
        for (int g = 0; g < groups; ++g) {
            __m512 values[GROUP / LANES], largest = _mm512_setzero_ps();
            for (int i = 0; i < GROUP / LANES; ++i) {
                const int at = g * GROUP + LANES * i;
                const __mmask16 mask = rank < pair.rank ? first_lanes(pair.k - at) : __mmask16(0);
                values[i] = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, pair.a + size_t(rank) * pair.k + at),
                                          _mm512_maskz_loadu_ps(mask, pair.smoothing + at));
                largest = _mm512_max_ps(largest, absolute(values[i]));
            }
            const float scale = _mm512_reduce_max_ps(largest) / LARGEST;
            is_finite = is_finite && std::isfinite(scale);
            pair.a_scales[(tile + g) * RANK_TILE + rank % RANK_TILE] = scale;
            const __m512 by = divisor(_mm512_set1_ps(scale));
            // Eight values of a rank, then the same eight of the next one.
            uint8_t* to = pair.packed_a + (tile + g) * GROUP * RANK_TILE + 8 * (rank % RANK_TILE);
            for (int i = 0; i < GROUP / LANES; ++i) {
                uint8_t bytes[LANES];
                _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), quantized(values[i], by));
                std::memcpy(to + (2 * i) * 8 * RANK_TILE, bytes, 8);
                std::memcpy(to + (2 * i + 1) * 8 * RANK_TILE, bytes + 8, 8);
            }
        }
    }
    return is_finite;
}

// False where a scale is no finite number.
bool pack_b(const PairToPack& pair) {
    const int ranks = round_up(pair.rank, RANK_TILE), quads = ranks / 4;
    bool is_finite = true;
    for (int first = 0; first < ranks; first += LANES) {
        const __mmask16 mask = first_lanes(pair.rank - first);
        __m512 largest = _mm512_setzero_ps();
        for (int row = 0; row < pair.n; ++row)
            largest = _mm512_max_ps(
                largest, absolute(_mm512_maskz_loadu_ps(mask, pair.b + size_t(row) * pair.rank + first)));
        const __m512 scales = _mm512_div_ps(largest, _mm512_set1_ps(LARGEST));
        is_finite = is_finite && std::isfinite(_mm512_reduce_max_ps(scales));
        _mm512_mask_storeu_ps(pair.b_scales + first, first_lanes(ranks - first), scales);
        const __m512 by = divisor(scales);
        const int quads_here = std::min(quads - first / 4, LANES / 4);
        for (int row = 0; row < round_up(pair.n, GROUP); ++row) {
            const __mmask16 valid = row < pair.n ? mask : __mmask16(0);
            uint8_t bytes[LANES];
            _mm_storeu_si128(
                reinterpret_cast<__m128i*>(bytes),
                quantized(_mm512_maskz_loadu_ps(valid, pair.b + size_t(row) * pair.rank + first), by));
            uint8_t* to = pair.packed_b + (size_t(row / GROUP) * quads + first / 4) * GROUP * 4 + 4 * (row % GROUP);
            for (int quad = 0; quad < quads_here; ++quad) std::memcpy(to + quad * GROUP * 4, bytes + 4 * quad, 4);
        }
    }
    return is_finite;
}

}  // namespace

extern "C" {

// Packs `count` pairs of finite numbers. The index of the first whose numbers are too large to be scaled; -1: none.
int tritext_pack_pairs(const PairToPack* pairs, int count) {
    for (int i = 0; i < count; ++i)
        if (!pack_a(pairs[i]) || !pack_b(pairs[i])) return i;
    return -1;
}
}
