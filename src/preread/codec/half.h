/* float32 to float16, to the nearest, ties to even; magnitudes above the largest float16 become that. Not for NaN. */
#include <stdint.h>
#include <string.h>

static inline uint16_t to_half(float value) {
    value = value < 65504.0f ? value : 65504.0f;
    value = value > -65504.0f ? value : -65504.0f;
    value *= 0x1p-112f; /* now float16's exponent and mantissa are bits 13 to 27, subnormals included */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t half = (bits + 0xFFF + ((bits >> 13) & 1)) >> 13;
    return (uint16_t)((half & 0x7FFF) | ((bits >> 16) & 0x8000));
}
