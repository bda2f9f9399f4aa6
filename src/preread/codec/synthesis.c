/* From symbols to float16 rows of K and V: product with the basis, rotation of K to its position, rounding.
 *
 * Where the floating-point operations of two machines differ in the last bit, so may the rounded rows; symbols do not.
 */
#include "half.h"

enum { COLUMNS = 64, ROWS = 6 };

/* One block of the product: ROWS rows by one panel, HEIGHT rows and WIDTH columns at a time so that all sums stay in
 * registers.
 * picked: the `count` columns of these rows that are not all zero; values: ROWS numbers for each of them. */
#define BLOCK(name, BYTES, HEIGHT, WIDTH, TARGET)                                                                       \
    TARGET static void name(const float *restrict values, const int32_t *restrict picked, int64_t count,               \
                            const float *restrict panel, int64_t width, float *restrict out) {                         \
        typedef float Lane __attribute__((vector_size(BYTES), aligned(4)));                                            \
        enum { LANES = WIDTH * sizeof(float) / BYTES };                                                                 \
        for (int first = 0; first < ROWS * COLUMNS / WIDTH; first += HEIGHT) {                                          \
            const int top = first % ROWS, left = first / ROWS * WIDTH;                                                  \
            Lane sum[HEIGHT][LANES] = {{{0}}};                                                                          \
            for (int64_t n = 0; n < count; n++) {                                                                       \
                const Lane *row = (const Lane *)(panel + (int64_t)picked[n] * COLUMNS + left);                          \
                for (int r = 0; r < HEIGHT; r++)                                                                        \
                    for (int i = 0; i < (int)LANES; i++) sum[r][i] += row[i] * values[n * ROWS + top + r];              \
            }                                                                                                           \
            for (int r = 0; r < HEIGHT; r++) memcpy(out + (top + r) * width + left, sum[r], sizeof sum[r]);             \
        }                                                                                                               \
    }

typedef void Block(const float *restrict, const int32_t *restrict, int64_t, const float *restrict, int64_t,
                   float *restrict);

#ifdef __x86_64__
BLOCK(block_512, 64, 6, 64, __attribute__((target("avx512f,fma"))))
BLOCK(block_256, 32, 3, 32, __attribute__((target("avx2,fma"))))
#endif
BLOCK(block_128, 16, 3, 16, )

static Block *widest(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return block_512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return block_256;
#endif
    return block_128;
}

/* out[t][n] = sum over k < depth of a[t][k] * panels[n / COLUMNS][k][n % COLUMNS]; a panel has `rows` rows.
 * `width` is a multiple of COLUMNS, `tokens` of ROWS. picked: room for tokens / ROWS * depth; values: for ROWS times that.
 * Most coefficients of the weaker components are zero: where a block of rows has nothing but zeros, nothing is done. */
void preread_product(const float *restrict a, const float *restrict panels, int64_t tokens, int64_t depth, int64_t rows,
                     int64_t width, int32_t *restrict picked, float *restrict values, int64_t *restrict counts,
                          float *restrict out) {
    int64_t blocks = tokens / ROWS;
    Block *block = widest();
    for (int64_t b = 0; b < blocks; b++) {
        const float *from = a + b * ROWS * depth;
        int32_t *to = picked + b * depth;
        float *into = values + b * depth * ROWS;
        int64_t count = 0;
        for (int64_t k = 0; k < depth; k++) {
            float any = 0;
            for (int r = 0; r < ROWS; r++) {
                float value = from[r * depth + k];
                into[count * ROWS + r] = value;
                any += value * value;
            }
            to[count] = (int32_t)k;
            count += any > 0;
        }
        counts[b] = count;
    }
    for (int64_t p = 0; p < width / COLUMNS; p++)
        for (int64_t b = 0; b < blocks; b++)
            block(values + b * depth * ROWS, picked + b * depth, counts[b], panels + p * rows * COLUMNS, width,
                  out + b * ROWS * width + p * COLUMNS);
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

/* One head's rows: x has `width` values a token, of which `dim` from `x` on are this head's. cosines and sines are
 * (tokens, pairs); NULL leaves rows as they are (V). `near`: the two halves of a pair lie side by side (llama.cpp's
 * NORM), otherwise dim/2 apart (NEOX). out: (tokens, dim). */
WIDE void preread_rows(const float *restrict x, int64_t tokens, int64_t width, int64_t dim, const float *restrict cosines,
                       const float *restrict sines, int64_t pairs, int near, uint16_t *restrict out) {
    for (int64_t t = 0; t < tokens; t++, x += width, out += dim) {
        if (!cosines) {
            for (int64_t i = 0; i < dim; i++) out[i] = to_half(x[i]);
            continue;
        }
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
