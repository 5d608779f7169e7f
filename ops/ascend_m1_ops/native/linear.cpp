// Products of bfloat16 rows and weights of bfloat16 or int4, for x86-64 with AVX512-BF16. Sums in float32, rounded once.
//
//   bfloat16 [outputs / 16][inputs / 2][16 outputs][2]
//   int4     words of 16 bits [outputs / 16][inputs / 8][16 outputs][2]: nibble n of word (o, p) is 8 + the number of
//            output o at input 2 n + p of the eight; scales bfloat16 [outputs / 16][inputs / group][16]
//   x, y     bfloat16 [rows, inputs] and [rows, outputs], contiguous
//
// Sixteen outputs are one register of sums; a step takes two inputs. Rows are first turned, sixteen at a time, into
// [inputs / 2][rows][2]: what a step needs lies together, where rows of 4,096 bytes would push each other out of the cache.

#include <algorithm>
#include <memory>

#include "vectors.h"

namespace {

constexpr long TILE = 16;     // rows whose sums fit into registers
constexpr long STEPS = 4;     // of two inputs each, in one go
constexpr long PAIRS = 64;    // inputs that one thread turns at a time, by two

struct Bfloat16 {
    const uint16_t *numbers;
    long inputs;
    static constexpr long chunk = 4;  // blocks of sixteen outputs that stay in the cache while all rows pass
};

struct Int4 {
    const uint16_t *numbers, *scales;
    long inputs, group;
    static constexpr long chunk = 8;
};

// Sums of ROWS rows; SPLIT for each, so that with few rows an addition need not wait for the last.
template <int ROWS, int SPLIT>
struct Sums {
    __m512 part[ROWS][SPLIT];

    Sums() {
        for (auto &row : part)
            for (auto &sum : row) sum = _mm512_setzero_ps();
    }
    void add(__m512bh weights, const uint32_t *x, int step) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const __m512bh both = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[step * ROWS + r]));
            part[r][step % SPLIT] = _mm512_dpbf16_ps(part[r][step % SPLIT], weights, both);
        }
    }
    __m512 whole(int row) const {
        __m512 sum = part[row][0];
        for (int s = 1; s < SPLIT; s++) sum = _mm512_add_ps(sum, part[row][s]);
        return sum;
    }
};

template <int ROWS>
constexpr int SPLIT_OF = ROWS > 4 ? 1 : ROWS > 2 ? 2 : 4;

// ROWS turned rows times one block of outputs.
template <int ROWS>
void tile(const Bfloat16 &w, long block, const uint32_t *x, uint16_t *y, long outputs) {
    const uint16_t *numbers = w.numbers + block * w.inputs * 16;
    Sums<ROWS, SPLIT_OF<ROWS>> sums;
    for (long i = 0; i < w.inputs; i += 2 * STEPS, x += STEPS * ROWS)
#pragma GCC unroll 4
        for (int n = 0; n < STEPS; n++, numbers += 32) {
            fetch(numbers + AHEAD);
            sums.add((__m512bh)_mm512_loadu_si512(numbers), x, n);
        }
    for (int r = 0; r < ROWS; r++) store(sums.whole(r), y + r * outputs + block * 16);
}

template <int ROWS>
void tile(const Int4 &w, long block, const uint32_t *x, uint16_t *y, long outputs) {
    const __m512i table = number_table();
    const long groups = w.inputs / w.group;
    const uint16_t *numbers = w.numbers + block * w.inputs * 4, *scales = w.scales + block * groups * 16;
    __m512 total[ROWS];
    for (auto &sum : total) sum = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++, scales += 16) {
        Sums<ROWS, SPLIT_OF<ROWS>> sums;
        for (long i = 0; i < w.group; i += 2 * STEPS, numbers += 32, x += STEPS * ROWS) {
            fetch(numbers + AHEAD);
            const __m512i words = _mm512_loadu_si512(numbers);
#pragma GCC unroll 4
            for (int n = 0; n < STEPS; n++)
                sums.add((__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * n), table), x, n);
        }
        const __m512 scale = widened(scales);
        for (int r = 0; r < ROWS; r++) total[r] = _mm512_fmadd_ps(sums.whole(r), scale, total[r]);
    }
    for (int r = 0; r < ROWS; r++) store(total[r], y + r * outputs + block * 16);
}

template <int ROWS, class Weight>
void rows_of(long rows, const Weight &w, long block, const uint32_t *x, uint16_t *y, long outputs) {
    if (rows == ROWS)
        tile<ROWS>(w, block, x, y, outputs);
    else if constexpr (ROWS > 1)
        rows_of<ROWS - 1>(rows, w, block, x, y, outputs);
}

void turn(const uint32_t *x, uint32_t *turned, long rows, long pairs, long first) {
    for (long row = 0; row < rows; row += TILE) {
        const long some = std::min(TILE, rows - row);
        for (long p = first; p < std::min(first + PAIRS, pairs); p++)
            for (long r = 0; r < some; r++) turned[row * pairs + p * some + r] = x[(row + r) * pairs + p];
    }
}

template <class Weight>
void product(const Weight &w, const uint16_t *x, uint16_t *y, long rows, long outputs, int threads) {
    const long pairs = w.inputs / 2, blocks = outputs / 16;
    const long chunk = std::min(Weight::chunk, (blocks + threads - 1) / threads);
    const std::unique_ptr<uint32_t[]> turned(new uint32_t[rows * pairs]);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long first = 0; first < pairs; first += PAIRS)
            turn(reinterpret_cast<const uint32_t *>(x), turned.get(), rows, pairs, first);
#pragma omp for schedule(static)
        for (long first = 0; first < blocks; first += chunk)
            for (long row = 0; row < rows; row += TILE)
                for (long block = first; block < std::min(first + chunk, blocks); block++)
                    rows_of<TILE>(std::min(TILE, rows - row), w, block, turned.get() + row * pairs, y + row * outputs,
                                  outputs);
    }
}

}  // namespace

extern "C" void bfloat16_linear(const uint16_t *x, const uint16_t *numbers, uint16_t *y, long rows, long inputs,
                                long outputs, int threads) {
    product(Bfloat16{numbers, inputs}, x, y, rows, outputs, threads);
}

extern "C" void int4_linear(const uint16_t *x, const uint16_t *numbers, const uint16_t *scales, uint16_t *y, long rows,
                            long inputs, long outputs, long group, int threads) {
    product(Int4{numbers, scales, inputs, group}, x, y, rows, outputs, threads);
}
