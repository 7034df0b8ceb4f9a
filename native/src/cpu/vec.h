/*
 * The vector operations that the kernels are written in, for one instruction set: the build defines KVQ_ISA_<isa>.
 *
 * vf32 is VF floats, vi32 is VF 32-bit integers or 4 * VF bytes. VF is 16 (avx512), 8 (avx2), 4 (neon) or 1 (scalar): write
 * loops over n in steps of VF and finish with vf_load_n/vf_store_n, which touch n < VF elements only. Pointers need no
 * alignment. Only what some kernel uses is here.
 */
#ifndef KVQ_CPU_VEC_H
#define KVQ_CPU_VEC_H

#include "base/half.h"
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VEC_INLINE static inline __attribute__((always_inline, unused))

#if KVQ_ISA_avx512
#include "cpu/vec_avx512.h"
#elif KVQ_ISA_avx2
#include "cpu/vec_avx2.h"
#elif KVQ_ISA_neon
#include "cpu/vec_neon.h"
#elif KVQ_ISA_scalar
#include "cpu/vec_scalar.h"
#else
#error "KVQ_ISA_<isa> is not defined"
#endif

/* exp(x) within 2 ulp; 0 below -87.7 (so exp(-inf) = 0), large but finite from 88.3 on; NaN stays NaN. */
VEC_INLINE vf32 vf_exp(vf32 x) {
    x = vf_min(vf_set1(88.3f), vf_max(vf_set1(-88.0f), x));
    vf32 n = vf_round(vf_mul(x, vf_set1(1.44269504f)));
    vf32 r = vf_fma(n, vf_set1(-0.693359375f), x); /* x - n ln 2, ln 2 in two parts */
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf32 p = vf_set1(1.9875691e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519e-3f));
    p = vf_fma(p, r, vf_set1(4.1665796e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001e-1f));
    p = vf_fma(p, vf_mul(r, r), vf_add(r, vf_set1(1.0f)));
    return vf_mul(p, vf_pow2(n));
}

/* tanh(x) within 3 ulp: a polynomial near 0, 1 - 2 / (exp(2x) + 1) elsewhere; NaN stays NaN. */
VEC_INLINE vf32 vf_tanh(vf32 x) {
    vf32 square = vf_mul(x, x);
    vf32 p = vf_set1(-5.70498872745e-3f);
    p = vf_fma(p, square, vf_set1(2.06390887954e-2f));
    p = vf_fma(p, square, vf_set1(-5.37397155531e-2f));
    p = vf_fma(p, square, vf_set1(1.33314422036e-1f));
    p = vf_fma(p, square, vf_set1(-3.33332819422e-1f));
    vf32 near = vf_fma(vf_mul(p, square), x, x);
    vf32 far = vf_sub(vf_set1(1.0f), vf_div(vf_set1(2.0f), vf_add(vf_exp(vf_add(x, x)), vf_set1(1.0f))));
    return vf_select_less(square, vf_set1(0.625f * 0.625f), near, far);
}

/* cap * tanh(x / cap) */
VEC_INLINE vf32 vf_softcap(vf32 x, float cap) {
    return vf_mul(vf_set1(cap), vf_tanh(vf_div(x, vf_set1(cap))));
}

#endif
