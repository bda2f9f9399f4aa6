/* What synthesis.c uses of AVX-512, in plain C: for processors that have none. Included before it. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    int32_t lanes[16];
} ByHand;

static inline ByHand by_hand_load(const void *from) {
    ByHand all;
    memcpy(&all, from, sizeof all);
    return all;
}

static inline void by_hand_store(void *to, ByHand all) { memcpy(to, &all, sizeof all); }

static inline ByHand by_hand_set1(int32_t value) {
    ByHand all;
    for (int i = 0; i < 16; i++) all.lanes[i] = value;
    return all;
}

/* vpdpbusd: to each lane, four products of uint8 of a and int8 of b are added. */
static inline ByHand by_hand_dpbusd(ByHand sum, ByHand a, ByHand b) {
    const uint8_t *left = (const uint8_t *)&a;
    const int8_t *right = (const int8_t *)&b;
    for (int i = 0; i < 64; i++) sum.lanes[i / 4] += left[i] * right[i];
    return sum;
}

/* vpdpwssd: to each lane, two products of int16. */
static inline ByHand by_hand_dpwssd(ByHand sum, ByHand a, ByHand b) {
    int16_t left[32], right[32];
    memcpy(left, &a, sizeof left), memcpy(right, &b, sizeof right);
    for (int i = 0; i < 32; i++) sum.lanes[i / 2] += left[i] * right[i];
    return sum;
}

#define __m512i ByHand
#define _mm512_setzero_si512() by_hand_set1(0)
#define _mm512_set1_epi32 by_hand_set1
#define _mm512_loadu_si512 by_hand_load
#define _mm512_storeu_si512 by_hand_store
#define _mm512_dpbusd_epi32 by_hand_dpbusd
#define _mm512_dpwssd_epi32 by_hand_dpwssd
