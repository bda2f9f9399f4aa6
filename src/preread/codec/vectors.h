/* Loops compiled for each width of a processor's vectors, of which the caller says how wide they may be.
 *
 *   LOOP                                     before a function that is to be copied
 *   COPIES(returns, name, (parameters), (arguments))
 *                                            after it: name_512, name_256 and name_128
 *   WIDEST(bits, name)                       the widest copy, of at most so many bits, that this processor can run
 *
 * name_128 uses what every processor of this kind has; so does all elsewhere than on x86-64 with gcc or clang.
 */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include "processor.h"
#define LOOP static inline __attribute__((always_inline))
#define COPIES(returns, name, parameters, arguments)                                                \
    __attribute__((target(AVX512))) static returns name##_512 parameters { return name arguments; } \
    __attribute__((target(AVX2))) static returns name##_256 parameters { return name arguments; }   \
    static returns name##_128 parameters { return name arguments; }
#define WIDEST(bits, name) \
    ((bits) >= 512 && HAS_AVX512 ? name##_512 : (bits) >= 256 && HAS_AVX2 ? name##_256 : name##_128)
#else
#define LOOP static
#define COPIES(returns, name, parameters, arguments) \
    static returns name##_128 parameters { return name arguments; }
#define WIDEST(bits, name) ((void)(bits), name##_128)
#endif
