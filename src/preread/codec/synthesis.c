/* From symbols to float16 rows of K and V: product with the basis, rotation of K to its position, rounding.
 *
 * The basis is kept as int8, so the product is one of integers: what a token has of each row is brought to int16, with a
 * scale for each token. Of the weaker components, of which a token has a few steps at most, int8 is enough, with a scale
 * of their own: processors multiply twice as many of these at a time. What remains in floating point may differ between
 * machines in the last bit, and so may the rounded rows; symbols do not.
 */
#include "half.h"
#include "vectors.h"

#include <stdlib.h>

#ifdef __x86_64__
#include "processor.h"

#include <immintrin.h>
#endif

enum {
    COLUMNS = 64, /* of a panel */
    ROWS = 6,     /* tokens that the product takes at a time */
    LARGEST = 32767,
    LARGEST_WEAK = 127,
    ABOVE = 128, /* by so much the numbers of weak rows lie above what they stand for: dpbusd takes them without sign */
};

/* No sum of products with int8 may leave int32: so the sizes of a token's numbers add up to less than this. */
#define ADDED 16000000.0f

/* One block of the product, ROWS tokens by one panel.
 * Of strong rows: sums[r][n] = sum over i < count of the two products of values[i][r], int16, and panel[picked[i]][n], int16;
 * of weak ones, of the four products of values[i][r], int8, and panel[picked[i]][n], uint8.
 * picked: the pairs or fours of rows of which any token has something. */
typedef void Block(const int32_t *restrict values, const int32_t *restrict picked, int64_t count,
                   const void *restrict panel, int32_t *restrict sums);

#ifdef __x86_64__
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))

VNNI static inline __attribute__((always_inline)) void
any_512(const int32_t *restrict values, const int32_t *restrict picked, int64_t count, const void *restrict panel,
        int32_t *restrict sums, int weak) {
    __m512i sum[ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int n = 0; n < 4; n++) sum[r][n] = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i++, values += ROWS) {
        __m512i row[4];
#pragma GCC unroll 8
        for (int n = 0; n < 4; n++) row[n] = _mm512_loadu_si512((const char *)panel + ((int64_t)picked[i] * 4 + n) * 64);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const __m512i those = _mm512_set1_epi32(values[r]);
#pragma GCC unroll 8
            for (int n = 0; n < 4; n++)
                sum[r][n] = weak ? _mm512_dpbusd_epi32(sum[r][n], row[n], those) : _mm512_dpwssd_epi32(sum[r][n], row[n], those);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int n = 0; n < 4; n++) _mm512_storeu_si512(sums + r * COLUMNS + n * 16, sum[r][n]);
}

VNNI static void strong_512(const int32_t *restrict values, const int32_t *restrict picked, int64_t count,
                            const void *restrict panel, int32_t *restrict sums) {
    any_512(values, picked, count, panel, sums, 0);
}

VNNI static void weak_512(const int32_t *restrict values, const int32_t *restrict picked, int64_t count,
                          const void *restrict panel, int32_t *restrict sums) {
    any_512(values, picked, count, panel, sums, 1);
}

/* Its own instruction for this would saturate: so the four are taken as two pairs of int16. */
__attribute__((target("avx2"))) static void weak_256(const int32_t *restrict values, const int32_t *restrict picked,
                                                     int64_t count, const void *restrict panel,
                                                     int32_t *restrict sums) {
    const __m256i low = _mm256_set1_epi16(0xFF);
    for (int part = 0; part < ROWS / 3 * 4; part++) {
        const int top = part / 4 * 3, left = part % 4 * COLUMNS / 4;
        __m256i sum[3][2];
        for (int r = 0; r < 3; r++)
            for (int n = 0; n < 2; n++) sum[r][n] = _mm256_setzero_si256();
        for (int64_t i = 0; i < count; i++) {
            const __m256i *row = (const __m256i *)((const char *)panel + ((int64_t)picked[i] * COLUMNS + left) * 4);
            for (int r = 0; r < 3; r++) {
                const __m256i four = _mm256_set1_epi32(values[i * ROWS + top + r]);
                const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), odd = _mm256_srai_epi16(four, 8);
                for (int n = 0; n < 2; n++) {
                    const __m256i bytes = _mm256_loadu_si256(row + n);
                    const __m256i first = _mm256_madd_epi16(_mm256_and_si256(bytes, low), even);
                    const __m256i second = _mm256_madd_epi16(_mm256_srli_epi16(bytes, 8), odd);
                    sum[r][n] = _mm256_add_epi32(sum[r][n], _mm256_add_epi32(first, second));
                }
            }
        }
        for (int r = 0; r < 3; r++)
            for (int n = 0; n < 2; n++)
                _mm256_storeu_si256((__m256i *)(sums + (top + r) * COLUMNS + left + n * 8), sum[r][n]);
    }
}

__attribute__((target("avx2"))) static void strong_256(const int32_t *restrict values, const int32_t *restrict picked,
                                                       int64_t count, const void *restrict panel,
                                                       int32_t *restrict sums) {
    for (int part = 0; part < ROWS / 3 * 2; part++) {
        const int top = part / 2 * 3, left = part % 2 * COLUMNS / 2;
        __m256i sum[3][4];
        for (int r = 0; r < 3; r++)
            for (int n = 0; n < 4; n++) sum[r][n] = _mm256_setzero_si256();
        for (int64_t i = 0; i < count; i++) {
            const __m256i *row = (const __m256i *)((const char *)panel + ((int64_t)picked[i] * COLUMNS + left) * 4);
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

static void strong_plain(const int32_t *restrict values, const int32_t *restrict picked, int64_t count,
                         const void *restrict panel, int32_t *restrict sums) {
    memset(sums, 0, ROWS * COLUMNS * sizeof *sums);
    for (int64_t i = 0; i < count; i++, values += ROWS) {
        const int16_t *row = (const int16_t *)panel + (int64_t)picked[i] * COLUMNS * 2;
        for (int r = 0; r < ROWS; r++) {
            const int32_t first = (int16_t)(values[r] & 0xFFFF), second = values[r] >> 16;
            for (int n = 0; n < COLUMNS; n++) sums[r * COLUMNS + n] += row[2 * n] * first + row[2 * n + 1] * second;
        }
    }
}

static void weak_plain(const int32_t *restrict values, const int32_t *restrict picked, int64_t count,
                       const void *restrict panel, int32_t *restrict sums) {
    memset(sums, 0, ROWS * COLUMNS * sizeof *sums);
    for (int64_t i = 0; i < count; i++, values += ROWS) {
        const uint8_t *row = (const uint8_t *)panel + (int64_t)picked[i] * COLUMNS * 4;
        for (int r = 0; r < ROWS; r++) {
            int8_t four[4];
            memcpy(four, values + r, sizeof four);
            for (int n = 0; n < COLUMNS; n++)
                for (int k = 0; k < 4; k++) sums[r * COLUMNS + n] += row[4 * n + k] * four[k];
        }
    }
}

/* The widest that this processor has, of at most so many bits. */
static Block *widest(int bits, int weak) {
#ifdef __x86_64__
    if (bits >= 512 && HAS_AVX512 && HAS_AVX512_VNNI) return weak ? weak_512 : strong_512;
    if (bits >= 256 && HAS_AVX2) return weak ? weak_256 : strong_256;
#endif
    return weak ? weak_plain : strong_plain;
}

/* A token's numbers of weak rows, each times the scale of its row, as int8. Returns what one of these stands for.
 * above: by how much sums of their products will lie above what they stand for. */
LOOP float narrowed(const float *restrict from, const float *restrict scales, int64_t depth, float *restrict scaled,
                    int8_t *restrict to, int32_t *above) {
    float most = 0, added = 0;
    for (int64_t k = 0; k < depth; k++) {
        scaled[k] = from[k] * scales[k];
        const float size = scaled[k] < 0 ? -scaled[k] : scaled[k];
        most = most > size ? most : size;
        added += size;
    }
    *above = 0;
    if (!(most > 1e-30f && added < 1e38f)) { /* as below */
        memset(to, 0, (size_t)depth);
        return 0;
    }
    const float by = LARGEST_WEAK / most;
    int32_t sum = 0;
    for (int64_t k = 0; k < depth; k++) {
        const float value = scaled[k] * by;
        const int32_t number = (int32_t)(value < 0 ? value - 0.5f : value + 0.5f);
        to[k] = (int8_t)number;
        sum += number;
    }
    *above = ABOVE * sum;
    return 1 / by;
}

/* A token's numbers, each times the scale of its row, as int16. Returns what one of these stands for. */
LOOP float rounded(const float *restrict from, const float *restrict scales, int64_t depth, float *restrict scaled,
                   int16_t *restrict to) {
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

/* The same of weak rows, by fours. */
static int64_t gathered_weak(const int8_t *restrict numbers, int64_t depth, int32_t *restrict picked,
                             int32_t *restrict values) {
    int64_t count = 0;
    for (int64_t k = 0; k < depth; k += 4) {
        int32_t any = 0;
        for (int r = 0; r < ROWS; r++) {
            int32_t four;
            memcpy(&four, numbers + r * depth + k, sizeof four);
            values[count * ROWS + r] = four;
            any |= four;
        }
        picked[count] = (int32_t)(k / 4);
        count += any != 0;
    }
    return count;
}

/* What one block of tokens has of strong and of weak rows. */
struct has {
    int64_t strong, weak;          /* how many pairs, how many fours */
    float ones[2][ROWS];           /* what one of either stands for */
    int32_t above[ROWS];           /* of the sums of weak products */
    int32_t *pairs, *fours;        /* which */
    int32_t *numbers, *weak_numbers;
};

LOOP int synthesis(const float *restrict a, const float *restrict scales, int64_t tokens, int64_t depth, int64_t strong,
                   const int16_t *restrict panels, const uint8_t *restrict weak_panels, int64_t rows, int64_t width,
                   const float *restrict means, const float *restrict columns, int bits, float *restrict out) {
    const int64_t blocks = tokens / ROWS, rest = depth - strong, each = ROWS * depth / 2;
    Block *strong_block = widest(bits, 0), *weak_block = widest(bits, 1);
    float *scaled = malloc((size_t)depth * sizeof *scaled + 1);
    int16_t *numbers = malloc((size_t)(ROWS * depth) * sizeof *numbers + 1);
    int8_t *small = malloc((size_t)(ROWS * depth) + 1);
    int32_t *kept = malloc((size_t)(blocks * 2 * each) * sizeof *kept + 1);
    struct has *has = malloc((size_t)blocks * sizeof *has + 1);
    const int ready = scaled && numbers && small && kept && has;
    for (int64_t b = 0; ready && b < blocks; b++) {
        struct has *h = has + b;
        int32_t *at = kept + b * 2 * each;
        h->numbers = at, h->pairs = at += ROWS * strong / 2, h->weak_numbers = at += strong / 2;
        h->fours = at + ROWS * rest / 4;
        for (int r = 0; r < ROWS; r++) {
            const float *from = a + (b * ROWS + r) * depth;
            h->ones[0][r] = rounded(from, scales, strong, scaled, numbers + r * strong);
            h->ones[1][r] = narrowed(from + strong, scales + strong, rest, scaled, small + r * rest, h->above + r);
        }
        h->strong = gathered(numbers, strong, h->pairs, h->numbers);
        h->weak = gathered_weak(small, rest, h->fours, h->weak_numbers);
    }
    for (int64_t p = 0; ready && p < width / COLUMNS; p++) {
        const uint8_t *weak_panel = weak_panels + (p * rows + strong) * COLUMNS;
        for (int64_t b = 0; b < blocks; b++) {
            const struct has *h = has + b;
            int32_t sums[ROWS * COLUMNS], weak_sums[ROWS * COLUMNS];
            strong_block(h->numbers, h->pairs, h->strong, panels + p * rows * COLUMNS, sums);
            weak_block(h->weak_numbers, h->fours, h->weak, weak_panel, weak_sums);
            for (int r = 0; r < ROWS; r++) {
                float *to = out + (b * ROWS + r) * width + p * COLUMNS;
                const int32_t *sum = sums + r * COLUMNS, *weak_sum = weak_sums + r * COLUMNS;
                for (int n = 0; n < COLUMNS; n++)
                    to[n] = means[p * COLUMNS + n] + columns[p * COLUMNS + n] * h->ones[0][r] * (float)sum[n] +
                            columns[p * COLUMNS + n] * h->ones[1][r] * (float)(weak_sum[n] - h->above[r]);
            }
        }
    }
    free(scaled);
    free(numbers);
    free(small);
    free(kept);
    free(has);
    return ready ? 0 : -1;
}

COPIES(int, synthesis,
       (const float *restrict a, const float *restrict scales, int64_t tokens, int64_t depth, int64_t strong,
        const int16_t *restrict panels, const uint8_t *restrict weak_panels, int64_t rows, int64_t width,
        const float *restrict means, const float *restrict columns, int bits, float *restrict out),
       (a, scales, tokens, depth, strong, panels, weak_panels, rows, width, means, columns, bits, out))

/* out[t][n] = means[n] + columns[n] * (sum over k < depth of a[t][k] * scales[k] * row k's number of column n).
 * panels: numbers of int8, as int16, two rows interleaved, (width / COLUMNS, rows / 2, COLUMNS, 2); weak_panels: the same
 * numbers and ABOVE, as uint8, four rows interleaved, (width / COLUMNS, rows / 4, COLUMNS, 4). The first `strong` rows are
 * taken from panels, all others from weak_panels. `strong`, `rows` and `depth` are multiples of 4, `width` of COLUMNS,
 * `tokens` of ROWS. Many coefficients of the weaker components are zero: where a block of tokens has nothing but zeros
 * in two rows, or four weak ones, nothing is done. bits: of the widest vectors to use; the sums of
 * products are the same with all. Returns 0, or -1 without memory. */
int preread_synthesis(const float *a, const float *scales, int64_t tokens, int64_t depth, int64_t strong,
                      const int16_t *panels, const uint8_t *weak_panels, int64_t rows, int64_t width, const float *means,
                      const float *columns, int bits, float *out) {
    return WIDEST(bits, synthesis)(a, scales, tokens, depth, strong, panels, weak_panels, rows, width, means, columns,
                                   bits, out);
}

LOOP void values(const int16_t *restrict q, int64_t tokens, int64_t components, int64_t depth, float step,
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

COPIES(void, values,
       (const int16_t *restrict q, int64_t tokens, int64_t components, int64_t depth, float step,
        const float *restrict bias, float *restrict out),
       (q, tokens, components, depth, step, bias, out))

/* Add what symbols stand for, in steps: sizes 1 and larger lie bias[0] and bias[1] nearer to zero than they say.
 * out has `depth` values a token, of which the first `components` are changed.
 * bits: of the widest vectors to use. */
void preread_values(const int16_t *q, int64_t tokens, int64_t components, int64_t depth, float step, const float *bias,
                    float *out, int bits) {
    WIDEST(bits, values)(q, tokens, components, depth, step, bias, out);
}

/* One head's rows: x has `width` values a token, of which `dim` from `x` on are this head's. */
LOOP void one_head(const float *restrict x, int64_t tokens, int64_t width, int64_t dim, const float *restrict cosines,
                   const float *restrict sines, int64_t pairs, int near, uint16_t *restrict out) {
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

COPIES(void, one_head,
       (const float *restrict x, int64_t tokens, int64_t width, int64_t dim, const float *restrict cosines,
        const float *restrict sines, int64_t pairs, int near, uint16_t *restrict out),
       (x, tokens, width, dim, cosines, sines, pairs, near, out))

/* Rows of `heads` heads that lie side by side in x, (tokens, width) with `dim` values each. cosines and sines are
 * (tokens, pairs); without pairs rows are left as they are (V). `near`: the two halves of a pair lie side by side
 * (llama.cpp's NORM), otherwise dim/2 apart (NEOX). out: (heads, room, dim), of which `tokens` rows are written.
 * bits: of the widest vectors to use. */
void preread_rows(const float *restrict x, int64_t tokens, int64_t width, int64_t heads, int64_t dim,
                  const float *restrict cosines, const float *restrict sines, int64_t pairs, int near, int64_t room,
                  uint16_t *restrict out, int bits) {
    for (int64_t h = 0; h < heads; h++)
        WIDEST(bits, one_head)(x + h * dim, tokens, width, dim, cosines, sines, pairs, near, out + h * room * dim);
}
