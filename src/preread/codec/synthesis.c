/* From symbols to float16 rows of K and V: product with the basis, rotation of K to its position, rounding.
 *
 * The basis is kept as int8, so the product is one of integers: what a token has of each row is brought to int16, with a
 * scale for each token. What remains in floating point may differ between machines in the last bit, and so may the
 * rounded rows; symbols do not.
 */
#include "half.h"

#include <stdlib.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

enum {
    COLUMNS = 64, /* of a panel */
    ROWS = 6,     /* tokens that the product takes at a time */
    LARGEST = 32767,
};

/* No sum of products with int8 may leave int32: so the sizes of a token's numbers add up to less than this. */
#define ADDED 16000000.0f

/* One block of the product, ROWS tokens by one panel: sums[r][n] = sum over i < count of the two products of
 * values[i][r] and panel[picked[i]][n].
 * picked: the pairs of rows of which any token has something; values: the two numbers of each token, int16. */
typedef void Block(const int32_t *restrict values, const int32_t *restrict picked, int64_t count,
                   const int16_t *restrict panel, int32_t *restrict sums);

#ifdef __x86_64__
__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void
block_512(const int32_t *restrict values, const int32_t *restrict picked, int64_t count, const int16_t *restrict panel,
          int32_t *restrict sums) {
    __m512i sum[ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int n = 0; n < 4; n++) sum[r][n] = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i++, values += ROWS) {
        __m512i row[4];
#pragma GCC unroll 8
        for (int n = 0; n < 4; n++) row[n] = _mm512_loadu_si512(panel + ((int64_t)picked[i] * 4 + n) * 32);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const __m512i pair = _mm512_set1_epi32(values[r]);
#pragma GCC unroll 8
            for (int n = 0; n < 4; n++) sum[r][n] = _mm512_dpwssd_epi32(sum[r][n], row[n], pair);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int n = 0; n < 4; n++) _mm512_storeu_si512(sums + r * COLUMNS + n * 16, sum[r][n]);
}

__attribute__((target("avx2"))) static void block_256(const int32_t *restrict values, const int32_t *restrict picked,
                                                      int64_t count, const int16_t *restrict panel,
                                                      int32_t *restrict sums) {
    for (int part = 0; part < ROWS / 3 * 2; part++) {
        const int top = part / 2 * 3, left = part % 2 * COLUMNS / 2;
        __m256i sum[3][4];
        for (int r = 0; r < 3; r++)
            for (int n = 0; n < 4; n++) sum[r][n] = _mm256_setzero_si256();
        for (int64_t i = 0; i < count; i++) {
            const __m256i *row = (const __m256i *)(panel + ((int64_t)picked[i] * COLUMNS + left) * 2);
            for (int r = 0; r < 3; r++) {
                const __m256i pair = _mm256_set1_epi32(values[i * ROWS + top + r]);
                for (int n = 0; n < 4; n++)
                    sum[r][n] = _mm256_add_epi32(sum[r][n], _mm256_madd_epi16(_mm256_loadu_si256(row + n), pair));
            }
        }
        for (int r = 0; r < 3; r++)
            for (int n = 0; n < 4; n++)
                _mm256_storeu_si256((__m256i *)(sums + (top + r) * COLUMNS + left + n * 8), sum[r][n]);
    }
}
#endif

static void block_plain(const int32_t *restrict values, const int32_t *restrict picked, int64_t count,
                        const int16_t *restrict panel, int32_t *restrict sums) {
    memset(sums, 0, ROWS * COLUMNS * sizeof *sums);
    for (int64_t i = 0; i < count; i++, values += ROWS) {
        const int16_t *row = panel + (int64_t)picked[i] * COLUMNS * 2;
        for (int r = 0; r < ROWS; r++) {
            const int32_t first = (int16_t)(values[r] & 0xFFFF), second = values[r] >> 16;
            for (int n = 0; n < COLUMNS; n++) sums[r * COLUMNS + n] += row[2 * n] * first + row[2 * n + 1] * second;
        }
    }
}

/* The widest that this processor has, of at most so many bits. */
static Block *widest(int bits) {
#ifdef __x86_64__
    if (bits >= 512 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) return block_512;
    if (bits >= 256 && __builtin_cpu_supports("avx2")) return block_256;
#endif
    return block_plain;
}

/* A token's numbers, each times the scale of its row, as int16. Returns what one of these stands for. */
WIDE static float rounded(const float *restrict from, const float *restrict scales, int64_t depth,
                          float *restrict scaled, int16_t *restrict to) {
    float most = 0, added = 0;
    for (int64_t k = 0; k < depth; k++) {
        scaled[k] = from[k] * scales[k];
        const float size = scaled[k] < 0 ? -scaled[k] : scaled[k];
        most = most > size ? most : size;
        added += size;
    }
    if (!(most > 1e-30f && added < 1e38f)) { /* nothing, or what no sound profile makes: no finite scale fits it */
        memset(to, 0, (size_t)depth * sizeof *to);
        return 0;
    }
    const float by = LARGEST / most < ADDED / added ? LARGEST / most : ADDED / added;
    for (int64_t k = 0; k < depth; k++) {
        const float value = scaled[k] * by;
        to[k] = (int16_t)(value < 0 ? value - 0.5f : value + 0.5f);
    }
    return 1 / by;
}

/* The numbers of one block of tokens, ROWS by depth, by pairs: which pairs are not all zero, and what they are. */
static int64_t gathered(const int16_t *restrict numbers, int64_t depth, int32_t *restrict picked, int32_t *restrict values) {
    int64_t count = 0;
    for (int64_t k = 0; k < depth; k += 2) {
        int32_t any = 0;
        for (int r = 0; r < ROWS; r++) {
            const int32_t pair = (numbers[r * depth + k] & 0xFFFF) | (int32_t)((uint32_t)numbers[r * depth + k + 1] << 16);
            values[count * ROWS + r] = pair;
            any |= pair;
        }
        picked[count] = (int32_t)(k / 2);
        count += any != 0;
    }
    return count;
}

/* out[t][n] = means[n] + columns[n] * (sum over k < depth of a[t][k] * scales[k] * panels[n / COLUMNS][k][n % COLUMNS]).
 * panels: numbers of int8, as int16, two rows interleaved, (width / COLUMNS, rows / 2, COLUMNS, 2). `rows` and `depth`
 * are even, `width` is a multiple of COLUMNS, `tokens` of ROWS. Most coefficients of the weaker components are zero:
 * where a block of tokens has nothing but zeros in two rows, nothing is done. bits: of the widest vectors to use; the
 * sums are the same with all. Returns 0, or -1 without memory. */
WIDE int preread_synthesis(const float *restrict a, const float *restrict scales, int64_t tokens, int64_t depth,
                           const int16_t *restrict panels, int64_t rows, int64_t width, const float *restrict means,
                           const float *restrict columns, int bits, float *restrict out) {
    const int64_t blocks = tokens / ROWS;
    Block *block = widest(bits);
    float *scaled = malloc((size_t)depth * sizeof *scaled + 1), *ones = malloc((size_t)tokens * sizeof *ones + 1);
    int16_t *numbers = malloc((size_t)(ROWS * depth) * sizeof *numbers + 1);
    int32_t *picked = malloc((size_t)(blocks * depth / 2) * sizeof *picked + 1);
    int32_t *values = malloc((size_t)(tokens * depth / 2) * sizeof *values + 1);
    int64_t *counts = malloc((size_t)blocks * sizeof *counts + 1);
    const int ready = scaled && ones && numbers && picked && values && counts;
    for (int64_t b = 0; ready && b < blocks; b++) {
        for (int r = 0; r < ROWS; r++)
            ones[b * ROWS + r] = rounded(a + (b * ROWS + r) * depth, scales, depth, scaled, numbers + r * depth);
        counts[b] = gathered(numbers, depth, picked + b * depth / 2, values + b * ROWS * depth / 2);
    }
    for (int64_t p = 0; ready && p < width / COLUMNS; p++) {
        for (int64_t b = 0; b < blocks; b++) {
            int32_t sums[ROWS * COLUMNS];
            block(values + b * ROWS * depth / 2, picked + b * depth / 2, counts[b], panels + p * rows * COLUMNS, sums);
            for (int r = 0; r < ROWS; r++) {
                float *to = out + (b * ROWS + r) * width + p * COLUMNS;
                for (int n = 0; n < COLUMNS; n++)
                    to[n] = means[p * COLUMNS + n] + columns[p * COLUMNS + n] * ones[b * ROWS + r] * (float)sums[r * COLUMNS + n];
            }
        }
    }
    free(scaled);
    free(ones);
    free(numbers);
    free(picked);
    free(values);
    free(counts);
    return ready ? 0 : -1;
}

/* Add what symbols stand for, in steps: sizes 1 and larger lie bias[0] and bias[1] nearer to zero than they say.
 * out has `depth` values a token, of which the first `components` are changed. */
WIDE void preread_values(const int16_t *restrict q, int64_t tokens, int64_t components, int64_t depth, float step,
                         const float *restrict bias, float *restrict out) {
    float one = 1 - bias[0], less = bias[1];
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t c = 0; c < components; c++) {
            float value = q[t * components + c];
            float size = value < 0 ? -value : value;
            float at = size > 1.5f ? size - less : size * one;
            out[t * depth + c] += (value < 0 ? -at : at) * step;
        }
    }
}

/* One head's rows: x has `width` values a token, of which `dim` from `x` on are this head's. */
WIDE static void one_head(const float *restrict x, int64_t tokens, int64_t width, int64_t dim,
                          const float *restrict cosines, const float *restrict sines, int64_t pairs, int near,
                          uint16_t *restrict out) {
    for (int64_t t = 0; t < tokens; t++, x += width, out += dim) {
        const float *c = cosines + t * pairs, *s = sines + t * pairs;
        if (near) {
            for (int64_t i = 0; i < pairs; i++) {
                out[2 * i] = to_half(x[2 * i] * c[i] - x[2 * i + 1] * s[i]);
                out[2 * i + 1] = to_half(x[2 * i] * s[i] + x[2 * i + 1] * c[i]);
            }
        } else {
            for (int64_t i = 0; i < pairs; i++) {
                out[i] = to_half(x[i] * c[i] - x[pairs + i] * s[i]);
                out[pairs + i] = to_half(x[i] * s[i] + x[pairs + i] * c[i]);
            }
        }
        for (int64_t i = 2 * pairs; i < dim; i++) out[i] = to_half(x[i]);
    }
}

/* Rows of `heads` heads that lie side by side in x, (tokens, width) with `dim` values each. cosines and sines are
 * (tokens, pairs); without pairs rows are left as they are (V). `near`: the two halves of a pair lie side by side
 * (llama.cpp's NORM), otherwise dim/2 apart (NEOX). out: (heads, room, dim), of which `tokens` rows are written. */
void preread_rows(const float *restrict x, int64_t tokens, int64_t width, int64_t heads, int64_t dim,
                  const float *restrict cosines, const float *restrict sines, int64_t pairs, int near, int64_t room,
                  uint16_t *restrict out) {
    for (int64_t h = 0; h < heads; h++)
        one_head(x + h * dim, tokens, width, dim, cosines, sines, pairs, near, out + h * room * dim);
}
