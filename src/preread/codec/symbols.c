/* Integers to bits and back: interleaved range asymmetric numeral systems with fixed tables, made for coefficients of KV.
 *
 * The coder is rANS (Duda, arXiv 1311.2540) with 32-bit states and 16-bit words, four states in turn (Giesen, arXiv
 * 1402.3392), probabilities of 12 bits. All is integer arithmetic, so every machine writes and reads the same bits.
 *
 * Coefficients are told apart by how large they are expected to be. That follows from a component's class (how large its
 * symbols are on the calibration text), from the same component of the two tokens before, and from the components just
 * before in this token, each compared with what is usual for its class. Class and these two ratios choose a level, and
 * each level has a table of probabilities. Nothing adapts: so a short segment costs no more than a long one, and what is
 * to be decoded next depends on little that has just been decoded, which keeps the processor busy.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    CLASSES = 24,
    AROUND = 9,     /* ratios of the components before in this token */
    BEFORE = 8,     /* ratios of the same component in the two tokens before */
    LEVELS = 32,
    ALPHABET = 32,  /* -15 … 15, and what stands for all others */
    LARGEST = 15,
    OTHER = 31,
    BITS = 12,
    BLOCK = 16,     /* components between two looks at the ratio of those before */
    BLOCKS = 4,     /* so many blocks are looked back */
    STATES = 4,
    LOW = 1 << 16,  /* states are at least this */
    PREVIOUS = 3 * LARGEST + 1,
};

/* What the symbols of a profile are coded with. means: of sizes, by class, in 1/256; levels: by class, ratio of those
 * around, ratio of those before; frequencies: by level and symbol, each level's sum 2^BITS. */
typedef struct {
    const uint16_t *means;
    const uint8_t *levels;
    const uint16_t *frequencies;
} Coder;

/* 2^((i - 3.5) / 2), in 1/256: between the ratios 2^((i - 4) / 2) and 2^((i - 3) / 2). */
static const uint32_t BOUNDS[AROUND - 1] = {76, 108, 152, 215, 304, 431, 609, 861};

/* The ratio of what was seen and what was to be expected (in 1/256, both with half a symbol added) as an index. */
static inline int ratio(uint32_t seen, uint32_t expected, int first, int indices) {
    uint64_t a = (uint64_t)(seen + 128) << 8, b = expected + 128;
    int index = 0;
    for (int i = 0; i < indices - 1; i++) index += a >= b * BOUNDS[first + i];
    return index;
}

/* Sizes are counted in units of 2^shift: the bits below are as good as random. */
static inline int shift_of(int k) { return k > 12 ? (k - 11) / 2 : 0; }

static inline int capped(int size) { return size < LARGEST ? size : LARGEST; }

/* What is known before a token is coded. */
typedef struct {
    int64_t components, blocks;
    const uint8_t *classes;
    const Coder *coder;
    uint8_t previous[CLASSES][PREVIOUS]; /* ratio index of twice the size before plus that earlier */
    uint32_t *expected;                  /* of the blocks that are looked back to, for each block */
    uint8_t *before, *earlier;           /* sizes of two tokens */
    uint16_t *places;                    /* where in the levels a component's class and the ratio of these stand */
    uint8_t *shifted;                    /* whether a block has symbols with plain bits */
} Context;

static int context_start(Context *x, const Coder *coder, int64_t components, const uint8_t *classes) {
    x->components = components;
    x->blocks = (components + BLOCK - 1) / BLOCK;
    x->classes = classes;
    x->coder = coder;
    for (int k = 0; k < CLASSES; k++)
        for (int n = 0; n < PREVIOUS; n++)
            x->previous[k][n] = (uint8_t)ratio(256u * (uint32_t)n, 3u * coder->means[k], 1, BEFORE);
    int64_t room = x->blocks * BLOCK;
    x->expected = calloc((size_t)x->blocks + 1, sizeof *x->expected);
    x->shifted = calloc((size_t)(room * 2 + x->blocks) + 1, 1);
    x->places = calloc((size_t)room + 1, sizeof *x->places);
    if (!x->expected || !x->shifted || !x->places) return 0;
    x->before = x->shifted + x->blocks;
    x->earlier = x->before + room;
    for (int64_t c = 0; c < components; c++) { /* nothing comes before the first token: what is usual */
        x->before[c] = x->earlier[c] = (uint8_t)capped((coder->means[classes[c]] + 128) >> 8);
        x->shifted[c / BLOCK] |= shift_of(classes[c]) > 0;
    }
    for (int64_t b = 1; b < x->blocks; b++)
        for (int64_t c = b > BLOCKS ? (b - BLOCKS) * BLOCK : 0; c < b * BLOCK; c++)
            x->expected[b] += coder->means[classes[c]];
    return 1;
}

static void context_end(Context *x) {
    free(x->expected);
    free(x->shifted);
    free(x->places);
}

static inline void context_token(Context *x) {
    for (int64_t c = 0; c < x->components; c++) {
        const int k = x->classes[c];
        x->places[c] = (uint16_t)(k * (AROUND * BEFORE) + x->previous[k][2 * x->before[c] + x->earlier[c]]);
    }
}

/* The sizes of this token take the place of the earlier ones: `earlier` may be written while the token is coded. */
static inline void context_next(Context *x) {
    uint8_t *now = x->earlier;
    x->earlier = x->before;
    x->before = now;
}

/* Sum of the sizes in the blocks looked back to. */
static inline uint32_t around(const uint32_t *sums, int64_t block) {
    uint32_t sum = 0;
    for (int64_t b = block > BLOCKS ? block - BLOCKS : 0; b < block; b++) sum += sums[b];
    return sum;
}

/* Ratio indices of one block's symbols, `AROUND` by `BEFORE`, for the fit. Returns 0, or -1 without memory. */
int preread_symbols_contexts(const int16_t *q, int64_t tokens, int64_t components, const uint8_t *classes,
                             const uint16_t *means, uint8_t *out) {
    Coder coder = {means, NULL, NULL};
    Context x;
    int ready = context_start(&x, &coder, components, classes);
    uint32_t *sums = calloc((size_t)x.blocks + 1, sizeof *sums);
    for (int64_t t = 0; ready && sums && t < tokens; t++, context_next(&x)) {
        context_token(&x);
        for (int64_t b = 0; b < x.blocks; b++) {
            int64_t stop = (b + 1) * BLOCK < components ? (b + 1) * BLOCK : components;
            int row = ratio(256u * around(sums, b), x.expected[b], 0, AROUND);
            sums[b] = 0;
            for (int64_t c = b * BLOCK; c < stop; c++) {
                int size = q[t * components + c];
                size = capped((size < 0 ? -size : size) >> shift_of(classes[c]));
                out[t * components + c] = (uint8_t)(row * BEFORE + x.places[c] % BEFORE);
                x.earlier[c] = (uint8_t)size;
                sums[b] += (uint32_t)size;
            }
        }
    }
    int done = ready && sums;
    free(sums);
    context_end(&x);
    return done ? 0 : -1;
}

/* For each level, what each of the 2^BITS slots stands for: symbol, frequency less one, and distance from its first. */
void preread_symbols_slots(const uint16_t *frequencies, uint32_t *slots) {
    for (int level = 0; level < LEVELS; level++) {
        uint32_t at = 0;
        for (uint32_t s = 0; s < ALPHABET; s++) {
            uint32_t frequency = frequencies[level * ALPHABET + s];
            for (uint32_t n = 0; n < frequency && at < 1u << BITS; n++, at++)
                slots[(level << BITS) + at] = s | (frequency - 1) << 5 | n << 17;
        }
    }
}

/* Bits that are written as they are. */
typedef struct {
    uint8_t *bytes;
    int64_t bits, room; /* room in bytes */
} Plain;

static void put_bits(Plain *p, uint32_t value, int count) {
    while (count > 0) {
        const int64_t byte = p->bits / 8;
        const int at = (int)(p->bits % 8), here = 8 - at < count ? 8 - at : count;
        if (byte < p->room) p->bytes[byte] = (uint8_t)((at ? p->bytes[byte] : 0) | (value & ((1u << here) - 1)) << at);
        value >>= here;
        count -= here;
        p->bits += here;
    }
}

static uint32_t take_bits(const uint8_t *bytes, int64_t size, int64_t *at, int count) {
    uint32_t value = 0;
    for (int n = 0; n < count; n++, (*at)++)
        if (*at / 8 < size) value |= (uint32_t)((bytes[*at / 8] >> (*at % 8)) & 1) << n;
    return value;
}

/* What a symbol that no table has is written as: sign, how many bits its size has, and these. */
static void put_other(Plain *p, int value) {
    uint32_t size = (uint32_t)(value < 0 ? -value : value);
    int bits = 0;
    while (size >> (bits + 1)) bits++;
    put_bits(p, (uint32_t)(value < 0) | (uint32_t)bits << 1, 5);
    put_bits(p, size, bits);
}

static int take_other(const uint8_t *bytes, int64_t size, int64_t *at) {
    uint32_t head = take_bits(bytes, size, at, 5);
    int bits = (int)(head >> 1), value = (int)take_bits(bytes, size, at, bits) | 1 << bits;
    return head & 1 ? -value : value;
}

static inline int bits_of(int value) {
    int bits = 0;
    for (int size = value < 0 ? -value : value; size >> (bits + 1);) bits++;
    return bits;
}

/* log2 of a 12-bit frequency as a price in bits, for the encoder's choices only. */
static float price_of_slot(uint32_t f) {
    uint32_t whole = 0;
    while (f >> (whole + 1)) whole++;
    float m = (float)f / (float)(1u << whole); /* 1 to 2; this parabola is within 0.01 of log2 */
    return (float)BITS - ((float)whole + (m - 1) * (1.3437f - 0.3437f * (m - 1)));
}

/* What each symbol costs in each level: those that a level lacks are written as another. */
static void prices(const uint16_t *frequencies, float *price) {
    for (int i = 0; i < LEVELS; i++, frequencies += ALPHABET, price += ALPHABET) {
        price[OTHER] = price_of_slot(frequencies[OTHER]);
        for (int s = 0; s < OTHER; s++)
            price[s] = frequencies[s] ? price_of_slot(frequencies[s]) : price[OTHER] + 5 + (float)bits_of(s - LARGEST);
    }
}

static inline float price_of(const float *price, int value) {
    return value >= -LARGEST && value <= LARGEST ? price[value + LARGEST] : price[OTHER] + 5 + (float)bits_of(value);
}

/* The cheapest size of large coefficients and of those with plain bits: the nearest, the next smaller one, or zero. */
static int cheapest(float size, int sign, int high, int shift, const float *costs, float lambda, const float *bias) {
    float least = 0;
    int best = high;
    for (int n = 0; high && n < 3; n++) {
        int s = n == 2 ? 0 : high - n;
        float at = s == 0 ? 0 : (float)s - bias[s > 1];
        float cost = (size - at) * (size - at) + lambda * (price_of(costs, sign * (s >> shift)) + (float)(s ? shift : 0));
        if (n == 0 || cost < least) { least = cost; best = s; }
    }
    return best;
}

/* Quantise `tokens` rows of `components` coefficients, in units of the step, into symbols and their levels. */
static void quantise(const float *restrict y, int64_t tokens, Context *x, const float *restrict price, float lambda,
                     const float *bias, uint32_t *restrict sums, int16_t *restrict q, uint8_t *restrict levels, Plain *plain) {
    const uint8_t *restrict classes = x->classes, *restrict choice = x->coder->levels;
    const uint16_t *restrict frequencies = x->coder->frequencies, *restrict places = x->places;
    float at[LARGEST + 1];
    for (int s = 0; s <= LARGEST; s++) at[s] = s == 0 ? 0 : (float)s - bias[s > 1];
    for (int64_t t = 0; t < tokens; t++, context_next(x)) {
        uint8_t *restrict sizes = x->earlier;
        context_token(x);
        for (int64_t b = 0; b < x->blocks; b++) {
            int64_t stop = (b + 1) * BLOCK < x->components ? (b + 1) * BLOCK : x->components;
            int row = ratio(256u * around(sums, b), x->expected[b], 0, AROUND) * BEFORE;
            uint32_t sum = 0;
            for (int64_t c = b * BLOCK; c < stop; c++, y++, q++, levels++) {
                const int shift = shift_of(classes[c]), level = *levels = choice[row + places[c]];
                const float *costs = price + level * ALPHABET;
                uint32_t word;
                memcpy(&word, y, sizeof word);
                const int negative = (int)(word >> 31), sign = 1 - 2 * negative;
                word &= 0x7FFFFFFF;
                float size;
                memcpy(&size, &word, sizeof size);
                const int high = size < 32000.0f ? (int)(size + 0.5f) : 32000;
                int best = high;
                if (shift || high > LARGEST) {
                    best = cheapest(size, sign, high, shift, costs, lambda, bias);
                } else { /* the same without a branch, which could not be foreseen */
                    const int less = high - (high > 0);
                    const float zero = size * size + lambda * costs[LARGEST];
                    const float one = (size - at[less]) * (size - at[less]) + lambda * costs[LARGEST + sign * less];
                    float least = (size - at[high]) * (size - at[high]) + lambda * costs[LARGEST + sign * high];
                    best -= (one < least) & (high > 0);
                    least = one < least ? one : least;
                    best &= (zero < least) - 1;
                }
                const int coarse = best >> shift;
                *q = (int16_t)(sign * best);
                sizes[c] = (uint8_t)capped(coarse);
                sum += (uint32_t)capped(coarse);
                if (coarse > LARGEST || !frequencies[level * ALPHABET + LARGEST + sign * coarse])
                    put_other(plain, sign * coarse);
                if (shift) put_bits(plain, (uint32_t)best & ((1u << shift) - 1), shift);
                if (shift && !coarse && best) put_bits(plain, (uint32_t)negative, 1);
            }
            sums[b] = sum;
        }
    }
}

static void put_u32(uint8_t *out, uint32_t value) {
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t get_u32(const uint8_t *in) {
    return in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

static inline uint32_t get_u16(const uint8_t *in) {
    uint16_t word;
    memcpy(&word, in, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = (uint16_t)(word << 8 | word >> 8);
#endif
    return word;
}

/* Write symbols backwards, as the coder wants it: words end up in the order in which they are read.
 * Returns the number of bytes, states included, or -1 when they do not fit. */
static int64_t encode(const int16_t *q, const uint8_t *levels, int64_t tokens, const Context *x, uint8_t *out, int64_t room) {
    const uint16_t *frequencies = x->coder->frequencies;
    uint16_t firsts[LEVELS * ALPHABET];
    uint64_t inverses[LEVELS * ALPHABET]; /* 2^44 / frequency, rounded up: exact for states of 32 bits, frequencies of 12 */
    for (int level = 0; level < LEVELS; level++)
        for (uint32_t s = 0, at = 0; s < ALPHABET; at += frequencies[level * ALPHABET + s], s++) {
            const uint32_t frequency = frequencies[level * ALPHABET + s];
            firsts[level * ALPHABET + s] = (uint16_t)at;
            inverses[level * ALPHABET + s] = frequency ? (1ull << 44) / frequency + 1 : 0;
        }
    uint32_t states[STATES] = {LOW, LOW, LOW, LOW};
    int64_t at = room;
    const int64_t components = x->components;
    const uint8_t *restrict classes = x->classes;
    for (int64_t t = tokens; t-- > 0;) {
        for (int64_t c = components; c-- > 0;) {
            int value = q[t * components + c], shift = shift_of(classes[c]);
            value = value < 0 ? -(-value >> shift) : value >> shift;
            int base = levels[t * components + c] * ALPHABET;
            int symbol = value >= -LARGEST && value <= LARGEST ? value + LARGEST : OTHER;
            if (!frequencies[base + symbol]) symbol = OTHER;
            uint32_t frequency = frequencies[base + symbol], *state = &states[c & (STATES - 1)];
            if (*state >= (uint64_t)frequency << 20) {
                if (at < 2) return -1;
                out[--at] = (uint8_t)(*state >> 8);
                out[--at] = (uint8_t)*state;
                *state >>= 16;
            }
            const uint32_t times = (uint32_t)(((unsigned __int128)*state * inverses[base + symbol]) >> 44);
            *state = (times << BITS) + (*state - times * frequency) + firsts[base + symbol];
        }
    }
    if (at < 4 * STATES) return -1;
    at -= 4 * STATES;
    for (int i = 0; i < STATES; i++) put_u32(out + at + 4 * i, states[i]);
    memmove(out, out + at, (size_t)(room - at));
    return room - at;
}

/* Quantise and write `tokens` rows of `components` coefficients, in units of the step.
 * y: coefficients; classes: of each component; lambda: what a bit is worth, in squared steps; bias: how far the reader
 * puts sizes 1 and larger towards zero; q: gets the symbols; out: room bytes.
 * Layout: u32 bytes of words and states, states, words, plain bits. Returns the number of bytes, or -1 when there was too
 * little memory or room. */
int64_t preread_symbols_write(const float *y, int64_t tokens, int64_t components, const uint8_t *classes,
                              const uint16_t *means, const uint8_t *levels, const uint16_t *frequencies, float lambda,
                              const float *bias, int16_t *q, uint8_t *out, int64_t room) {
    Coder coder = {means, levels, frequencies};
    Context x;
    int ready = context_start(&x, &coder, components, classes);
    float *price = malloc(LEVELS * ALPHABET * sizeof *price);
    uint32_t *sums = calloc((size_t)x.blocks + 1, sizeof *sums);
    uint8_t *chosen = malloc((size_t)(tokens * components) + 1), *bits = malloc((size_t)(4 * tokens * components) + 8);
    int64_t size = -1;
    if (ready && price && sums && chosen && bits && room > 4) {
        Plain plain = {bits, 0, 4 * tokens * components + 8};
        prices(frequencies, price);
        quantise(y, tokens, &x, price, lambda, bias, sums, q, chosen, &plain);
        int64_t words = encode(q, chosen, tokens, &x, out + 4, room - 4), rest = (plain.bits + 7) / 8;
        if (words >= 0 && 4 + words + rest <= room) {
            put_u32(out, (uint32_t)words);
            memcpy(out + 4 + words, bits, (size_t)rest);
            size = 4 + words + rest;
        }
    }
    free(price);
    free(sums);
    free(chosen);
    free(bits);
    context_end(&x);
    return size;
}

/* Symbols that stand for what is written plainly. Returns 0 when one is too large for any writer. */
static int complete(const Context *x, int64_t first, int64_t stop, const uint8_t *plain, int64_t size, int64_t *at, int16_t *row) {
    for (int64_t c = first; c < stop; c++) {
        int value = row[c], shift = shift_of(x->classes[c]);
        if (value == OTHER - LARGEST) value = take_other(plain, size, at);
        if (shift) {
            int low = (int)take_bits(plain, size, at, shift), negative = value < 0;
            if (!value && low) negative = (int)take_bits(plain, size, at, 1);
            value = ((negative ? -value : value) << shift) | low;
            value = negative ? -value : value;
        }
        if (value > 32000 || value < -32000) return 0;
        row[c] = (int16_t)value;
    }
    return 1;
}

/* Note the sizes of a block's symbols, and their sum. Returns the largest symbol. */
static inline int sized(Context *x, int64_t first, int64_t stop, const int16_t *restrict row, uint32_t *sum) {
    uint8_t *restrict sizes = x->earlier;
    int16_t added = 0, largest = -LARGEST;
    for (int64_t c = first; c < stop; c++) {
        const int16_t size = (int16_t)(row[c] < 0 ? -row[c] : row[c]);
        sizes[c] = (uint8_t)size;
        added = (int16_t)(added + size);
        largest = largest > row[c] ? largest : row[c];
    }
    *sum = (uint32_t)added;
    return largest;
}

/* The same where some have bits that were written plainly. Returns the sum. */
static uint32_t coarse(Context *x, int64_t first, int64_t stop, const int16_t *row) {
    uint32_t sum = 0;
    for (int64_t c = first; c < stop; c++) {
        x->earlier[c] = (uint8_t)capped((row[c] < 0 ? -row[c] : row[c]) >> shift_of(x->classes[c]));
        sum += x->earlier[c];
    }
    return sum;
}

/* Read what `preread_symbols_write` wrote; slots: as `preread_symbols_slots` makes them of valid frequencies.
 * Returns 0, or -1 when the bytes are not exactly that many symbols. */
int preread_symbols_read(const uint8_t *in, int64_t size, int64_t tokens, int64_t components, const uint8_t *classes,
                         const uint16_t *means, const uint8_t *levels, const uint32_t *slots, int16_t *q) {
    if (size < 4 + 4 * STATES) return -1;
    int64_t words = get_u32(in), bit = 0;
    if (words < 4 * STATES || words % 2 || words > size - 4) return -1;
    const uint8_t *at = in + 4 + 4 * STATES, *end = in + 4 + words, *plain = end;
    const int64_t plain_size = size - 4 - words;
    Coder coder = {means, levels, NULL};
    Context x;
    int good = context_start(&x, &coder, components, classes);
    uint32_t *sums = calloc((size_t)x.blocks + 1, sizeof *sums);
    good = good && sums;
    uint32_t states[STATES];
    for (int i = 0; i < STATES; i++) states[i] = get_u32(in + 4 + 4 * i);
    for (int64_t t = 0; good && t < tokens; t++, context_next(&x)) {
        int16_t *row = q + t * components;
        context_token(&x);
        for (int64_t b = 0; good && b < x.blocks; b++) {
            const int64_t first = b * BLOCK, stop = first + BLOCK < components ? first + BLOCK : components;
            const uint8_t *choice = levels + ratio(256u * around(sums, b), x.expected[b], 0, AROUND) * BEFORE;
            const int whole = stop - first == BLOCK && end - at >= 2 * BLOCK;
            const uint16_t *restrict places = x.places + first;
            int16_t *restrict found = row + first;
#define NEXT(n, state)                                                                                                  \
    {                                                                                                                   \
        const uint32_t slot = slots[((uint32_t)choice[places[n]] << BITS) + (state & ((1 << BITS) - 1))];               \
        state = (((slot >> 5) & ((1 << BITS) - 1)) + 1) * (state >> BITS) + (slot >> 17);                               \
        found[n] = (int16_t)((int)(slot & 31) - LARGEST);                                                               \
    }
            if (whole) { /* the same as below, without a look at the end of the words for each symbol */
                uint32_t s0 = states[0], s1 = states[1], s2 = states[2], s3 = states[3];
#define REFILL(state)                                                                                                   \
    {                                                                                                                   \
        const uint32_t more = (state << 16) | get_u16(at);                                                              \
        const int low = state < LOW;                                                                                    \
        state = low ? more : state;                                                                                     \
        at += 2 * low;                                                                                                  \
    }
                for (int n = 0; n < BLOCK; n += STATES) {
                    NEXT(n, s0) NEXT(n + 1, s1) NEXT(n + 2, s2) NEXT(n + 3, s3)
                    REFILL(s0) REFILL(s1) REFILL(s2) REFILL(s3)
                }
                states[0] = s0, states[1] = s1, states[2] = s2, states[3] = s3;
            } else {
                for (int64_t c = first; good && c < stop; c++) {
                    uint32_t *state = &states[c % STATES];
                    NEXT(c - first, *state)
                    if (*state >= LOW) continue;
                    good = end - at >= 2;
                    if (good) *state = (*state << 16) | get_u16(at), at += 2;
                }
            }
            if (!good) break;
            int largest = sized(&x, first, stop, row, &sums[b]);
            if (x.shifted[b] || largest == OTHER - LARGEST) {
                good = complete(&x, first, stop, plain, plain_size, &bit, row);
                sums[b] = coarse(&x, first, stop, row);
            }
        }
    }
    for (int i = 0; i < STATES; i++) good = good && states[i] == LOW;
    good = good && at == end && (bit + 7) / 8 == plain_size; /* all that was written was read, and nothing is left over */
    free(sums);
    context_end(&x);
    return good ? 0 : -1;
}
