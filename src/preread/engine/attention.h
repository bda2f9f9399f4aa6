/* One unit of attention, for one kind of processor: attention.c includes this once for each, with
 *
 *   NAME(name)   what a name is called for this kind
 *   WIDTH        floats of one of its registers
 *   ABREAST      registers of one row that a product takes at a time; of ABREAST times 4 sums, all stay in registers
 *
 * Scores lie with a row for each row of queries and a column for each cell, and K is turned around for it. Sums go through
 * the same values in the same order whatever the width, and what is not seen adds 0.
 */
#define Vector NAME(Vector)
#define Numbers NAME(Numbers)
#define Halves NAME(Halves)
#define Part NAME(Part)
#define Tile NAME(Tile)
#define Scratch NAME(Scratch)

enum { NAME(ACROSS) = CELLS / WIDTH }; /* registers of a row of scores */
#define ACROSS NAME(ACROSS)

typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float))));
typedef int32_t Numbers __attribute__((vector_size(WIDTH * sizeof(int32_t))));
typedef int16_t Halves __attribute__((vector_size(WIDTH * sizeof(int16_t))));

/* What some cells come to: of each row of queries the maximum (-infinity: it has seen none), the sum of the weights, and
 * the sum of the rows of V, `wide` registers. */
struct Part {
    float *most, *total;
    Vector *out;
};

/* Cells that go together, and who sees which. */
struct Tile {
    int64_t cells, cell[CELLS];
    int64_t tokens, token[LANES]; /* numbers within the piece */
    uint64_t seen[LANES];
};

struct Scratch {
    float queries[LANES * LARGEST_HEAD]; /* times scale and log2(e) */
    Vector k[LARGEST_HEAD * ACROSS];     /* (dim, cells) */
    Vector v[CELLS * LARGEST_HEAD / WIDTH];
    Vector scores[LANES * ACROSS];
    Vector sum[LANES * LARGEST_HEAD / WIDTH], part[LANES * LARGEST_HEAD / WIDTH];
    float sum_most[LANES], sum_total[LANES], part_most[LANES], part_total[LANES];
};

/* float16s, in the upper 16 bits each, as float32. Infinity becomes 65536: where nobody sees it, it must add 0. */
static inline Vector NAME(widened)(Numbers high) {
    return (Vector)((high >> 3) & (int32_t)0x8FFFE000) * 0x1p112f;
}

static void NAME(widen)(const char *restrict rows, size_t stride, const int64_t *restrict cell, int64_t cells, int64_t dim,
                        int64_t wide, Vector *restrict to) {
    for (int64_t c = 0; c < cells; c++, to += wide) {
        const char *row = rows + cell[c] * (int64_t)stride;
        for (int64_t n = 0; n < wide; n++) {
            const int64_t left = dim - n * WIDTH;
            Halves halves = {0};
            if (left >= WIDTH)
                memcpy(&halves, row + n * sizeof halves, sizeof halves);
            else if (left > 0)
                memcpy(&halves, row + n * sizeof halves, 8 * sizeof(int16_t)); /* rows have whole eights */
#if defined(__AVX512F__) && !defined(__clang__) /* for which gcc would make it of two halves */
            const Numbers numbers = (Numbers)_mm512_cvtepi16_epi32((__m256i)halves);
#else
            const Numbers numbers = __builtin_convertvector(halves, Numbers);
#endif
            to[n] = NAME(widened)(numbers << 16);
        }
    }
}

#if WIDTH == 16
#define EVEN1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define ODD1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define EVEN2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define ODD2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define EVEN4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define ODD4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define SWAP1 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#define SWAP2 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13
#define SWAP4 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11
#define SWAP8 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7
#define BITS (Numbers){1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768}
#define EVEN8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define ODD8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#else
#define EVEN1 0, 8, 2, 10, 4, 12, 6, 14
#define ODD1 1, 9, 3, 11, 5, 13, 7, 15
#define EVEN2 0, 1, 8, 9, 4, 5, 12, 13
#define ODD2 2, 3, 10, 11, 6, 7, 14, 15
#define EVEN4 0, 1, 2, 3, 8, 9, 10, 11
#define ODD4 4, 5, 6, 7, 12, 13, 14, 15
#define SWAP1 1, 0, 3, 2, 5, 4, 7, 6
#define SWAP2 2, 3, 0, 1, 6, 7, 4, 5
#define SWAP4 4, 5, 6, 7, 0, 1, 2, 3
#define BITS (Numbers){1, 2, 4, 8, 16, 32, 64, 128}
#endif

#define EXCHANGE(step)                                                          \
    _Pragma("GCC unroll 16") for (int i = 0; i < WIDTH; i++) if (!(i & step)) { \
        const Numbers a = x[i], b = x[i + step];                                \
        x[i] = SHUFFLE(a, b, EVEN##step);                                       \
        x[i + step] = SHUFFLE(a, b, ODD##step);                             \
    }

/* Rows of K, turned around: pairs of values are, in squares of WIDTH by WIDTH, and then taken apart. Columns up to the
 * end of a register are those of any cell. */
static void NAME(turn)(const char *restrict rows, size_t stride, const int64_t *restrict cell, int64_t cells, int64_t dim,
                       Vector *restrict to) {
    for (int64_t n = 0; n * WIDTH < cells; n++) {
        const char *row[WIDTH];
        for (int64_t i = 0; i < WIDTH; i++) row[i] = rows + cell[n * WIDTH + i < cells ? n * WIDTH + i : 0] * (int64_t)stride;
        int64_t d = 0;
        for (; d + 2 * WIDTH <= dim; d += 2 * WIDTH) {
            Numbers x[WIDTH];
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; i++) memcpy(x + i, row[i] + d * sizeof(int16_t), sizeof x[i]);
            EXCHANGE(1)
            EXCHANGE(2)
            EXCHANGE(4)
#if WIDTH == 16
            EXCHANGE(8)
#endif
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; i++) {
                to[(d + 2 * i) * ACROSS + n] = NAME(widened)(x[i] << 16);
                to[(d + 2 * i + 1) * ACROSS + n] = NAME(widened)(x[i]);
            }
        }
        for (; d < dim; d++) {
            Numbers high;
            for (int64_t i = 0; i < WIDTH; i++) high[i] = (int32_t)((uint32_t)((const uint16_t *)row[i])[d] << 16);
            to[d * ACROSS + n] = NAME(widened)(high);
        }
    }
}

/* Of `rows` rows c (+)= sum over i < steps of a[i] * b[i], registers `first` to `first + at`. */
static inline __attribute__((always_inline)) void NAME(block)(const float *restrict a, int64_t a_row, int64_t steps,
                                                              const Vector *restrict b, int64_t b_row, Vector *restrict c,
                                                              int64_t c_row, const int32_t *restrict lane, int64_t first,
                                                              const int rows, const int at, const bool add) {
    Vector sum[8][ABREAST];
    const float *from[8];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        from[r] = a + lane[r] * a_row;
#pragma GCC unroll 4
        for (int n = 0; n < at; n++) sum[r][n] = add ? c[lane[r] * c_row + first + n] : (Vector){0};
    }
    for (int64_t i = 0; i < steps; i++) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const float one = from[r][i];
#pragma GCC unroll 4
            for (int n = 0; n < at; n++) sum[r][n] += b[i * b_row + first + n] * one;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int n = 0; n < at; n++) c[lane[r] * c_row + first + n] = sum[r][n];
}

#define BLOCK(rows, at) NAME(block)(a, a_row, steps, b, b_row, c, c_row, lane + r, n, rows, at, add)

/* The same for the rows `lane`, and the first `vectors` registers. */
static void NAME(product)(const float *restrict a, int64_t a_row, int64_t steps, const Vector *restrict b, int64_t b_row,
                          Vector *restrict c, int64_t c_row, const int32_t *restrict lane, int64_t lanes, int64_t vectors,
                          bool add) {
    if (vectors % ABREAST == 0)
        for (int64_t n = 0; n < vectors; n += ABREAST) {
            int64_t r = 0;
            for (; r + 4 <= lanes; r += 4) BLOCK(4, ABREAST);
            if (lanes - r == 3) BLOCK(3, ABREAST);
            if (lanes - r == 2) BLOCK(2, ABREAST);
            if (lanes - r == 1) BLOCK(1, ABREAST);
        }
    else
        for (int64_t n = 0; n < vectors; n++) {
            int64_t r = 0;
            for (; r + 8 <= lanes; r += 8) BLOCK(8, 1);
            for (; r + 3 <= lanes; r += 3) BLOCK(3, 1);
            for (; r < lanes; r++) BLOCK(1, 1);
        }
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

static inline float NAME(power_of)(float x) { return NAME(power)((Vector){0} + x)[0]; }

static inline Vector NAME(chosen)(Numbers which, Vector one, Vector other) {
    return (Vector)(((Numbers)one & which) | ((Numbers)other & ~which));
}

static inline Vector NAME(larger)(Vector a, Vector b) { return NAME(chosen)(a > b, a, b); }

/* One row, of whose registers `at` may hold what is seen: scores become weights, and what was summed up before is brought
 * to the new maximum. Sums are made by halves, of all CELLS, then of half of them, and so on. */
static inline __attribute__((always_inline)) void NAME(weigh)(Vector *restrict scores, const int at, uint64_t seen,
                                                              float *restrict most, float *restrict total,
                                                              Vector *restrict out, int64_t wide) {
    const Vector hidden = (Vector){0} - INFINITY;
    Vector row[ACROSS], tops;
#pragma GCC unroll 8
    for (int n = 0; n < at; n++) row[n] = scores[n];
    if (seen != ~(uint64_t)0) {
#pragma GCC unroll 8
        for (int n = 0; n < at; n++) {
            const Numbers bits = (Numbers){0} + (int32_t)(seen >> n * WIDTH & ((1 << WIDTH) - 1));
            row[n] = NAME(chosen)((bits & BITS) != 0, row[n], hidden);
        }
    }
    tops = row[0];
#pragma GCC unroll 8
    for (int n = 1; n < at; n++) tops = NAME(larger)(tops, row[n]);
#if WIDTH == 16
    tops = NAME(larger)(tops, SHUFFLE(tops, tops, SWAP8));
#endif
    tops = NAME(larger)(tops, SHUFFLE(tops, tops, SWAP4));
    tops = NAME(larger)(tops, SHUFFLE(tops, tops, SWAP2));
    tops = NAME(larger)(tops, SHUFFLE(tops, tops, SWAP1));
    const float before = *most, top = tops[0] > before ? tops[0] : before, base = top == -INFINITY ? 0 : top;
#pragma GCC unroll 8
    for (int n = 0; n < at; n++) scores[n] = row[n] = NAME(power)(row[n] - base);
#pragma GCC unroll 8
    for (int n = at; n < ACROSS; n++) row[n] = (Vector){0};
#pragma GCC unroll 4
    for (int half = ACROSS / 2; half; half /= 2)
#pragma GCC unroll 4
        for (int n = 0; n < half; n++) row[n] += row[n + half];
#if WIDTH == 16
    row[0] += SHUFFLE(row[0], row[0], SWAP8);
#endif
    row[0] += SHUFFLE(row[0], row[0], SWAP4);
    row[0] += SHUFFLE(row[0], row[0], SWAP2);
    row[0] += SHUFFLE(row[0], row[0], SWAP1);
    const float sum = row[0][0];
    if (before == -INFINITY) {
        for (int64_t n = 0; n < wide; n++) out[n] = (Vector){0};
        *total = sum;
    } else if (top > before) {
        const float less = NAME(power_of)(before - base);
        for (int64_t n = 0; n < wide; n++) out[n] *= less;
        *total = *total * less + sum;
    } else
        *total += sum;
    *most = top;
}

/* Add what some cells come to. */
static void NAME(merge)(struct Part sum, struct Part part, int64_t lanes, int64_t wide) {
    for (int64_t l = 0; l < lanes; l++) {
        Vector *to = sum.out + l * wide, *from = part.out + l * wide;
        if (part.most[l] == -INFINITY) continue;
        if (sum.most[l] == -INFINITY) {
            memcpy(to, from, (size_t)wide * sizeof *to);
            sum.most[l] = part.most[l], sum.total[l] = part.total[l];
            continue;
        }
        const float top = sum.most[l] > part.most[l] ? sum.most[l] : part.most[l];
        const float less = NAME(power_of)(sum.most[l] - top), other = NAME(power_of)(part.most[l] - top);
        for (int64_t n = 0; n < wide; n++) to[n] = to[n] * less + from[n] * other;
        sum.total[l] = sum.total[l] * less + part.total[l] * other;
        sum.most[l] = top;
    }
}

static void NAME(attend)(const struct tensor *node, const struct plan *plan, const struct sight *sight, int64_t head,
                         const int32_t *tokens, const struct Tile *tile, int64_t wide, struct Scratch *s, struct Part part) {
    const struct tensor *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    const int64_t filled = (tile->cells + WIDTH - 1) / WIDTH;
    const int64_t vectors = filled > ABREAST / 2 ? rounded_up(filled, ABREAST) : filled;
    int32_t lane[LANES];
    int64_t lanes = 0;
    for (int64_t t = 0; t < tile->tokens; t++)
        for (int64_t g = 0; g < plan->group; g++) lane[lanes++] = (int32_t)(tile->token[t] * plan->group + g);
    NAME(turn)((const char *)k->data + head * k->nb[2], k->nb[1], tile->cell, tile->cells, plan->dim, s->k);
    for (int64_t c = 0; c < tile->cells; c++) /* meanwhile */
        for (int64_t at = 0; at < plan->dim * (int64_t)sizeof(int16_t); at += LINE_BYTES)
            __builtin_prefetch((const char *)v->data + head * v->nb[2] + tile->cell[c] * (int64_t)v->nb[1] + at);
    NAME(product)(s->queries, plan->dim, plan->dim, s->k, ACROSS, s->scores, ACROSS, lane, lanes, vectors, false);
    for (int64_t t = 0; t < tile->tokens; t++) {
        const int64_t first = tile->token[t] * plan->group;
        if (sight->biased[tokens[tile->token[t]]]) {
            const char *row = (const char *)mask->data + tokens[tile->token[t]] * mask->nb[1];
            for (int64_t c = 0; c < tile->cells; c++)
                for (int64_t g = 0; g < plan->group; g++)
                    ((float *)(s->scores + (first + g) * ACROSS))[c] +=
                        _cvtsh_ss(((const uint16_t *)row)[tile->cell[c]]) * LOG2_E;
        }
        for (int64_t l = first; l < first + plan->group; l++) {
            Vector *scores = s->scores + l * ACROSS, *out = part.out + l * wide;
            if (vectors > ACROSS / 2)
                NAME(weigh)(scores, ACROSS, tile->seen[t], part.most + l, part.total + l, out, wide);
            else
                NAME(weigh)(scores, ACROSS / 2, tile->seen[t], part.most + l, part.total + l, out, wide);
        }
    }
    NAME(widen)((const char *)v->data + head * v->nb[2], v->nb[1], tile->cell, tile->cells, plan->dim, wide, s->v);
    NAME(product)((const float *)s->scores, CELLS, tile->cells, s->v, wide, part.out, wide, lane, lanes, wide, true);
}

/* What the cells of one part come to, for the given tokens. */
static void NAME(compute_part)(const struct tensor *node, const struct plan *plan, const struct sight *sight, int64_t head,
                               const int32_t *tokens, int64_t count, int64_t number, int64_t wide, struct Scratch *s,
                               struct Part part) {
    struct Tile tile;
    for (int64_t l = 0; l < count * plan->group; l++) part.most[l] = -INFINITY, part.total[l] = 0;
    if (number < plan->parts - 1) {
        const int64_t last = (number + 1) * SPAN < plan->tiles ? (number + 1) * SPAN : plan->tiles;
        for (int64_t at = number * SPAN; at < last; at++) {
            tile.tokens = 0;
            for (int64_t t = 0; t < count; t++) {
                const uint64_t seen = sight->seen[tokens[t] * plan->tiles + at];
                if (__builtin_popcountll(seen) < DENSE) continue;
                tile.token[tile.tokens] = t, tile.seen[tile.tokens++] = seen;
            }
            if (!tile.tokens) continue;
            tile.cells = plan->cells - at * CELLS < CELLS ? plan->cells - at * CELLS : CELLS;
            for (int64_t c = 0; c < tile.cells; c++) tile.cell[c] = at * CELLS + c;
            NAME(attend)(node, plan, sight, head, tokens, &tile, wide, s, part);
        }
        return;
    }
    tile.tokens = 1;
    for (int64_t t = 0; t < count; t++) {
        tile.token[0] = t, tile.seen[0] = ~(uint64_t)0, tile.cells = 0;
        for (int64_t at = 0; at < plan->tiles; at++) {
            uint64_t seen = sight->seen[tokens[t] * plan->tiles + at];
            if (__builtin_popcountll(seen) >= DENSE) continue;
            for (; seen; seen &= seen - 1) {
                tile.cell[tile.cells++] = at * CELLS + __builtin_ctzll(seen);
                if (tile.cells < CELLS) continue;
                NAME(attend)(node, plan, sight, head, tokens, &tile, wide, s, part);
                tile.cells = 0;
            }
        }
        tile.seen[0] = ((uint64_t)1 << tile.cells) - 1;
        if (tile.cells) NAME(attend)(node, plan, sight, head, tokens, &tile, wide, s, part);
    }
}

static void NAME(unit)(struct tensor *node, const struct plan *plan, struct sight *sight, int64_t number) {
    const struct tensor *q = node->src[0];
    const int64_t piece = plan->split ? number / plan->parts : number;
    const int64_t head = piece % plan->heads, block = piece / plan->heads, left = plan->tokens - block * plan->each;
    const int64_t count = left < plan->each ? left : plan->each, lanes = count * plan->group;
    const int64_t wide = rounded_up(plan->dim, ABREAST * WIDTH) / WIDTH;
    const int32_t *tokens = sight->order + block * plan->each;
    struct Scratch s;
    struct Part sum = {s.sum_most, s.sum_total, s.sum}, part = {s.part_most, s.part_total, s.part};
    for (int64_t t = 0; t < count; t++)
        for (int64_t g = 0; g < plan->group; g++) {
            const char *row = (const char *)q->data + tokens[t] * q->nb[1] + (head * plan->group + g) * q->nb[2];
            float *to = s.queries + (t * plan->group + g) * plan->dim;
            for (int64_t d = 0; d < plan->dim; d++) to[d] = ((const float *)row)[d] * plan->scale * LOG2_E;
        }
    for (int64_t l = 0; l < lanes; l++) sum.most[l] = -INFINITY, sum.total[l] = 0;
    if (plan->split) {
        const int64_t floats = 2 * LANES + plan->each * plan->group * wide * WIDTH;
        float *parts = sight->parts + piece * plan->parts * floats, *own = parts + number % plan->parts * floats;
        part = (struct Part){own, own + LANES, (Vector *)(own + 2 * LANES)};
        NAME(compute_part)(node, plan, sight, head, tokens, count, number % plan->parts, wide, &s, part);
        if (atomic_fetch_add(sight->finished + piece, 1) + 1 < plan->parts) return;
        atomic_store(sight->finished + piece, 0);
        for (int64_t p = 0; p < plan->parts; p++, parts += floats)
            NAME(merge)(sum, (struct Part){parts, parts + LANES, (Vector *)(parts + 2 * LANES)}, lanes, wide);
    } else
        for (int64_t p = 0; p < plan->parts; p++) {
            NAME(compute_part)(node, plan, sight, head, tokens, count, p, wide, &s, part);
            NAME(merge)(sum, part, lanes, wide);
        }
    for (int64_t t = 0; t < count; t++)
        for (int64_t g = 0; g < plan->group; g++) {
            char *row = (char *)node->data + (head * plan->group + g) * node->nb[1] + tokens[t] * node->nb[2];
            const int64_t l = t * plan->group + g;
            const bool any = sum.total[l] > 0;
            const float share = any ? 1 / sum.total[l] : 0, *from = (const float *)(sum.out + l * wide);
            for (int64_t d = 0; d < plan->dim; d++) ((float *)row)[d] = any ? from[d] * share : 0;
        }
}

#undef Vector
#undef Numbers
#undef Halves
#undef Part
#undef Tile
#undef Scratch
#undef ACROSS
#undef EVEN1
#undef ODD1
#undef EVEN2
#undef ODD2
#undef EVEN4
#undef ODD4
#undef EVEN8
#undef ODD8
#undef SWAP1
#undef SWAP2
#undef SWAP4
#undef SWAP8
#undef BITS
#undef EXCHANGE
#undef BLOCK
#undef NAME
#undef WIDTH
#undef ABREAST
