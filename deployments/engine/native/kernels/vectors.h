// Vectors of 16 floats and the memory they lie in: what all kernels share.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

namespace tritext {

constexpr int LANES = 16;  // floats in a register

using half = uint16_t;

inline int round_up(int value, int to) { return (value + to - 1) / to * to; }

// Calls f with `value` as a compile-time constant, 1 <= value <= N: loops over it then stay in registers.
template <int N, class F>
inline void with_constant(int value, F f) {
    if constexpr (N > 1) {
        if (value < N) return with_constant<N - 1>(value, f);
    }
    f(std::integral_constant<int, N>{});
}

// Cache-line aligned memory that only grows; zero where nothing was written.
template <class T>
class Buffer {
   public:
    T* reserve(size_t count) {
        if (count > count_) {
            const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
            count_ = 0;  // the old memory is gone, also where there is no new one
            data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
            if (!data_) throw std::bad_alloc();
            std::memset(static_cast<void*>(data_.get()), 0, bytes);
            count_ = count;
        }
        return data_.get();
    }

   private:
    struct Free {
        void operator()(T* pointer) const { std::free(pointer); }
    };
    std::unique_ptr<T, Free> data_;
    size_t count_ = 0;
};

// The first `count` lanes: none below 1, all from LANES on.
inline __mmask16 first_lanes(int count) {
    return count >= LANES ? __mmask16(0xffff) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1);
}

inline __m512 load_half(const half* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline void store_half(half* to, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

inline __m512 load_bfloat(const uint16_t* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// sum += a * b. In assembly because GCC 12 moves many sums through memory around the intrinsic.
inline void add_product(__m512& sum, __m512 a, __m512 b) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// e to the x, to about one unit in the last place; 0 far below.
inline __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-104.0f)), _mm512_set1_ps(88.7f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

// x / (1 + e^-x), with an approximate reciprocal and one step of Newton's: a division takes as long as ten products.
inline __m512 silu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 below = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)));
    const __m512 guess = _mm512_rcp14_ps(below);
    return _mm512_mul_ps(x, _mm512_fmadd_ps(guess, _mm512_fnmadd_ps(below, guess, one), guess));
}

}  // namespace tritext
