/* From codes to float16 in one pass: what decoding of the quantised rungs spends its time on.
 *
 * A value is low + step * code in float32, each operation rounded on its own (no fused multiply-add, so that every machine
 * gives the same bits), at most the largest float16, and then rounded to float16 to the nearest, ties to even.
 */
#include "half.h"
#include "vectors.h"

LOOP void restore(const uint8_t *restrict codes, int packed, const float *restrict lows, const float *restrict steps,
                  int64_t rows, int64_t row, int64_t group, uint16_t *restrict out) {
    int64_t count = rows * row, half = (count + 1) / 2;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t start = 0; start < row; start += group) {
            int64_t stop = start + group < row ? start + group : row;
            float low = *lows++, step = *steps++;
            int64_t at = r * row + start, end = r * row + stop;
            if (!packed) {
                for (; at < end; at++) out[at] = to_half((float)codes[at] * step + low);
                continue;
            }
            int64_t middle = end < half ? end : half;
            for (; at < middle; at++) out[at] = to_half((float)(codes[at] & 15) * step + low);
            for (; at < end; at++) out[at] = to_half((float)(codes[at - half] >> 4) * step + low);
        }
    }
}

COPIES(void, restore,
       (const uint8_t *restrict codes, int packed, const float *restrict lows, const float *restrict steps, int64_t rows,
        int64_t row, int64_t group, uint16_t *restrict out),
       (codes, packed, lows, steps, rows, row, group, out))

/* codes: rows * row of them, one to a byte; or, packed, the first half of them in low nibbles and the second in high ones.
 * lows, steps: rows * ceil(row / group). out: rows * row values, in the order of the codes.
 * bits: of the widest vectors to use; the values are the same with all. */
void preread_restore(const uint8_t *codes, int packed, const float *lows, const float *steps, int64_t rows, int64_t row,
                     int64_t group, uint16_t *out, int bits) {
    WIDEST(bits, restore)(codes, packed, lows, steps, rows, row, group, out);
}
