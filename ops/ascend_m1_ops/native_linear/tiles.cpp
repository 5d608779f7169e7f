// linear.cpp's product with int4 weights by AMX: tiles of 16 rows, 16 outputs and 32 inputs. Groups of 32 to 256 inputs.
//
// A group of a weight is unpacked into tiles once and multiplied with all rows; what tiles sum is a group's, so its scale
// is applied to the sums, in float32. Two tiles of rows and two of outputs make four of sums, for four loads. While the
// tiles of one group multiply, the next group is unpacked.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "int4.h"

namespace {

constexpr long TILE = 512;         // bfloat16 of a tile: 16 by 32
constexpr long SUMS = 256;         // float32 of a tile of sums
constexpr long LONGEST = 256;      // inputs of a group
constexpr long ROW_TILES = 32;     // that pass while their inputs of a group stay in the cache
constexpr long FEW = 4;            // tiles of rows up to which a weight is read in order; beyond, CHUNK pairs together
constexpr long CHUNK = 8;          // pairs of blocks of outputs
constexpr int PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA

struct Weight {
    const uint16_t *numbers, *scales;
    long inputs, group, blocks;
    long groups() const { return inputs / group; }
};

struct alignas(64) Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
    explicit Shapes(long x_rows) {
        for (int t = 0; t < 8; t++) bytes[t] = 64, rows[t] = 16;
        for (int t : {0, 1, 2, 3, 6, 7}) rows[t] = static_cast<uint8_t>(x_rows);
    }
};

// One group of one or two blocks of outputs: read in parts of 32 inputs, which are a tile each.
struct Unpacking {
    const uint16_t *words[2];
    long blocks;
    uint16_t *tiles;

    Unpacking(const Weight &w, long block, long g, uint16_t *into) : blocks(std::min(2L, w.blocks - block)), tiles(into) {
        for (long b = 0; b < 2; b++) words[b] = w.numbers + ((block + b) * w.inputs + g * w.group) * 4;
    }
    // Tile [16 pairs of inputs][16 outputs][2] of each block.
    void part(long step, __m512i table) const {
        for (long b = 0; b < blocks; b++) {
            uint16_t *tile = tiles + b * LONGEST * 16 + step * TILE;
            for (int i = 0; i < 4; i++) {
                const uint16_t *source = words[b] + step * 128 + i * 32;
                fetch(source + AHEAD);
                const __m512i eight = _mm512_loadu_si512(source);
#pragma GCC unroll 4
                for (int n = 0; n < 4; n++, tile += 32)
                    _mm512_store_si512(tile, _mm512_permutexvar_epi16(_mm512_srli_epi16(eight, 4 * n), table));
            }
        }
    }
};

// Tiles 0 to 3 sum, 4 and 5 are of two blocks of outputs, 6 and 7 of rows. A tile's sum waits for the one before, so
// ``meanwhile`` has time for something else. The compiler does not know that tiles are read from memory and written to
// it: hence the barriers.
template <bool TWO_ROWS, bool TWO_BLOCKS, class Meanwhile>
void multiply(const uint16_t *x, long next_rows, const uint16_t *weights, long steps, float *sums, Meanwhile meanwhile) {
    asm volatile("" ::: "memory");
    _tile_zero(0);
    if constexpr (TWO_BLOCKS) _tile_zero(1);
    if constexpr (TWO_ROWS) _tile_zero(2);
    if constexpr (TWO_ROWS && TWO_BLOCKS) _tile_zero(3);
    for (long s = 0; s < steps; s++, x += TILE, weights += TILE) {
        _tile_loadd(4, weights, 64);
        _tile_loadd(6, x, 64);
        _tile_dpbf16ps(0, 6, 4);
        if constexpr (TWO_BLOCKS) _tile_loadd(5, weights + LONGEST * 16, 64);
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
    long count;
    long tiles() const { return (count + 15) / 16; }
    long deep() const { return std::min(count, 16L); }  // rows that a tile has
};

// All rows times one group of one or two blocks, unpacked; totals [tiles of rows][2][16][16]. Unpacks the next group.
template <bool TWO_BLOCKS>
void group_of(const Weight &w, const Rows &rows, long block, long g, const uint16_t *weights, const Unpacking &next,
              __m512i table, float *totals) {
    alignas(64) float sums[4 * SUMS];
    const long apart = w.inputs / 32 * TILE, steps = w.group / 32;
    const auto unpack = [&](long s) { next.part(s, table); };
    const auto nothing = [](long) {};
    __m512 scale[2];
    for (int b = 0; b <= TWO_BLOCKS; b++) scale[b] = widened(w.scales + ((block + b) * w.groups() + g) * 16);
    for (long t = 0; t < rows.tiles(); t += 2) {
        const bool two = t + 1 < rows.tiles();
        const uint16_t *x = rows.x + t * apart + g * steps * TILE;
        if (two && t == 0)
            multiply<true, TWO_BLOCKS>(x, apart, weights, steps, sums, unpack);
        else if (two)
            multiply<true, TWO_BLOCKS>(x, apart, weights, steps, sums, nothing);
        else if (t == 0)
            multiply<false, TWO_BLOCKS>(x, apart, weights, steps, sums, unpack);
        else
            multiply<false, TWO_BLOCKS>(x, apart, weights, steps, sums, nothing);
        for (int r = 0; r <= two; r++)
            for (int b = 0; b <= TWO_BLOCKS; b++)
                add_scaled(sums + (2 * r + b) * SUMS, scale[b], rows.deep(), totals + (2 * (t + r) + b) * SUMS);
    }
}

// Some pairs of blocks, group by group; y [rows, outputs].
void pairs_of(const Weight &w, const Rows &rows, long first, long last, __m512i table, float *totals, uint16_t *y) {
    alignas(64) uint16_t weights[2][2 * LONGEST * 16];
    const long each = rows.tiles() * 2 * SUMS, pairs = last - first, all = pairs * w.groups();
    std::fill_n(totals, pairs * each, 0.f);
    const auto unpacking = [&](long n) {
        n = std::min(n, all - 1);  // nothing comes after the last
        return Unpacking(w, 2 * (first + n % pairs), n / pairs, weights[n % 2]);
    };
    for (long s = 0; s < w.group / 32; s++) unpacking(0).part(s, table);
    for (long n = 0; n < all; n++) {
        const long block = 2 * (first + n % pairs);
        float *of_pair = totals + n % pairs * each;
        if (block + 1 < w.blocks)
            group_of<true>(w, rows, block, n / pairs, weights[n % 2], unpacking(n + 1), table, of_pair);
        else
            group_of<false>(w, rows, block, n / pairs, weights[n % 2], unpacking(n + 1), table, of_pair);
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

}  // namespace

// Whether the system lets this process use tiles.
extern "C" int allow_tiles() { return syscall(SYS_arch_prctl, PERMISSION, TILE_DATA) == 0; }

extern "C" void int4_linear(const uint16_t *x, const uint16_t *numbers, const uint16_t *scales, uint16_t *y, long rows,
                            long inputs, long outputs, long group, int threads) {
    const Weight w{numbers, scales, inputs, group, outputs / 16};
    const long row_tiles = std::min((rows + 15) / 16, ROW_TILES), pairs = (w.blocks + 1) / 2;
    const long chunk = std::min(row_tiles > FEW ? CHUNK : 1, (pairs + threads - 1) / threads);
    const std::unique_ptr<uint16_t, decltype(&std::free)> turned(
        static_cast<uint16_t *>(std::aligned_alloc(64, row_tiles * inputs * 32)), std::free);
#pragma omp parallel num_threads(threads)
    {
        const __m512i table = number_table();
        const std::unique_ptr<float, decltype(&std::free)> totals(
            static_cast<float *>(std::aligned_alloc(64, chunk * row_tiles * 2 * SUMS * sizeof(float))), std::free);
        for (long begin = 0; begin < rows; begin += ROW_TILES * 16) {
            const Rows some{turned.get(), std::min(ROW_TILES * 16, rows - begin)};
            const Shapes shapes(some.deep());
            _tile_loadconfig(&shapes);
#pragma omp for schedule(static)
            for (long tile = 0; tile < some.tiles(); tile++)
                turn(x + begin * inputs, some.count, inputs, tile, turned.get());
#pragma omp for schedule(static)
            for (long first = 0; first < pairs; first += chunk)
                pairs_of(w, some, first, std::min(first + chunk, pairs), table, totals.get(), y + begin * outputs);
            _tile_release();
        }
    }
}
