// linear.cpp's products by AMX: tiles of 16 rows, 16 outputs and 32 inputs. Inputs are a multiple of 32, groups of int4
// have 32 to 256.
//
// A group of inputs is multiplied with all rows. int4 is unpacked into tiles before, and since what tiles sum is a
// group's, its scale is applied to the sums, in float32. Two tiles of rows and two of outputs make four of sums, for
// four loads. While the tiles of one group multiply, the next group is made ready.

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "vectors.h"

namespace {

constexpr long TILE = 512;     // bfloat16 of a tile: 16 by 32
constexpr long SUMS = 256;     // float32 of a tile of sums
constexpr long LONGEST = 256;  // inputs of a group
constexpr long MOST = 32;      // tiles of rows that pass while their inputs of a group stay in the cache
constexpr long FEW = 4;        // tiles of rows up to which a weight is read in order; beyond, CHUNK pairs together
constexpr long CHUNK = 8;      // pairs of blocks of outputs
constexpr int PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
constexpr unsigned AMX_BF16 = 1u << 22;             // of edx, cpuid 7

struct alignas(64) Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
    explicit Shapes(long x_rows) {
        for (int t = 0; t < 8; t++) bytes[t] = 64, rows[t] = 16;
        for (int t : {0, 1, 2, 3, 6, 7}) rows[t] = static_cast<uint8_t>(x_rows);
    }
};

// One group of one or two blocks of outputs as tiles [inputs / 32][16 pairs of inputs][16 outputs][2].
struct Group {
    const uint16_t *source[2];  // of each block
    const uint16_t *tiles;
    long apart, blocks, steps;  // from one block's tiles to the other's; blocks; tiles of each
};

struct Int4 {
    const uint16_t *numbers, *scales;
    long inputs, length, blocks, groups;

    Group group(long block, long g, uint16_t *room) const {
        const uint16_t *words = numbers + (block * inputs + g * length) * 4;
        return {{words, words + inputs * 4}, room, LONGEST * 16, std::min(2L, blocks - block), length / 32};
    }
    __m512 scale(long block, long g) const { return widened(scales + (block * groups + g) * 16); }

    static void make_ready(const Group &group, long step, uint16_t *room, __m512i table) {
        for (long b = 0; b < group.blocks; b++) {
            uint16_t *tile = room + b * group.apart + step * TILE;
            for (int i = 0; i < 4; i++) {
                const uint16_t *words = group.source[b] + step * 128 + i * 32;
                fetch(words + AHEAD);
                const __m512i eight = _mm512_loadu_si512(words);
#pragma GCC unroll 4
                for (int n = 0; n < 4; n++, tile += 32)
                    _mm512_store_si512(tile, _mm512_permutexvar_epi16(_mm512_srli_epi16(eight, 4 * n), table));
            }
        }
    }
};

struct Bfloat16 {
    const uint16_t *numbers;
    long inputs, length, blocks, groups;

    Group group(long block, long g, uint16_t *) const {
        const uint16_t *first = numbers + (block * inputs + g * length) * 16;
        const long steps = std::min(length, inputs - g * length) / 32;
        return {{first, first + inputs * 16}, first, inputs * 16, std::min(2L, blocks - block), steps};
    }
    static __m512 scale(long, long) { return _mm512_set1_ps(1); }

    static void make_ready(const Group &group, long step, uint16_t *, __m512i) {
        for (long b = 0; b < group.blocks; b++)
            for (int row = 0; row < 16; row++) fetch(group.source[b] + step * TILE + row * 32);
    }
};

// Tiles 0 to 3 sum, 4 and 5 are of two blocks of outputs, 6 and 7 of rows. A tile's sum waits for the one before, so
// ``meanwhile`` has time for something else. The compiler does not know that tiles are read from memory and written to
// it: hence the barriers.
template <bool TWO_ROWS, bool TWO_BLOCKS, class Meanwhile>
void multiply(const uint16_t *x, long next_rows, const Group &group, float *sums, Meanwhile meanwhile) {
    const uint16_t *weights = group.tiles;
    asm volatile("" ::: "memory");
    _tile_zero(0);
    if constexpr (TWO_BLOCKS) _tile_zero(1);
    if constexpr (TWO_ROWS) _tile_zero(2);
    if constexpr (TWO_ROWS && TWO_BLOCKS) _tile_zero(3);
    for (long s = 0; s < group.steps; s++, x += TILE, weights += TILE) {
        _tile_loadd(4, weights, 64);
        _tile_loadd(6, x, 64);
        _tile_dpbf16ps(0, 6, 4);
        if constexpr (TWO_BLOCKS) _tile_loadd(5, weights + group.apart, 64);
        if constexpr (TWO_BLOCKS) _tile_dpbf16ps(1, 6, 5);
        if constexpr (TWO_ROWS) _tile_loadd(7, x + next_rows, 64);
        if constexpr (TWO_ROWS) _tile_dpbf16ps(2, 7, 4);
        if constexpr (TWO_ROWS && TWO_BLOCKS) _tile_dpbf16ps(3, 7, 5);
        meanwhile(s);
    }
    _tile_stored(0, sums, 64);
    if constexpr (TWO_BLOCKS) _tile_stored(1, sums + SUMS, 64);
    if constexpr (TWO_ROWS) _tile_stored(2, sums + 2 * SUMS, 64);
    if constexpr (TWO_ROWS && TWO_BLOCKS) _tile_stored(3, sums + 3 * SUMS, 64);
    asm volatile("" ::: "memory");
}

void add_scaled(const float *sums, __m512 scale, long rows, float *totals) {
    for (long r = 0; r < rows; r++, sums += 16, totals += 16)
        _mm512_store_ps(totals, _mm512_fmadd_ps(_mm512_load_ps(sums), scale, _mm512_load_ps(totals)));
}

struct Rows {  // some of x, in tiles [rows / 16][inputs / 32][16][32]
    const uint16_t *x;
    long count, inputs;
    long tiles() const { return (count + 15) / 16; }
    long deep() const { return std::min(count, 16L); }  // rows that a tile has
};

// All rows, from the group's first input on, times a group; totals [tiles of rows][2][16][16].
template <bool TWO_BLOCKS, class Meanwhile>
void group_of(const Rows &rows, const uint16_t *x, const Group &group, const __m512 *scale, float *totals,
              Meanwhile meanwhile) {
    alignas(64) float sums[4 * SUMS];
    const long next = rows.inputs * 16;
    const auto nothing = [](long) {};
    for (long t = 0; t < rows.tiles(); t += 2, x += 2 * next) {
        const bool two = t + 1 < rows.tiles();
        if (two && t == 0)
            multiply<true, TWO_BLOCKS>(x, next, group, sums, meanwhile);
        else if (two)
            multiply<true, TWO_BLOCKS>(x, next, group, sums, nothing);
        else if (t == 0)
            multiply<false, TWO_BLOCKS>(x, next, group, sums, meanwhile);
        else
            multiply<false, TWO_BLOCKS>(x, next, group, sums, nothing);
        for (int r = 0; r <= two; r++)
            for (int b = 0; b <= TWO_BLOCKS; b++)
                add_scaled(sums + (2 * r + b) * SUMS, scale[b], rows.deep(), totals + (2 * (t + r) + b) * SUMS);
    }
}

// Some pairs of blocks, group by group; y [rows, outputs].
template <class Weight>
void pairs_of(const Weight &w, const Rows &rows, long first, long last, __m512i table, float *totals, uint16_t *y) {
    alignas(64) uint16_t room[2][2 * LONGEST * 16];
    const long each = rows.tiles() * 2 * SUMS;
    std::fill_n(totals, (last - first) * each, 0.f);
    Group group = w.group(2 * first, 0, room[0]);
    for (long s = 0; s < group.steps; s++) w.make_ready(group, s, room[0], table);
    uint16_t *here = room[0], *there = room[1];
    for (long g = 0; g < w.groups; g++)
        for (long pair = first; pair < last; pair++) {
            const bool more = pair + 1 < last, end = !more && g + 1 == w.groups;  // nothing comes after the end
            const Group next = w.group(2 * (more ? pair + 1 : end ? pair : first), more || end ? g : g + 1, there);
            const auto ready = [&](long s) {
                if (s < next.steps) w.make_ready(next, s, there, table);
            };
            const __m512 scale[2] = {w.scale(2 * pair, g), w.scale(2 * pair + group.blocks - 1, g)};
            float *sums = totals + (pair - first) * each;
            if (group.blocks == 2)
                group_of<true>(rows, rows.x + g * w.length * 16, group, scale, sums, ready);
            else
                group_of<false>(rows, rows.x + g * w.length * 16, group, scale, sums, ready);
            group = next;
            std::swap(here, there);
        }
    for (long block = 2 * first; block < std::min(2 * last, w.blocks); block++)
        for (long r = 0; r < rows.count; r++) {
            const long tile = (block / 2 - first) * rows.tiles() * 2 + r / 16 * 2 + block % 2;
            store(_mm512_load_ps(totals + tile * SUMS + r % 16 * 16), y + (r * w.blocks + block) * 16);
        }
}

// Rows [count, inputs] in tiles, the last one filled up with zeros.
void turn(const uint16_t *x, long count, long inputs, long tile, uint16_t *turned) {
    turned += tile * inputs * 16;
    for (long r = 0; r < 16; r++)
        for (long i = 0; i < inputs; i += 32) {
            const bool there = tile * 16 + r < count;
            const __m512i some = there ? _mm512_loadu_si512(x + (tile * 16 + r) * inputs + i) : _mm512_setzero_si512();
            _mm512_store_si512(turned + i * 16 + r * 32, some);
        }
}

template <class T>
std::unique_ptr<T, decltype(&std::free)> aligned(long count) {
    void *memory = std::aligned_alloc(64, static_cast<size_t>(count) * sizeof(T));
    if (memory == nullptr) throw std::bad_alloc();
    return {static_cast<T *>(memory), std::free};
}

template <class Weight>
void product(const Weight &w, const uint16_t *x, uint16_t *y, long rows, int threads) {
    const long row_tiles = std::min((rows + 15) / 16, MOST), pairs = (w.blocks + 1) / 2;
    const long chunk = std::min(row_tiles > FEW ? CHUNK : 1, (pairs + threads - 1) / threads);
    const auto turned = aligned<uint16_t>(row_tiles * w.inputs * 16);
#pragma omp parallel num_threads(threads)
    {
        const __m512i table = number_table();
        const auto totals = aligned<float>(chunk * row_tiles * 2 * SUMS);
        for (long begin = 0; begin < rows; begin += MOST * 16) {
            const Rows some{turned.get(), std::min(MOST * 16, rows - begin), w.inputs};
            const Shapes shapes(some.deep());
            _tile_loadconfig(&shapes);
#pragma omp for schedule(static)
            for (long tile = 0; tile < some.tiles(); tile++)
                turn(x + begin * w.inputs, some.count, w.inputs, tile, turned.get());
#pragma omp for schedule(static)
            for (long first = 0; first < pairs; first += chunk)
                pairs_of(w, some, first, std::min(first + chunk, pairs), table, totals.get(), y + begin * w.blocks * 16);
            _tile_release();
        }
    }
}

}  // namespace

// Whether the processor multiplies tiles of bfloat16, and the system lets this process use them.
extern "C" int allow_tiles() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && syscall(SYS_arch_prctl, PERMISSION, TILE_DATA) == 0;
}

extern "C" void bfloat16_linear(const uint16_t *x, const uint16_t *numbers, uint16_t *y, long rows, long inputs,
                                long outputs, int threads) {
    product(Bfloat16{numbers, inputs, LONGEST, outputs / 16, (inputs + LONGEST - 1) / LONGEST}, x, y, rows, threads);
}

extern "C" void int4_linear(const uint16_t *x, const uint16_t *numbers, const uint16_t *scales, uint16_t *y, long rows,
                            long inputs, long outputs, long group, int threads) {
    product(Int4{numbers, scales, inputs, group, outputs / 16, inputs / group}, x, y, rows, threads);
}
