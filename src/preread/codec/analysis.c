/* From vectors to coefficients: the writer's product, in float32. */
#include "vectors.h"

#include <stdint.h>
#include <string.h>

enum { COLUMNS = 64, ROWS = 6 };

LOOP void analysis(const float *restrict a, const float *restrict panels, int64_t tokens, int64_t depth, int64_t width,
                   float *restrict out) {
    for (int64_t p = 0; p < width / COLUMNS; p++) {
        const float *panel = panels + p * depth * COLUMNS;
        for (int64_t t = 0; t < tokens; t += ROWS) {
            float sum[ROWS][COLUMNS] = {{0}};
            for (int64_t k = 0; k < depth; k++)
                for (int r = 0; r < ROWS; r++)
                    for (int i = 0; i < COLUMNS; i++) sum[r][i] += a[(t + r) * depth + k] * panel[k * COLUMNS + i];
            for (int r = 0; r < ROWS; r++) memcpy(out + (t + r) * width + p * COLUMNS, sum[r], sizeof sum[r]);
        }
    }
}

COPIES(void, analysis,
       (const float *restrict a, const float *restrict panels, int64_t tokens, int64_t depth, int64_t width,
        float *restrict out),
       (a, panels, tokens, depth, width, out))

/* out[t][n] = sum over k < depth of a[t][k] * panels[n / COLUMNS][k][n % COLUMNS]. `width` is a multiple of COLUMNS,
 * `tokens` of ROWS. A block of sums stays in registers. bits: of the widest vectors to use. */
void preread_analysis(const float *a, const float *panels, int64_t tokens, int64_t depth, int64_t width, float *out,
                      int bits) {
    WIDEST(bits, analysis)(a, panels, tokens, depth, width, out);
}
