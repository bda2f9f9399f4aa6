/* One piece of attention, for one kind of processor: attention.c includes this once for each, with
 *
 *   NAME(name)   what a name is called for this kind
 *   WIDTH        floats of one of its registers
 *   ABREAST      registers of one row that a product takes at a time; of ABREAST times 4 sums, all stay in registers
 *
 * Scores are kept with a column for each row of queries, so that nothing is added or compared within a register, and
 * neither K nor V is turned around.
 */
#define Vector NAME(Vector)
#define Numbers NAME(Numbers)
#define Row NAME(Row)
#define Scratch NAME(Scratch)

typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float))));
typedef int32_t Numbers __attribute__((vector_size(WIDTH * sizeof(int32_t))));
typedef Vector Row[LANES / WIDTH];

struct Scratch {
    Row queries[LARGEST_HEAD]; /* times scale and log2(e) */
    Row out[LARGEST_HEAD];
    Row scores[CELLS];
    float k[CELLS * LARGEST_HEAD], v[CELLS * LARGEST_HEAD];
};

/* float16 rows as float32, and rows of zeros up to CELLS. Infinity becomes 65536: no sound cache holds it. */
static void NAME(widen)(const char *restrict from, size_t stride, int64_t rows, int64_t width, float *restrict to) {
    for (int64_t r = 0; r < rows; r++, from += stride, to += width) {
        const uint16_t *half = (const uint16_t *)from;
        for (int64_t i = 0; i < width; i++) {
            const uint32_t size = (uint32_t)(half[i] & 0x7FFF) << 13, sign = (uint32_t)(half[i] & 0x8000) << 16;
            float value;
            memcpy(&value, &size, sizeof value);
            value *= 0x1p112f;
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            bits |= sign;
            memcpy(to + i, &bits, sizeof bits);
        }
    }
    memset(to, 0, (size_t)((CELLS - rows) * width) * sizeof *to);
}

/* c[r] (+)= sum over i < steps of a[r * row + i * step] * b[i], for `rows` rows, registers `first` to `first + at`. */
static inline __attribute__((always_inline)) void NAME(block)(const float *restrict a, int64_t row, int64_t step,
                                                              int64_t steps, const Row *restrict b, Row *restrict c,
                                                              int first, const int rows, const int at, const bool add) {
    Vector sum[8][ABREAST];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int n = 0; n < at; n++) sum[r][n] = add ? c[r][first + n] : (Vector){0};
    for (int64_t i = 0; i < steps; i++) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const float one = a[r * row + i * step];
#pragma GCC unroll 4
            for (int n = 0; n < at; n++) sum[r][n] += b[i][first + n] * one;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int n = 0; n < at; n++) c[r][first + n] = sum[r][n];
}

/* The same for `count` rows, a multiple of 8, and the first `vectors` registers. */
static inline __attribute__((always_inline)) void NAME(product)(const float *restrict a, int64_t row, int64_t step,
                                                                int64_t steps, const Row *restrict b, Row *restrict c,
                                                                int64_t count, int vectors, const bool add) {
    if (vectors % ABREAST == 0)
        for (int n = 0; n < vectors; n += ABREAST)
            for (int64_t r = 0; r < count; r += 4)
                NAME(block)(a + r * row, row, step, steps, b, c + r, n, 4, ABREAST, add);
    else
        for (int n = 0; n < vectors; n++)
            for (int64_t r = 0; r < count; r += 8)
                NAME(block)(a + r * row, row, step, steps, b, c + r, n, 8, 1, add);
}

/* 2 to the x, for x <= 0: within 2 units of the last place, and 0 below -126. */
static inline Vector NAME(power)(Vector x) {
    const Vector low = (Vector){0} - 126, shift = (Vector){0} + 0x1.8p23f;
    const Numbers none = x < low;
    x = (Vector)(((Numbers)x & ~none) | ((Numbers)low & none));
    const Vector shifted = x + shift;
    const Vector rest = x - (shifted - shift);         /* -1/2 to 1/2 */
    Vector sum = rest * 1.5403530e-4f + 1.3333558e-3f; /* Taylor's series of 2^rest */
    sum = sum * rest + 9.6181291e-3f;
    sum = sum * rest + 5.5504109e-2f;
    sum = sum * rest + 2.4022651e-1f;
    sum = sum * rest + 6.9314718e-1f;
    sum = sum * rest + 1;
    return (Vector)((((Numbers)shifted << 23) + (Numbers)sum) & ~none);
}

/* Of one register of rows: scores become weights, and what was summed up before is brought to the new maximum. */
static inline void NAME(weigh)(Row *restrict scores, Row *restrict out, int64_t dim, int n, Vector *most, Vector *total) {
    Vector top = *most;
    for (int64_t c = 0; c < CELLS; c++) {
        const Numbers above = scores[c][n] > top;
        top = (Vector)(((Numbers)scores[c][n] & above) | ((Numbers)top & ~above));
    }
    const Numbers unseen = top == (Vector){0} - INFINITY;
    const Vector base = (Vector)((Numbers)top & ~unseen); /* 0 for a row that has seen no cell yet */
    const Vector less = NAME(power)(*most - base);
    Vector sum = *total * less;
    for (int64_t c = 0; c < CELLS; c++) sum += scores[c][n] = NAME(power)(scores[c][n] - base);
    for (int64_t d = 0; d < dim; d++) out[d][n] *= less;
    *most = top, *total = sum;
}

/* Add a mask: rows of cells, of which `here` are there, one for each token; all heads of a token see the same cells. */
static void NAME(hide)(Row *restrict scores, const char *masks, size_t stride, int64_t tokens, int64_t group, int64_t here) {
    for (int64_t t = 0; t < tokens; t++) {
        const uint16_t *row = (const uint16_t *)(masks + (int64_t)stride * t);
        for (int64_t c = 0; c < CELLS; c++) {
            const float add = c < here ? _cvtsh_ss(row[c]) * LOG2_E : -INFINITY;
            for (int64_t g = 0; g < group; g++) ((float *)scores[c])[t * group + g] += add;
        }
    }
}

/* All that `tokens` tokens from `token` on, in the query heads of one KV head, read of the cache. */
static void NAME(piece)(struct tensor *node, float scale, int64_t head, int64_t token, int64_t tokens) {
    const struct tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    const int64_t dim = q->ne[0], group = q->ne[2] / k->ne[2], cells = k->ne[1], lanes = tokens * group;
    const int filled = (int)((lanes + WIDTH - 1) / WIDTH);
    const int vectors = filled > ABREAST / 2 ? (filled + ABREAST - 1) / ABREAST * ABREAST : filled;
    struct Scratch s;
    Row most, total;
    for (int64_t d = 0; d < dim; d++)
        for (int n = 0; n < vectors; n++) s.queries[d][n] = s.out[d][n] = (Vector){0};
    for (int n = 0; n < vectors; n++) most[n] = (Vector){0} - INFINITY, total[n] = (Vector){0};
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t g = 0; g < group; g++) {
            const char *row = (const char *)q->data + (token + t) * q->nb[1] + (head * group + g) * q->nb[2];
            for (int64_t d = 0; d < dim; d++)
                ((float *)s.queries[d])[t * group + g] = ((const float *)row)[d] * scale * LOG2_E;
        }
    for (int64_t at = 0; at < cells; at += CELLS) {
        const int64_t here = cells - at < CELLS ? cells - at : CELLS;
        const char *masks = (const char *)mask->data + token * mask->nb[1] + at * sizeof(uint16_t);
        const enum sight sight = seen(masks, mask->nb[1], tokens, here);
        if (sight == NOTHING) continue;
        NAME(widen)((const char *)k->data + at * k->nb[1] + head * k->nb[2], k->nb[1], here, dim, s.k);
        NAME(product)(s.k, dim, 1, dim, s.queries, s.scores, CELLS, vectors, false);
        if (sight == SOME || here < CELLS) NAME(hide)(s.scores, masks, mask->nb[1], tokens, group, here);
        for (int n = 0; n < vectors; n++) NAME(weigh)(s.scores, s.out, dim, n, most + n, total + n);
        NAME(widen)((const char *)v->data + at * v->nb[1] + head * v->nb[2], v->nb[1], here, dim, s.v);
        NAME(product)(s.v, 1, dim, CELLS, s.scores, s.out, dim, vectors, true);
    }
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t g = 0; g < group; g++) {
            char *row = (char *)node->data + (head * group + g) * node->nb[1] + (token + t) * node->nb[2];
            const float sum = ((const float *)total)[t * group + g], share = sum > 0 ? 1 / sum : 0;
            for (int64_t d = 0; d < dim; d++) ((float *)row)[d] = ((const float *)s.out[d])[t * group + g] * share;
        }
}

#undef Vector
#undef Numbers
#undef Row
#undef Scratch
#undef NAME
#undef WIDTH
#undef ABREAST
