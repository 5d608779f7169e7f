// Products of bfloat16 rows and int4 weights, for x86-64 with AVX512-BF16. Sums in float32, rounded once.
//
//   numbers words of 16 bits [outputs / 16][inputs / 8][16 outputs][2]: nibble n of word (o, p) is 8 + the number of
//           output o at input 2 n + p of the eight
//   scales  bfloat16 [outputs / 16][inputs / group][16]
//   x, y    bfloat16 [rows, inputs] and [rows, outputs], contiguous
//
// Sixteen outputs are one register of sums; one load of weights serves four steps of two inputs each. A nibble is made a
// bfloat16 by looking it up: the fifth bit, which belongs to its neighbour, chooses between two copies of the table.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr long TILE = 16;        // rows whose sums fit into registers
constexpr long CHUNK = 8;        // blocks of sixteen outputs that stay in the cache while all rows pass
constexpr long AHEAD = 1024;     // words from a load to what is fetched meanwhile

struct Weight {
    const uint16_t *numbers, *scales;
    long inputs, groups, group;
};

__m512i number_table() {
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

inline __m512bh pair(const uint16_t *x) {
    int both;
    std::memcpy(&both, x, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

// ROWS rows times one block of outputs; SPLIT sums a row, so that with few rows an addition need not wait for the last.
template <int ROWS, int SPLIT>
void tile(const Weight &w, long block, const uint16_t *x, uint16_t *y, long outputs) {
    const __m512i table = number_table();
    const uint16_t *numbers = w.numbers + block * w.inputs * 4, *scales = w.scales + block * w.groups * 16;
    __m512 total[ROWS];
    for (int r = 0; r < ROWS; r++) total[r] = _mm512_setzero_ps();
    for (long g = 0; g < w.groups; g++, scales += 16) {
        __m512 sum[ROWS][SPLIT];
        for (int r = 0; r < ROWS; r++)
            for (int s = 0; s < SPLIT; s++) sum[r][s] = _mm512_setzero_ps();
        for (long i = g * w.group; i < (g + 1) * w.group; i += 8, numbers += 32) {
            _mm_prefetch(reinterpret_cast<const char *>(numbers + AHEAD), _MM_HINT_T0);
            const __m512i words = _mm512_loadu_si512(numbers);
#pragma GCC unroll 4
            for (int n = 0; n < 4; n++) {
                const __m512bh weights = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * n), table);
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; r++)
                    sum[r][n % SPLIT] = _mm512_dpbf16_ps(sum[r][n % SPLIT], weights, pair(x + r * w.inputs + i + 2 * n));
            }
        }
        const __m512 scale = widened(scales);
        for (int r = 0; r < ROWS; r++) {
            __m512 whole = sum[r][0];
            for (int s = 1; s < SPLIT; s++) whole = _mm512_add_ps(whole, sum[r][s]);
            total[r] = _mm512_fmadd_ps(whole, scale, total[r]);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        const __m256bh rounded = _mm512_cvtneps_pbh(total[r]);
        std::memcpy(y + r * outputs + block * 16, &rounded, 32);
    }
}

template <int ROWS>
void rows_of(long rows, const Weight &w, long block, const uint16_t *x, uint16_t *y, long outputs) {
    if (rows == ROWS)
        tile<ROWS, (ROWS > 4 ? 1 : ROWS > 2 ? 2 : 4)>(w, block, x, y, outputs);
    else if constexpr (ROWS > 1)
        rows_of<ROWS - 1>(rows, w, block, x, y, outputs);
}

}  // namespace

extern "C" void int4_linear(const uint16_t *x, const uint16_t *numbers, const uint16_t *scales, uint16_t *y, long rows,
                            long inputs, long outputs, long group, int threads) {
    const Weight w{numbers, scales, inputs, inputs / group, group};
    const long blocks = outputs / 16, chunk = std::min(CHUNK, (blocks + threads - 1) / threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long first = 0; first < blocks; first += chunk)
        for (long row = 0; row < rows; row += TILE)
            for (long block = first; block < std::min(first + chunk, blocks); block++)
                rows_of<TILE>(std::min(TILE, rows - row), w, block, x + row * inputs, y + row * outputs, outputs);
}
