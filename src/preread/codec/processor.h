/* What this processor has, of x86-64's kinds.
 *
 *   AVX2, AVX512                  for __attribute__((target(…))): x86-64-v3 and x86-64-v4 of the System V ABI
 *   HAS_AVX2, HAS_AVX512          whether this processor runs them
 *   HAS_AVX512_VNNI               whether it has that besides
 *
 * gcc knows kinds by name. With clang their instructions stand one by one, since Zig leaves all of them out for every
 * function, which counts more than a kind; and its library answers no to __builtin_cpu_supports, so the processor is asked
 * here (Intel's manual, volume 2, CPUID; volume 1, 13.3, XGETBV: whether the system keeps the registers).
 */
#pragma once
#ifdef __clang__
#define AVX2 "avx2,bmi,bmi2,f16c,fma,lzcnt,movbe,popcnt"
#define AVX512 AVX2 ",avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
#define HAS_AVX2 (processor() & 2)
#define HAS_AVX512 (processor() & 4)
#define HAS_AVX512_VNNI (processor() & 8)

#include <cpuid.h>

/* The bits above, and 1. Asked once: in a virtual machine it takes long. */
static inline unsigned processor(void) {
    static _Atomic unsigned known;
    enum { A, B, C, D };
    const unsigned avx2[] = {1u << 3 | 1u << 5 | 1u << 8, 1u << 12 | 1u << 22 | 1u << 27 | 1u << 28 | 1u << 29, 1u << 5};
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    unsigned has = known, one[4], seven[4], more[4], kept = 0, high;
    if (has) return has;
    has = 1;
    if (__get_cpuid(1, one, one + B, one + C, one + D) && __get_cpuid_count(7, 0, seven, seven + B, seven + C, seven + D) &&
        __get_cpuid(0x80000001, more, more + B, more + C, more + D)) {
        if (one[C] & 1u << 27) __asm__("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
        if ((kept & 0x06) == 0x06 && !(~seven[B] & avx2[0]) && !(~one[C] & avx2[1]) && !(~more[C] & avx2[2])) has |= 2;
        if ((kept & 0xE6) == 0xE6 && has & 2 && !(~seven[B] & avx512)) has |= 4;
        if (has & 4 && seven[C] & 1u << 11) has |= 8;
    }
    return known = has;
}
#else
#define AVX2 "arch=x86-64-v3"
#define AVX512 "arch=x86-64-v4"
#define HAS_AVX2 __builtin_cpu_supports("x86-64-v3")
#define HAS_AVX512 __builtin_cpu_supports("x86-64-v4")
#define HAS_AVX512_VNNI __builtin_cpu_supports("avx512vnni")
#endif
