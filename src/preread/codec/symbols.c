/* Integers to bits and back: an adaptive binary range coder, with contexts made for coefficients of KV.
 *
 * The coder is that of LZMA (Pavlov; after Martin, 1979): 32-bit range, 12 bits of probability used, carries resolved by a
 * cache byte. A probability is the mean of a fast and a slow estimate, as in VVC's CABAC (ITU-T H.266, 9.3.4.3.2). All is
 * integer arithmetic, so every machine writes and reads the same bits.
 *
 * A symbol is coded as: zero?, sign, larger than 1?, …, and what exceeds LADDER by an Elias-gamma code. What is likely
 * depends on the component's class (how large its symbols are on the calibration text) and on what was just coded: the
 * same component of the two tokens before, and the last components of this token.
 */
#include <stdint.h>
#include <stdlib.h>

#define CLASSES 24
#define LADDER 14
#define ZERO_CONTEXTS 48
#define MORE_CONTEXTS 4

typedef struct { uint16_t fast, slow; } Odds; /* probability that a bit is 0, of 2^16 */

typedef struct {
    Odds zero[CLASSES][ZERO_CONTEXTS];
    Odds more[CLASSES][MORE_CONTEXTS][LADDER];
} Model;

typedef struct {
    uint64_t low;
    uint32_t range;
    uint8_t cache;
    uint64_t pending;
    uint8_t *out;
    int64_t size, room;
} Writer;

typedef struct {
    uint32_t code, range;
    const uint8_t *in;
    int64_t at, size;
} Reader;

static void start(Model *model) {
    Odds even = {32768, 32768};
    for (int c = 0; c < CLASSES; c++) {
        for (int i = 0; i < ZERO_CONTEXTS; i++) model->zero[c][i] = even;
        for (int i = 0; i < MORE_CONTEXTS; i++)
            for (int j = 0; j < LADDER; j++) model->more[c][i][j] = even;
    }
}

static inline uint32_t odds(const Odds *p) {
    uint32_t mean = ((uint32_t)p->fast + p->slow) >> 5; /* 12 bits */
    return mean < 16 ? 16 : mean > 4080 ? 4080 : mean;
}

static inline void learn(Odds *p, int bit) {
    if (bit) {
        p->fast -= p->fast >> 5;
        p->slow -= p->slow >> 8;
    } else {
        p->fast += (65535 - p->fast) >> 5;
        p->slow += (65535 - p->slow) >> 8;
    }
}

static inline void put_byte(Writer *w, uint8_t byte) {
    if (w->size < w->room) w->out[w->size] = byte;
    w->size++;
}

static void shift(Writer *w) {
    if ((uint32_t)w->low < 0xFF000000u || (w->low >> 32)) {
        uint8_t carry = (uint8_t)(w->low >> 32);
        if (w->pending) {
            put_byte(w, (uint8_t)(w->cache + carry));
            while (--w->pending) put_byte(w, (uint8_t)(0xFF + carry));
        }
        w->cache = (uint8_t)(w->low >> 24);
    }
    w->pending++;
    w->low = (w->low & 0x00FFFFFFu) << 8;
}

static inline void write_bit(Writer *w, Odds *p, int bit) {
    uint32_t bound = (w->range >> 12) * odds(p);
    if (bit) { w->low += bound; w->range -= bound; } else w->range = bound;
    learn(p, bit);
    while (w->range < (1u << 24)) { w->range <<= 8; shift(w); }
}

static inline void write_even(Writer *w, int bit) {
    w->range >>= 1;
    if (bit) w->low += w->range;
    while (w->range < (1u << 24)) { w->range <<= 8; shift(w); }
}

static inline uint8_t next_byte(Reader *r) {
    uint8_t byte = r->at < r->size ? r->in[r->at] : 0;
    r->at++;
    return byte;
}

static inline int read_bit(Reader *r, Odds *p) {
    uint32_t bound = (r->range >> 12) * odds(p);
    int bit = r->code >= bound;
    if (bit) { r->code -= bound; r->range -= bound; } else r->range = bound;
    learn(p, bit);
    while (r->range < (1u << 24)) { r->range <<= 8; r->code = (r->code << 8) | next_byte(r); }
    return bit;
}

static inline int read_even(Reader *r) {
    r->range >>= 1;
    int bit = r->code >= r->range;
    if (bit) r->code -= r->range;
    while (r->range < (1u << 24)) { r->range <<= 8; r->code = (r->code << 8) | next_byte(r); }
    return bit;
}

static inline int at_most(int value, int limit) { return value < limit ? value : limit; }

/* Sizes of the symbols around the next one, at most 3 each: rows of this token and of the two before. */
typedef struct {
    uint8_t *now, *before, *earlier; /* each with BESIDE zeros in front */
    int beside;                      /* sum over the last BESIDE of this token, at most 2 each */
} Near;

enum { BESIDE = 4 };

/* What a symbol's odds depend on besides its class. */
static inline int context(const Near *near, int64_t c, int *more) {
    int before = near->before[c];
    *more = at_most(before + near->beside / 2, MORE_CONTEXTS - 1);
    return (at_most(before, 2) * 2 + (near->earlier[c] > 0)) * 8 + at_most(near->beside, 7);
}

static inline void note(Near *near, int64_t c, int size) {
    near->now[c] = (uint8_t)at_most(size, 3);
    near->beside += at_most(size, 2) - at_most(near->now[c - BESIDE], 2);
}

static uint8_t *near_start(Near *near, int64_t components) {
    int64_t row = components + BESIDE;
    uint8_t *memory = calloc(3, (size_t)row);
    near->now = memory + BESIDE;
    near->before = near->now + row;
    near->earlier = near->before + row;
    return memory;
}

static void near_next_token(Near *near) {
    uint8_t *oldest = near->earlier;
    near->earlier = near->before;
    near->before = near->now;
    near->now = oldest;
    near->beside = 0;
}

/* Bits that a symbol of size 0 or 1 costs, of 2^8: for the encoder's choices only, so floats would do; it is a table. */
static uint16_t price_table[256];
static uint32_t log2_fixed(uint32_t x) { /* log2(x) * 256 for 1 <= x < 2^16, by repeated squaring */
    uint32_t whole = 0;
    while (x >> (whole + 1)) whole++;
    uint64_t m = ((uint64_t)x << 16) >> whole; /* 1.0 to 2.0 with 16 fractional bits */
    uint32_t part = 0;
    for (int i = 0; i < 8; i++) {
        m = (m * m) >> 16;
        part <<= 1;
        if (m >> 17) { m >>= 1; part |= 1; }
    }
    return whole * 256 + part;
}

static inline float price(const Odds *p, int bit) {
    uint32_t o = odds(p);
    if (bit) o = 4096 - o;
    return (float)price_table[o >> 4] * (1.0f / 256);
}

void preread_symbols_prepare(void) {
    for (uint32_t i = 0; i < 256; i++) price_table[i] = (uint16_t)(12 * 256 - log2_fixed(i * 16 + 8));
}

/* Quantise and write `tokens` rows of `components` coefficients, in units of the step.
 * y: coefficients; classes: of each component, below CLASSES; lambda: what a bit is worth, in squared steps; bias: how far
 * the reader puts sizes 1 and larger towards zero; q: gets the symbols; out: room bytes.
 * Returns the number of bytes, more than `room` when they did not fit. */
int64_t preread_symbols_write(const float *y, int64_t tokens, int64_t components, const uint8_t *classes, float lambda,
                              const float *bias, int16_t *q, uint8_t *out, int64_t room) {
    Model *model = malloc(sizeof *model);
    Near near;
    uint8_t *memory = near_start(&near, components);
    if (!model || !memory) { free(model); free(memory); return -1; }
    start(model);
    Writer w = {0, 0xFFFFFFFFu, 0, 1, out, 0, room};
    for (int64_t t = 0; t < tokens; t++, near_next_token(&near)) {
        for (int64_t c = 0; c < components; c++, y++) {
            int more, k = classes[c];
            Odds *zero = &model->zero[k][context(&near, c, &more)];
            Odds *ladder = model->more[k][more];
            float size = *y < 0 ? -*y : *y;
            int high = size < 32000.0f ? (int)(size + 0.5f) : 32000;
            int best = high;
            if (high > 0) { /* the nearest symbol, the next smaller one, or zero: what costs least, distance and bits */
                float least = 0;
                for (int n = 0; n < 3; n++) {
                    int s = n == 2 ? 0 : high - n;
                    if (n == 2 && high < 2) break;
                    float at = s == 0 ? 0 : s == 1 ? 1 - bias[0] : s - bias[1];
                    float bits = price(zero, s != 0);
                    if (s) bits += 1;
                    for (int i = 1; i <= s && i <= LADDER; i++) bits += price(&ladder[i - 1], s > i);
                    float cost = (size - at) * (size - at) + lambda * bits;
                    if (n == 0 || cost < least) { least = cost; best = s; }
                }
            }
            q[t * components + c] = (int16_t)(*y < 0 ? -best : best);
            note(&near, c, best);
            write_bit(&w, zero, best != 0);
            if (!best) continue;
            write_even(&w, *y < 0);
            int i = 1;
            for (; i <= LADDER; i++) {
                write_bit(&w, &ladder[i - 1], best > i);
                if (best == i) break;
            }
            if (i > LADDER) { /* best - LADDER >= 1, Elias gamma */
                uint32_t rest = (uint32_t)(best - LADDER), bits = 0;
                while (rest >> (bits + 1)) bits++;
                for (uint32_t n = 0; n < bits; n++) write_even(&w, 1);
                write_even(&w, 0);
                for (uint32_t n = bits; n-- > 0;) write_even(&w, (rest >> n) & 1);
            }
        }
    }
    for (int n = 0; n < 5; n++) shift(&w);
    free(model);
    free(memory);
    return w.size;
}

/* Read what `preread_symbols_write` wrote. Returns 0, or -1 when the bytes are not exactly that many symbols. */
int preread_symbols_read(const uint8_t *in, int64_t size, int64_t tokens, int64_t components, const uint8_t *classes,
                         int16_t *q) {
    Model *model = malloc(sizeof *model);
    Near near;
    uint8_t *memory = near_start(&near, components);
    if (!model || !memory) { free(model); free(memory); return -1; }
    start(model);
    Reader r = {0, 0xFFFFFFFFu, in, 0, size};
    int bad = next_byte(&r) != 0;
    for (int n = 0; n < 4; n++) r.code = (r.code << 8) | next_byte(&r);
    for (int64_t t = 0; t < tokens && !bad; t++, near_next_token(&near)) {
        int16_t *row = q + t * components;
        for (int64_t c = 0; c < components; c++) {
            int more, k = classes[c];
            if (!read_bit(&r, &model->zero[k][context(&near, c, &more)])) {
                row[c] = 0;
                note(&near, c, 0);
                continue;
            }
            Odds *ladder = model->more[k][more];
            int negative = read_even(&r), s = 1;
            while (s <= LADDER && read_bit(&r, &ladder[s - 1])) s++;
            if (s > LADDER) {
                uint32_t bits = 0, rest = 1;
                while (bits < 16 && read_even(&r)) bits++;
                for (uint32_t n = 0; n < bits; n++) rest = (rest << 1) | (uint32_t)read_even(&r);
                if (rest > 32000) { bad = 1; break; }
                s = LADDER + (int)rest;
            }
            row[c] = (int16_t)(negative ? -s : s);
            note(&near, c, s);
        }
        if (r.at > size) bad = 1; /* garbage would only waste time */
    }
    free(model);
    free(memory);
    return bad || r.at != size || r.code != 0 ? -1 : 0; /* all that was written was read, and nothing is left over */
}
