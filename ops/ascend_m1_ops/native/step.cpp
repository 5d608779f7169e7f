// What lies between the products in a decode step, for bfloat16 rows and x86-64 with AVX512-BF16. After a product has
// swept the caches, a torch call takes tens of microseconds whatever it computes, and a layer would need a hundred.
//
// Each function computes what its operator's reference does, in float32, and rounds where that does. Sizes of rows and
// heads are multiples of 32, strides count elements. Of bfloat16 results too small to be normal numbers zero is left.

#include <algorithm>
#include <cmath>
#include <limits>

#include "vectors.h"

namespace {

constexpr long WIDEST = 256;     // head_dim, as in step.py
constexpr long MOST_GROUP = 16;  // query heads that share a key head, as in step.py
constexpr long SOME = 64;        // keys at a time
constexpr long AT_ONCE = 4;      // heads whose sums stay in registers
constexpr long WORTH = 1 << 17;  // numbers from which on threads share the work

inline __m512 exponential(__m512 x) {
    const __m512 least = _mm512_set1_ps(-87.f);  // what is smaller is no normal number, and slow; max passes on a NaN in x
    x = _mm512_max_ps(least, x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 sum = _mm512_set1_ps(1.f / 720);
    for (float factor : {1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f})  // Taylor, |f| <= ln 2 / 2
        sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(factor));
    return _mm512_scalef_ps(sum, n);
}

inline __m512 rounded(__m512 x) {
    uint16_t bits[16];
    store(x, bits);
    return widened(bits);
}

inline __m512bh pairs(const uint16_t *x) { return (__m512bh)_mm512_loadu_si512(x); }

// Half-split rotation of a head; the halves come one after the other.
void rotate(const __m512 *x, const float *cos, const float *sin, long dim, uint16_t *out) {
    for (long i = 0; i < dim / 32; i++) {
        const __m512 first = x[i], second = x[i + dim / 32];
        const __m512 c = _mm512_loadu_ps(cos + 16 * i), s = _mm512_loadu_ps(sin + 16 * i);
        store(_mm512_sub_ps(_mm512_mul_ps(first, c), _mm512_mul_ps(second, s)), out + 16 * i);
        store(_mm512_add_ps(_mm512_mul_ps(second, c), _mm512_mul_ps(first, s)), out + dim / 2 + 16 * i);
    }
}

struct Cache {  // [blocks, block_size, kv_heads, head_dim]
    uint16_t *k, *v;
    long block_size, block_stride, slot_stride;
    long at(long slot) const { return slot / block_size * block_stride + slot % block_size * slot_stride; }
};

// One key head's k or v of a token: convolved with the one before, which is in the state.
void convolve(const uint16_t *before, const uint16_t *now, const uint16_t *taps, long dim, __m512 *out) {
    const auto tap = [&](int i) { return _mm512_castsi512_ps(_mm512_set1_epi32(taps[i] << 16)); };
    const __m512 first = tap(0), second = tap(1);
    for (long i = 0; i < dim / 16; i++) {
        const __m512 old = before == nullptr ? _mm512_setzero_ps() : widened(before + 16 * i);
        out[i] = rounded(_mm512_add_ps(_mm512_mul_ps(first, old), _mm512_mul_ps(second, widened(now + 16 * i))));
    }
}

// Attention of the query heads that share a key head over one sequence's keys; softmax as it goes.
struct Attention {
    const uint16_t *q;  // [group, dim]
    long group, dim;
    float scale;
    alignas(64) float out[MOST_GROUP][WIDEST] = {}, scores[MOST_GROUP][SOME] = {};  // more than group: zeros
    float largest[MOST_GROUP], sum[MOST_GROUP];

    Attention(const uint16_t *q, long group, long dim, float scale) : q(q), group(group), dim(dim), scale(scale) {
        for (long h = 0; h < group; h++) largest[h] = -std::numeric_limits<float>::infinity(), sum[h] = 0;
    }
    float dot(const uint16_t *query, const uint16_t *key) const {
        __m512 total = _mm512_setzero_ps();
        for (long i = 0; i < dim; i += 32)
            total = _mm512_dpbf16_ps(total, pairs(query + i), pairs(key + i));
        return _mm512_reduce_add_ps(total);
    }
    // A few keys [count <= SOME] with their values, ``stride`` apart.
    void see(const uint16_t *k, const uint16_t *v, long count, long stride) {
        for (long h = 0; h < group; h++) {
            float most = largest[h];
            for (long j = 0; j < count; j++) {
                scores[h][j] = dot(q + h * dim, k + j * stride) * scale;
                most = scores[h][j] <= most ? most : scores[h][j];  // a NaN passes
            }
            std::fill(scores[h] + count, scores[h] + SOME, -std::numeric_limits<float>::infinity());
            weigh(h, most);
        }
        for (long h = 0; h < group; h += AT_ONCE)
            for (long i = 0; i < dim; i += 16) {
                __m512 sums[AT_ONCE];
                for (long n = 0; n < AT_ONCE; n++) sums[n] = _mm512_load_ps(out[h + n] + i);
                for (long j = 0; j < count; j++) {
                    const __m512 value = widened(v + j * stride + i);
                    for (long n = 0; n < AT_ONCE; n++)
                        sums[n] = _mm512_fmadd_ps(_mm512_set1_ps(scores[h + n][j]), value, sums[n]);
                }
                for (long n = 0; n < AT_ONCE; n++) _mm512_store_ps(out[h + n] + i, sums[n]);
            }
    }
    // Scores become weights; what was summed before is brought to the new largest score.
    void weigh(long h, float most) {
        if (most == -std::numeric_limits<float>::infinity()) {  // nothing yet to compare with
            std::fill_n(scores[h], SOME, 0.f);
            return;
        }
        const float factor = largest[h] == most ? 1.f : std::exp(largest[h] - most);
        __m512 added = _mm512_setzero_ps();
        for (long j = 0; j < SOME; j += 16) {
            __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(scores[h] + j), _mm512_set1_ps(most)));
            _mm512_store_ps(scores[h] + j, weight);
            added = _mm512_add_ps(added, weight);
        }
        sum[h] = sum[h] * factor + _mm512_reduce_add_ps(added);
        for (long i = 0; i < dim && factor != 1; i += 16)
            _mm512_store_ps(out[h] + i, _mm512_mul_ps(_mm512_load_ps(out[h] + i), _mm512_set1_ps(factor)));
        largest[h] = most;
    }
    void finish(uint16_t *y) const {
        for (long h = 0; h < group; h++)
            for (long i = 0; i < dim; i += 16)
                store(_mm512_div_ps(_mm512_load_ps(out[h] + i), _mm512_set1_ps(sum[h])), y + h * dim + i);
    }
};

}  // namespace

// y = rms_norm(total), total = x + residual where there is one; all [rows, hidden].
extern "C" void rms_norm(const uint16_t *x, const uint16_t *residual, const uint16_t *weight, uint16_t *total,
                         uint16_t *y, long rows, long hidden, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * hidden >= WORTH)
    for (long r = 0; r < rows; r++) {
        const long first = r * hidden;
        for (long i = first; i < first + hidden && residual != nullptr; i += 16)
            store(_mm512_add_ps(widened(x + i), widened(residual + i)), total + i);
        const uint16_t *row = residual == nullptr ? x : total;
        __m512 squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (long i = first; i < first + hidden; i += 32)
            for (int n = 0; n < 2; n++)
                squares[n] = _mm512_fmadd_ps(widened(row + i + 16 * n), widened(row + i + 16 * n), squares[n]);
        const float mean = _mm512_reduce_add_ps(_mm512_add_ps(squares[0], squares[1])) / static_cast<float>(hidden);
        const __m512 factor = _mm512_set1_ps(1 / std::sqrt(mean + eps));
        for (long i = 0; i < hidden; i += 16)
            store(_mm512_mul_ps(_mm512_mul_ps(widened(row + first + i), factor), widened(weight + i)), y + first + i);
    }
}

// [rows, 2 inner], gate and up side by side -> [rows, inner].
extern "C" void swiglu(const uint16_t *gate_up, uint16_t *y, long rows, long inner, int threads) {
    const __m512 one = _mm512_set1_ps(1), zero = _mm512_setzero_ps();
#pragma omp parallel for num_threads(threads) if (rows * inner >= WORTH)
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < inner; i += 16) {
            const __m512 gate = widened(gate_up + 2 * r * inner + i), up = widened(gate_up + (2 * r + 1) * inner + i);
            const __m512 below = _mm512_add_ps(one, exponential(_mm512_sub_ps(zero, gate)));
            store(_mm512_mul_ps(rounded(_mm512_div_ps(gate, below)), up), y + r * inner + i);
        }
}

// One token of each sequence; see conv_rope_cache. Tables int32, as TokenTable has them. Returns -1, or the first token
// whose position, slot or row is none of the ``bounds`` many; then nothing is written.
extern "C" long conv_rope_cache(const uint16_t *packed, const uint16_t *taps, const float *cos, const float *sin,
                                const int32_t *positions, const int32_t *slots, const int32_t *state_rows,
                                const int32_t *continues, uint16_t *k_cache, uint16_t *v_cache, uint16_t *state,
                                uint16_t *q, const int64_t *bounds, long tokens, long heads, long kv_heads, long dim,
                                long packed_stride, long state_stride, long block_size, long block_stride,
                                long slot_stride) {
    for (long t = 0; t < tokens; t++)
        if (positions[t] < 0 || positions[t] >= bounds[0] || slots[t] >= bounds[1] || state_rows[t] >= bounds[2]) return t;
    const Cache cache{k_cache, v_cache, block_size, block_stride, slot_stride};
    alignas(64) __m512 head[WIDEST / 16];
    for (long t = 0; t < tokens; t++, packed += packed_stride) {
        const float *c = cos + positions[t] * dim / 2, *s = sin + positions[t] * dim / 2;
        for (long h = 0; h < heads; h++, q += dim) {
            for (long i = 0; i < dim / 16; i++) head[i] = widened(packed + h * dim + 16 * i);
            rotate(head, c, s, dim, q);
        }
        uint16_t *known = state_rows[t] < 0 ? nullptr : state + state_rows[t] * state_stride;
        for (long h = 0; h < 2 * kv_heads; h++) {  // k heads, then v heads
            const uint16_t *now = packed + (heads + h) * dim;
            const uint16_t *before = known != nullptr && continues[t] ? known + h * dim : nullptr;
            convolve(before, now, taps + 2 * h, dim, head);
            if (slots[t] >= 0 && h < kv_heads) rotate(head, c, s, dim, cache.k + cache.at(slots[t]) + h * dim);
            if (slots[t] >= 0 && h >= kv_heads)
                for (long i = 0; i < dim / 16; i++)
                    store(head[i], cache.v + cache.at(slots[t]) + (h - kv_heads) * dim + 16 * i);
            if (known != nullptr) std::copy_n(now, dim, known + h * dim);
        }
    }
    return -1;
}

// One query of each sequence, q and y [sequences, heads, dim], over its blocks; lengths int64.
extern "C" void paged_attention(const uint16_t *q, const uint16_t *k, const uint16_t *v, const int32_t *table,
                                const int64_t *lengths, uint16_t *y, long sequences, long table_stride, long heads,
                                long kv_heads, long dim, long block_size, long block_stride, long slot_stride,
                                float scale, int threads) {
    const long group = heads / kv_heads, keys = *std::max_element(lengths, lengths + sequences);
    const bool shared = keys * sequences * kv_heads * dim >= WORTH;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads) if (shared)
    for (long n = 0; n < sequences; n++)
        for (long h = 0; h < kv_heads; h++) {
            Attention attention(q + (n * heads + h * group) * dim, group, dim, scale);
            for (long first = 0, some; first < lengths[n]; first += some) {
                const long block = table[n * table_stride + first / block_size], slot = first % block_size;
                const long at = block * block_stride + slot * slot_stride + h * dim;
                some = std::min({SOME, lengths[n] - first, block_size - slot});
                attention.see(k + at, v + at, some, slot_stride);
            }
            attention.finish(y + (n * heads + h * group) * dim);
        }
}
