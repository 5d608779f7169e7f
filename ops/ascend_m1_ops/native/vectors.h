// What the sources share: rounding, fetching, and the numbers of int4 weights (see linear.cpp for their layout).

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

constexpr long AHEAD = 4096;  // words from a load to what is fetched meanwhile

// The bfloat16 of each nibble, twice: a nibble is looked up by five bits, of which the last is its neighbour's.
inline __m512i number_table() {
    alignas(64) uint16_t table[32];
    for (int i = 0; i < 32; i++) {
        float value = static_cast<float>((i & 15) - 8);
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        table[i] = static_cast<uint16_t>(bits >> 16);
    }
    return _mm512_load_si512(table);
}

inline __m512 widened(const uint16_t *source) {
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(source)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

inline void fetch(const uint16_t *words) { _mm_prefetch(reinterpret_cast<const char *>(words), _MM_HINT_T0); }

inline void store(__m512 sums, uint16_t *y) {
    const __m256bh rounded = _mm512_cvtneps_pbh(sums);
    std::memcpy(y, &rounded, 32);
}
