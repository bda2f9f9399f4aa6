/* Attention to a float16 cache, in tiles that the heads of a group share, and so do all tokens that see them.
 *
 * llama.cpp's flash attention on CPUs takes batches of fewer than 64 tokens row by row, each head by itself: behind a
 * context of 1,000 tokens that is over a third of a short prompt's time, behind 4,000 two thirds. Here the rows of all
 * query heads that read one KV head go together, and those of up to LANES / heads tokens, so that a row of K or V is read
 * once for all of them; the cache is gone through tile by tile, with a running maximum and sum of each row (Milakov and
 * Gimelshein, 2018; Dao et al., 2022).
 *
 * The cache may hold many contexts, and a batch tokens of many sequences (as with Hydragen, Juravsky et al., 2024, those
 * that share a context read it once). What a token sees is looked up in the mask once an evaluation, a bit for each cell:
 *
 *   - A tile of which a token sees DENSE cells or more is computed in place, for just the tokens that see so many of it.
 *   - The cells that a token sees of all other tiles are gathered into tiles of its own. Answers that grow side by side
 *     leave such cells: each token then reads its own, not those of all.
 *
 * Every SPAN tiles, and the gathered cells, have a maximum and a sum of their own, which are brought together in order.
 * Which thread computes what, and for which tokens at once, is thus free: it changes no bit. What is computed for a token
 * depends on nothing but its query, and on the K and V that it sees and in which cells they lie.
 *
 * llama.cpp is not changed for it. Its evaluation callback shows every node of the graph before it is computed (gate.c),
 * and a node of attention whose shapes are known here becomes one of ggml's custom operations, which computes the same;
 * all others stay as they are. ggml is neither linked nor included: the struct is described below, which ggml.py checks
 * when the engine is opened, and operations' numbers are passed in.
 */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct tensor { /* struct ggml_tensor of ggml.h */
    int32_t type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int32_t op, op_params[16], flags;
    struct tensor *src[10];
    struct tensor *view_src;
    size_t view_offs;
    void *data;
    char name[64];
};

enum { F32 = 0, F16 = 1 }; /* GGML_TYPE_F32, GGML_TYPE_F16 */

struct sight;

struct operations {
    int32_t attention, custom; /* ggml's numbers of GGML_OP_FLASH_ATTN_EXT and GGML_OP_CUSTOM */
    int32_t bits;              /* of the widest vectors to use */
    struct sight *sight;       /* NULL until the first node is taken */
};

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include "../codec/processor.h"
#include <immintrin.h>

/* FOR(kind) and END: functions between them are compiled for that kind of processor.
 * SHUFFLE(a, b, …): the values of two vectors, one after the other, that have these numbers. */
#define PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define FOR(kind) PRAGMA(clang attribute push(__attribute__((target(kind))), apply_to = function))
#define END _Pragma("clang attribute pop")
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FOR(kind) _Pragma("GCC push_options") PRAGMA(GCC target(kind))
#define END _Pragma("GCC pop_options")
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Numbers){__VA_ARGS__})
#endif

struct custom { /* struct ggml_custom_op_params of ggml-impl.h */
    void (*compute)(struct tensor *node, int thread, int threads, void *data);
    int32_t most_threads; /* -1: all */
    void *data;
};

/* Where op_params of a node that is computed here holds what, behind that struct. */
enum {
    SCALE = 8, /* float */
    NEXT = 9,  /* of the units of work, the first that no thread has taken */
    DOOR = 10, /* whether a thread has seen to it that the mask is looked at, and the others may help: SHUT at first */
};
_Static_assert(sizeof(struct custom) <= SCALE * sizeof(int32_t), "ggml's own parameters need the room");
enum { SHUT, TAKEN, OPEN };

enum {
    LANES = 64, /* rows of queries that go together: tokens, and of each the heads of a group */
    CELLS = 64, /* of the cache that go together: a tile, a bit each of uint64_t */
    DENSE = CELLS / 2,
    SPAN = 8, /* tiles */
    LARGEST_HEAD = 128,
    MOST_SPLIT = 256,         /* pieces of which several threads compute parts */
    PARTS_BYTES = 16 << 20,   /* for such parts */
    PIECES_PER_THREAD = 4,    /* with so many, threads are busy alike, and none is split */
    LINE_BYTES = 64, /* of the processor's caches */
};

static const float LOG2_E = 0x1.715476p0f;

/* What the tokens of a batch see.
 *
 * It holds for one evaluation of a graph: a graph is used again with other contents of the same mask. All nodes of an
 * evaluation, or of a part of it, are shown before the first of them is computed, so that one which is shown after
 * something was computed may belong to the next: then all is looked at again.
 */
struct sight {
    uint32_t evaluation; /* as nodes were shown */
    _Atomic bool computed;
    const struct tensor *mask; /* what was looked at: this one, in that evaluation, for so many tokens */
    uint32_t looked;
    int64_t tokens;
    _Atomic int32_t next, done; /* rows that threads have taken, and that they have looked at */
    _Atomic bool ready;
    int64_t room_words, room_tokens;
    uint64_t *seen; /* (tokens, tiles) */
    bool *biased;   /* (tokens,): the mask has other values than 0 and -infinity */
    int32_t *first, *order; /* (tokens,): first tile in place, and the tokens so that those with the same go together */
    float *parts;
    _Atomic int32_t finished[MOST_SPLIT]; /* parts of each piece; 0 between nodes */
};

/* How a node is divided. A piece is some tokens in the query heads of one KV head; its parts are the spans, and last the
 * gathered cells. */
struct plan {
    float scale;
    int64_t dim, group, heads, tokens, cells, tiles, each, blocks, parts;
    bool split; /* parts are computed by themselves */
};

static void wait_a_little(int64_t times) {
    if (times < 100)
        _mm_pause();
    else
        sched_yield();
}

static int64_t rounded_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

FOR(AVX2)
/* 32 bits, one for each value that is `wanted`. */
static uint32_t equal(const uint16_t *half, uint16_t wanted) {
    const __m256i all = _mm256_set1_epi16((short)wanted);
    const __m256i one = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *)half), all);
    const __m256i two = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *)(half + 16)), all);
    return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(one, two), 0xD8));
}

static uint64_t equals(const uint16_t *half, uint16_t wanted) {
    return equal(half, wanted) | (uint64_t)equal(half + 32, wanted) << 32;
}

/* One token's row of the mask. */
static void look(struct sight *sight, const struct plan *plan, const struct tensor *mask, int64_t token) {
    const uint16_t *row = (const uint16_t *)((const char *)mask->data + token * mask->nb[1]);
    uint64_t *seen = sight->seen + token * plan->tiles, other = 0;
    int64_t first = plan->tiles;
    for (int64_t tile = 0; tile < plan->tiles; tile++) {
        const int64_t left = plan->cells - tile * CELLS;
        const uint16_t *half = row + tile * CELLS;
        uint16_t last[CELLS];
        if (left < CELLS) {
            for (int64_t c = 0; c < CELLS; c++) last[c] = c < left ? half[c] : 0xFC00; /* float16's -infinity */
            half = last;
        }
        seen[tile] = ~equals(half, 0xFC00);
        other |= seen[tile] & ~equals(half, 0);
        if (first == plan->tiles && __builtin_popcountll(seen[tile]) >= DENSE) first = tile;
    }
    sight->biased[token] = other;
    sight->first[token] = (int32_t)first;
}
END

static void sort(struct sight *sight, int64_t tokens) {
    for (int64_t t = 0; t < tokens; t++) {
        int64_t at = t;
        for (; at > 0 && sight->first[sight->order[at - 1]] > sight->first[t]; at--) sight->order[at] = sight->order[at - 1];
        sight->order[at] = (int32_t)t;
    }
}

static _Atomic int32_t *counter(struct tensor *node, int which) { return (_Atomic int32_t *)(node->op_params + which); }

/* Every thread of a node comes here first. */
static void look_together(struct sight *sight, const struct plan *plan, struct tensor *node) {
    const struct tensor *mask = node->src[3];
    int32_t shut = SHUT;
    if (atomic_compare_exchange_strong(counter(node, DOOR), &shut, TAKEN)) {
        if (sight->mask != mask || sight->looked != sight->evaluation || sight->tokens != plan->tokens) {
            sight->mask = mask, sight->looked = sight->evaluation, sight->tokens = plan->tokens;
            atomic_store(&sight->next, 0), atomic_store(&sight->done, 0), atomic_store(&sight->ready, false);
        }
        atomic_store(&sight->computed, true);
        atomic_store(counter(node, DOOR), OPEN);
    }
    for (int64_t n = 0; atomic_load(counter(node, DOOR)) != OPEN; n++) wait_a_little(n);
    for (int64_t t; !atomic_load(&sight->ready) && (t = atomic_fetch_add(&sight->next, 1)) < plan->tokens;) {
        look(sight, plan, mask, t);
        if (atomic_fetch_add(&sight->done, 1) + 1 == plan->tokens) {
            sort(sight, plan->tokens);
            atomic_store(&sight->ready, true);
        }
    }
    for (int64_t n = 0; !atomic_load(&sight->ready); n++) wait_a_little(n);
}

FOR(AVX512)
#define NAME(name) name##_512
#define WIDTH 16
#define ABREAST 4
#include "attention.h"
END

FOR(AVX2)
#define NAME(name) name##_256
#define WIDTH 8
#define ABREAST 2
#include "attention.h"
END

static struct plan divided(const struct tensor *node, int threads) {
    const struct tensor *q = node->src[0], *k = node->src[1];
    struct plan plan = {.dim = q->ne[0], .heads = k->ne[2], .tokens = q->ne[1], .cells = k->ne[1]};
    memcpy(&plan.scale, node->op_params + SCALE, sizeof plan.scale);
    plan.group = q->ne[2] / plan.heads;
    plan.tiles = (plan.cells + CELLS - 1) / CELLS;
    plan.parts = (plan.tiles + SPAN - 1) / SPAN + 1;
    const int64_t most = LANES / plan.group, fewest = (plan.tokens + most - 1) / most;
    plan.each = (plan.tokens + fewest - 1) / fewest;
    plan.blocks = (plan.tokens + plan.each - 1) / plan.each;
    const int64_t pieces = plan.blocks * plan.heads;
    const int64_t part_bytes = (2 * LANES + plan.each * plan.group * rounded_up(plan.dim, LANES)) * sizeof(float);
    plan.split = threads > 1 && pieces < PIECES_PER_THREAD * threads && pieces <= MOST_SPLIT &&
                 pieces * plan.parts * part_bytes <= PARTS_BYTES;
    return plan;
}

/* What each of ggml's threads does: it takes unit after unit, pieces or parts of pieces. Of a prompt, later tokens see more
 * cells, and are taken first. */
static void compute(struct tensor *node, int thread, int threads, void *data) {
    (void)thread;
    const struct operations *operations = data;
    const bool widest = operations->bits >= 512 && HAS_AVX512;
    const struct plan plan = divided(node, threads);
    struct sight *sight = operations->sight;
    look_together(sight, &plan, node);
    const int64_t pieces = plan.blocks * plan.heads, units = pieces * (plan.split ? plan.parts : 1);
    for (int64_t i; (i = atomic_fetch_add(counter(node, NEXT), 1)) < units;)
        (widest ? unit_512 : unit_256)(node, &plan, sight, units - 1 - i);
}

static bool known(const struct tensor *node) {
    const struct tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    float params[3]; /* scale, largest bias of ALiBi, soft cap */
    memcpy(params, node->op_params, sizeof params);
    if (!q || !k || !v || !mask || node->src[4] || params[1] != 0 || params[2] != 0) return false;
    const int64_t dim = q->ne[0], tokens = q->ne[1], heads = k->ne[2], group = heads ? q->ne[2] / heads : 0;
    const bool types = q->type == F32 && k->type == F16 && v->type == F16 && mask->type == F16 && node->type == F32;
    const bool shapes = dim % 8 == 0 && dim <= LARGEST_HEAD && k->ne[0] == dim && v->ne[0] == dim && k->ne[1] == v->ne[1] &&
                        v->ne[2] == heads && group && group <= LANES && group * heads == q->ne[2] && node->ne[0] == dim &&
                        node->ne[1] == q->ne[2] && node->ne[2] == tokens;
    const bool flat = q->ne[3] == 1 && k->ne[3] == 1 && v->ne[3] == 1 && mask->ne[2] == 1 && mask->ne[3] == 1;
    const bool dense = q->nb[0] == 4 && k->nb[0] == 2 && v->nb[0] == 2 && mask->nb[0] == 2 && node->nb[0] == 4;
    return types && shapes && flat && dense && mask->ne[0] == k->ne[1] && mask->ne[1] >= tokens;
}

/* Whether there are so many bytes now; what they hold is lost. If not, there is what was there before. */
static bool grown(void **memory, size_t bytes) {
    void *new = aligned_alloc(LINE_BYTES, (size_t)rounded_up((int64_t)bytes, LINE_BYTES));
    if (!new) return false;
    free(*memory);
    *memory = new;
    return true;
}

/* Whether there is room for what the tokens of a node see. A node that is used again has found it before. */
static bool roomy(struct operations *operations, const struct tensor *node) {
    struct sight *sight = operations->sight;
    const int64_t tokens = node->src[0]->ne[1], words = tokens * ((node->src[1]->ne[1] + CELLS - 1) / CELLS);
    if (!sight) {
        operations->sight = sight = calloc(1, sizeof *sight);
        if (!sight) return false;
    }
    if (!sight->parts && !grown((void **)&sight->parts, PARTS_BYTES)) return false;
    if (words > sight->room_words) {
        sight->mask = NULL;
        if (!grown((void **)&sight->seen, words * sizeof *sight->seen)) return false;
        sight->room_words = words;
    }
    if (tokens > sight->room_tokens) {
        sight->mask = NULL;
        if (!grown((void **)&sight->biased, tokens * sizeof *sight->biased)) return false;
        if (!grown((void **)&sight->first, tokens * sizeof *sight->first)) return false;
        if (!grown((void **)&sight->order, tokens * sizeof *sight->order)) return false;
        sight->room_tokens = tokens;
    }
    return true;
}

/* Whether this processor has what is needed, with vectors of at most so many bits. */
bool preread_attention_here(int bits) { return bits >= 256 && HAS_AVX2; }

/* Called for every node before it is computed, where that is so. */
void preread_attention_take(struct tensor *node, struct operations *operations) {
    const struct custom custom = {compute, -1, operations};
    struct custom own;
    memcpy(&own, node->op_params, sizeof own);
    const bool again = node->op == operations->custom && own.compute == compute; /* of a graph that is used again */
    if (!again && !(node->op == operations->attention && known(node))) return;
    if (!roomy(operations, node) && !again) return;
    if (atomic_exchange(&operations->sight->computed, false)) operations->sight->evaluation++;
    if (!again) memcpy(node->op_params + SCALE, node->op_params, sizeof(float));
    atomic_store(counter(node, NEXT), 0);
    atomic_store(counter(node, DOOR), SHUT);
    memcpy(node->op_params, &custom, sizeof custom);
    node->op = operations->custom;
}

/* No node is computed with these any more. */
void preread_attention_free(struct operations *operations) {
    struct sight *sight = operations->sight;
    if (!sight) return;
    free(sight->seen), free(sight->biased), free(sight->first), free(sight->order), free(sight->parts);
    free(sight);
    operations->sight = NULL;
}

#else

bool preread_attention_here(int bits) { return (void)bits, false; }

void preread_attention_take(struct tensor *node, struct operations *operations) { (void)node, (void)operations; }

void preread_attention_free(struct operations *operations) { (void)operations; }

#endif
