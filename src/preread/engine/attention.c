/* Attention of a prompt to a float16 cache, in tiles that the heads of a group share.
 *
 * llama.cpp's flash attention on CPUs takes batches of fewer than 64 tokens row by row, each head by itself: behind a
 * context of 1,000 tokens that is over a third of a short prompt's time, behind 4,000 two thirds. Here the rows of all
 * query heads that read one KV head go together, LANES at a time, so that a row of K or V is read once for all of them;
 * the cache is gone through tile by tile, with a running maximum and sum of each row (Milakov and Gimelshein, 2018; Dao
 * et al., 2022).
 *
 * llama.cpp is not changed for it. Its evaluation callback shows every node of the graph before it is computed (gate.c),
 * and a node of attention whose shapes are known here becomes one of ggml's custom operations, which computes the same;
 * all others stay as they are. ggml is neither linked nor included: the struct is described below, which ggml.py checks
 * when the engine is opened, and operations' numbers are passed in.
 */
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
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

/* With fewer tokens, llama.cpp's own is as fast; for single ones it also divides the context among threads. */
enum { FEWEST_TOKENS = 4 };

struct operations {
    int32_t attention, custom; /* ggml's numbers of GGML_OP_FLASH_ATTN_EXT and GGML_OP_CUSTOM */
    int32_t bits;              /* of the widest vectors to use */
};

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

struct custom { /* struct ggml_custom_op_params of ggml-impl.h */
    void (*compute)(struct tensor *node, int thread, int threads, void *data);
    int32_t most_threads; /* -1: all */
    void *data;
};

/* Where op_params of a node that is computed here holds what, behind that struct. */
enum {
    SCALE = 8, /* float */
    NEXT = 9,  /* of the pieces of work, the first that no thread has taken */
};
_Static_assert(sizeof(struct custom) <= SCALE * sizeof(int32_t), "ggml's own parameters need the room");

enum {
    LANES = 64, /* rows of queries that go together: tokens, and of each the heads of a group */
    CELLS = 64, /* of the cache that go together */
    LARGEST_HEAD = 128,
};

static const float LOG2_E = 0x1.715476p0f;

/* What the tokens of a piece see of some cells: nothing, some, or all. */
enum sight { NOTHING, SOME, ALL };

static enum sight seen(const char *masks, size_t stride, int64_t tokens, int64_t cells) {
    uint16_t any = 0, hidden = 1;
    for (int64_t t = 0; t < tokens; t++) {
        const uint16_t *row = (const uint16_t *)(masks + (int64_t)stride * t);
        for (int64_t c = 0; c < cells; c++) any |= row[c], hidden &= row[c] == 0xFC00; /* float16's -infinity */
    }
    return hidden ? NOTHING : any ? SOME : ALL;
}

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define NAME(name) name##_512
#define WIDTH 16
#define ABREAST 4
#include "attention.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define NAME(name) name##_256
#define WIDTH 8
#define ABREAST 2
#include "attention.h"
#pragma GCC pop_options

static _Atomic int32_t *next_of(struct tensor *node) { return (_Atomic int32_t *)(node->op_params + NEXT); }

/* What each of ggml's threads does: it takes piece after piece. Later tokens see more cells, and are taken first. Each row
 * of queries is computed by itself, so the same bits come with any number of threads. data: NULL for vectors of
 * 256 bits. */
static void compute(struct tensor *node, int thread, int threads, void *data) {
    (void)thread;
    const struct tensor *q = node->src[0];
    const int64_t heads = node->src[1]->ne[2], tokens = q->ne[1], most = LANES / (q->ne[2] / heads);
    const int64_t fewest = (tokens + most - 1) / most, wanted = (threads + heads - 1) / heads;
    const int64_t each = (tokens + (fewest > wanted ? fewest : wanted) - 1) / (fewest > wanted ? fewest : wanted);
    const int64_t blocks = (tokens + each - 1) / each;
    float scale;
    memcpy(&scale, node->op_params + SCALE, sizeof scale);
    for (int64_t i; (i = atomic_fetch_add(next_of(node), 1)) < blocks * heads;) {
        const int64_t token = (blocks - 1 - i / heads) * each, left = tokens - token;
        (data ? piece_512 : piece_256)(node, scale, i % heads, token, left < each ? left : each);
    }
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
    return types && shapes && flat && dense && mask->ne[0] == k->ne[1] && mask->ne[1] >= tokens && tokens >= FEWEST_TOKENS;
}

/* Whether this processor has what is needed, with vectors of at most so many bits. */
bool preread_attention_here(int bits) { return bits >= 256 && __builtin_cpu_supports("x86-64-v3"); }

/* Called for every node before it is computed, where that is so. */
void preread_attention_take(struct tensor *node, const struct operations *operations) {
    const bool widest = operations->bits >= 512 && __builtin_cpu_supports("x86-64-v4");
    struct custom custom = {compute, -1, widest ? node : NULL}, own;
    memcpy(&own, node->op_params, sizeof own);
    if (node->op == operations->custom && own.compute == compute) { /* of a graph that is used again */
        atomic_store(next_of(node), 0);
    } else if (node->op == operations->attention && known(node)) {
        memcpy(node->op_params + SCALE, node->op_params, sizeof(float));
        atomic_store(next_of(node), 0);
        memcpy(node->op_params, &custom, sizeof custom);
        node->op = operations->custom;
    }
}

#else

bool preread_attention_here(int bits) { return (void)bits, false; }

void preread_attention_take(struct tensor *node, const struct operations *operations) { (void)node, (void)operations; }

#endif
