/*
 * The search for codes and scales: weighted least squares. Lanes are groups: 16 groups of 16 or 32 elements are transposed,
 * so that element j of all of them is a vector, and are searched together. Every lane runs the same operations in the same
 * order whatever the width (no fma, no sum across lanes), so the bytes are the same on every instruction set.
 *
 * A group's own best scale (and minimum) comes from trying where in the range of codes its largest element is put: codes
 * are then rounded, and the scale that is best for these codes solved for. In superblocks the scales become small integers
 * under d and dmin; then, in turns, each group takes the best of its neighbouring integers, and d and dmin are solved for.
 *
 * About 40 passes of 10 instructions over 16 elements: 6 ns an element with AVX-512, against 30 to 60 of a scalar search.
 */
#include "cpu/quantize.h"
#include "cpu/isa.h"
#include "cpu/vec.h"

#ifdef __clang__ /* gcc does not contract in ISO C */
#pragma STDC FP_CONTRACT OFF
#endif

#define TINY 1e-30f /* what is smaller counts as zero */

enum { LANES = KVQ_FIT_GROUPS, N_TARGETS = 9, N_ROUNDS = 2 };

typedef struct batch {
    _Alignas(64) float x[KVQ_FIT_ELEMENTS * LANES]; /* (n_elements, LANES) */
    _Alignas(64) float w[KVQ_FIT_ELEMENTS * LANES]; /* what an error counts */
    bool weighted;                                  /* w begins as the importance of the columns; see weigh */
    _Alignas(64) float scale[LANES], min[LANES];    /* best for a group alone: x ~ scale code - min */
    kvq_fit fit;
} batch;

/* What a pass needs, with n and whether there is a codebook known to the compiler. */
typedef struct shape {
    const kvq_quantizer *z;
    uint32_t n;
    bool table;
} shape;

/* ---- rounding ---- */

/* The value of the code nearest to v */
VEC_INLINE vf32 nearest(const shape *s, vf32 v) {
    if (!s->table)
        return vf_min(vf_set1(s->z->code_max), vf_max(vf_set1(s->z->code_min), vf_round(v)));
    vf32 value = vf_set1(s->z->values[0]);
    for (int i = 1; i < 16; i++) {
        float low = s->z->values[i - 1], high = s->z->values[i];
        value = vf_select_less(vf_set1(0.5f * (low + high)), v, vf_set1(high), value);
    }
    return value;
}

/* 1 / a, or 0 where a is as good as 0 */
VEC_INLINE vf32 inverse(vf32 a) {
    return vf_select_less(vf_set1(TINY), vf_max(a, vf_sub(vf_zero(), a)), vf_div(vf_set1(1.0f), a), vf_zero());
}

/* ---- one group alone ---- */

typedef struct best {
    vf32 score; /* by how much the weighted squared error is below that of all zeros */
    vf32 scale, min;
} best;

VEC_INLINE void keep(best *b, vf32 score, vf32 scale, vf32 min) {
    b->scale = vf_select_less(b->score, score, scale, b->scale);
    b->min = vf_select_less(b->score, score, min, b->min);
    b->score = vf_select_less(b->score, score, score, b->score);
}

/* Codes of x inv, and the scale that suits them. Without any code but 0 the score is NaN, which is never kept. */
VEC_INLINE void try_scale(const shape *s, const float *x, const float *w, vf32 inv, best *b) {
    vf32 xq = vf_zero(), qq = vf_zero();
    for (uint32_t j = 0; j < s->n; j++) {
        vf32 v = vf_load(x + j * LANES), q = nearest(s, vf_mul(v, inv)), wq = vf_mul(vf_load(w + j * LANES), q);
        xq = vf_add(xq, vf_mul(wq, v));
        qq = vf_add(qq, vf_mul(wq, q));
    }
    vf32 scale = vf_div(xq, qq);
    keep(b, vf_mul(scale, xq), scale, vf_zero());
}

VEC_INLINE best fit_scale(const shape *s, const float *x, const float *w) {
    const kvq_quantizer *z = s->z;
    vf32 largest = vf_zero(), magnitude = vf_zero();
    for (uint32_t j = 0; j < s->n; j++) {
        vf32 v = vf_load(x + j * LANES), m = vf_max(v, vf_sub(vf_zero(), v));
        largest = vf_select_less(magnitude, m, v, largest);
        magnitude = vf_max(magnitude, m);
    }
    best b = {vf_zero(), vf_zero(), vf_zero()};
    if (z->reach == 0.0f) { /* codes are so fine that the largest element may as well be exact */
        b.scale = vf_div(magnitude, vf_set1(z->code_max));
        return b;
    }
    vf32 unit = inverse(largest);
    for (int i = 0; i < N_TARGETS; i++) {
        float offset = z->reach * (float)(2 * i - N_TARGETS + 1) / (float)(N_TARGETS - 1);
        try_scale(s, x, w, vf_mul(unit, vf_set1(z->code_min + offset)), &b);
        try_scale(s, x, w, vf_mul(unit, vf_set1(z->code_max + offset)), &b);
    }
    for (int i = 0; i < N_ROUNDS; i++)
        try_scale(s, x, w, inverse(b.scale), &b);
    return b;
}

typedef struct moments { /* weighted sums of a group that do not depend on codes */
    vf32 w, x;
} moments;

/* Codes of (x + min) inv, and the scale and minimum that suit them; a minimum below zero only if negative. */
VEC_INLINE void try_affine(const shape *s, const float *x, const float *w, const moments *sum, vf32 inv, vf32 min,
                           bool negative, best *b) {
    vf32 q1 = vf_zero(), q2 = vf_zero(), xq = vf_zero();
    for (uint32_t j = 0; j < s->n; j++) {
        vf32 v = vf_load(x + j * LANES), q = nearest(s, vf_mul(vf_add(v, min), inv));
        vf32 wq = vf_mul(vf_load(w + j * LANES), q);
        q1 = vf_add(q1, wq);
        q2 = vf_add(q2, vf_mul(wq, q));
        xq = vf_add(xq, vf_mul(wq, v));
    }
    vf32 product = vf_mul(sum->w, q2), det = vf_sub(product, vf_mul(q1, q1)), over_det = inverse(det);
    vf32 scale = vf_mul(vf_sub(vf_mul(sum->w, xq), vf_mul(sum->x, q1)), over_det);
    min = vf_mul(vf_sub(vf_mul(q1, xq), vf_mul(q2, sum->x)), over_det);
    vf32 alone = vf_div(xq, q2), least_det = vf_mul(product, vf_set1(1e-6f)); /* det 0: all codes are the same */
    if (!negative)
        least_det = vf_select_less(min, vf_zero(), vf_set1(INFINITY), least_det);
    scale = vf_select_less(det, least_det, alone, scale);
    min = vf_select_less(det, least_det, vf_zero(), min);
    keep(b, vf_sub(vf_mul(scale, xq), vf_mul(min, sum->x)), scale, min);
}

VEC_INLINE best fit_affine(const shape *s, const float *x, const float *w) {
    const kvq_quantizer *z = s->z;
    bool negative = z->n_groups == 1; /* a minimum of its own has a sign */
    vf32 low = vf_load(x), high = low;
    moments sum = {vf_zero(), vf_zero()};
    for (uint32_t j = 0; j < s->n; j++) {
        vf32 v = vf_load(x + j * LANES), weight = vf_load(w + j * LANES);
        low = vf_min(low, v);
        high = vf_max(high, v);
        sum.w = vf_add(sum.w, weight);
        sum.x = vf_add(sum.x, vf_mul(weight, v));
    }
    if (!negative)
        low = vf_min(low, vf_zero());
    vf32 min = vf_sub(vf_zero(), low), unit = inverse(vf_sub(high, low));
    /* all codes 0: sum w x^2 - sum w (x + min)^2 */
    best b = {vf_sub(vf_zero(), vf_mul(min, vf_add(vf_add(sum.x, sum.x), vf_mul(min, sum.w)))), vf_zero(), min};
    for (int i = 0; i < N_TARGETS; i++) {
        float offset = z->reach * (float)(2 * i - N_TARGETS + 1) / (float)(N_TARGETS - 1);
        try_affine(s, x, w, &sum, vf_mul(unit, vf_set1(z->code_max + offset)), min, negative, &b);
    }
    for (int i = 0; i < N_ROUNDS; i++)
        try_affine(s, x, w, &sum, inverse(b.scale), b.min, negative, &b);
    return b;
}

/* ---- superblocks ---- */

static float round_f16(float x) {
    return kvq_f16_to_f32(kvq_f32_to_f16(x));
}

static float clamp(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}

/* From groups alone to d, dmin and small integers. */
static void first_scales(const kvq_quantizer *z, batch *b) {
    for (uint32_t first = 0; first < LANES; first += z->n_groups) {
        float largest = 0.0f, largest_min = 0.0f;
        for (uint32_t g = first; g < first + z->n_groups; g++) {
            if (fabsf(b->scale[g]) > fabsf(largest))
                largest = b->scale[g];
            if (fabsf(b->min[g]) > fabsf(largest_min))
                largest_min = b->min[g];
        }
        float d = round_f16(largest / (z->scale_min < 0.0f ? z->scale_min : z->scale_max));
        float dmin = z->min_max > 0.0f ? round_f16(largest_min / z->min_max) : 0.0f;
        for (uint32_t g = first; g < first + z->n_groups; g++) {
            b->fit.d[g] = d;
            b->fit.dmin[g] = dmin;
            b->fit.scale[g] = d != 0.0f ? clamp(rintf(b->scale[g] / d), z->scale_min, z->scale_max) : 0.0f;
            b->fit.min[g] = dmin != 0.0f ? clamp(rintf(b->min[g] / dmin), 0.0f, z->min_max) : 0.0f;
        }
    }
}

/* The weighted squared error of groups with these scales. */
VEC_INLINE vf32 error_of(const shape *s, const float *x, const float *w, vf32 step, vf32 offset) {
    vf32 inv = inverse(step), error = vf_zero();
    for (uint32_t j = 0; j < s->n; j++) {
        vf32 v = vf_add(vf_load(x + j * LANES), offset), q = nearest(s, vf_mul(v, inv));
        vf32 e = vf_sub(v, vf_mul(step, q));
        error = vf_add(error, vf_mul(vf_load(w + j * LANES), vf_mul(e, e)));
    }
    return error;
}

/* The best of the integers around scale and min, for the lanes from l on. */
VEC_INLINE void improve_scales(const shape *s, batch *b, uint32_t l) {
    const kvq_quantizer *z = s->z;
    vf32 d = vf_load(b->fit.d + l), dmin = vf_load(b->fit.dmin + l);
    vf32 scale = vf_load(b->fit.scale + l), min = vf_load(b->fit.min + l);
    vf32 least = vf_set1(INFINITY), best_scale = scale, best_min = min;
    float reach = z->min_max > 0.0f ? 1.0f : 0.0f;
    for (float m = -reach; m <= reach; m++)
        for (float i = -1.0f; i <= 1.0f; i++) {
            vf32 a = vf_min(vf_set1(z->scale_max), vf_max(vf_set1(z->scale_min), vf_add(scale, vf_set1(i))));
            vf32 c = vf_min(vf_set1(z->min_max), vf_max(vf_zero(), vf_add(min, vf_set1(m))));
            vf32 error = error_of(s, b->x + l, b->w + l, vf_mul(d, a), vf_mul(dmin, c));
            best_scale = vf_select_less(error, least, a, best_scale);
            best_min = vf_select_less(error, least, c, best_min);
            least = vf_min(error, least);
        }
    vf_store(b->fit.scale + l, best_scale);
    vf_store(b->fit.min + l, best_min);
}

typedef struct normal { /* weighted sums of groups with their codes q */
    float qq[LANES], q[LANES], w[LANES], xq[LANES], x[LANES];
} normal;

VEC_INLINE void sum_up(const shape *s, const batch *b, uint32_t l, normal *sums) {
    vf32 step = vf_mul(vf_load(b->fit.d + l), vf_load(b->fit.scale + l)), inv = inverse(step);
    vf32 offset = vf_mul(vf_load(b->fit.dmin + l), vf_load(b->fit.min + l));
    vf32 qq = vf_zero(), q1 = vf_zero(), w1 = vf_zero(), xq = vf_zero(), x1 = vf_zero();
    for (uint32_t j = 0; j < s->n; j++) {
        vf32 v = vf_load(b->x + l + j * LANES), w = vf_load(b->w + l + j * LANES);
        vf32 q = nearest(s, vf_mul(vf_add(v, offset), inv)), wq = vf_mul(w, q);
        qq = vf_add(qq, vf_mul(wq, q));
        q1 = vf_add(q1, wq);
        w1 = vf_add(w1, w);
        xq = vf_add(xq, vf_mul(wq, v));
        x1 = vf_add(x1, vf_mul(w, v));
    }
    vf_store(sums->qq + l, qq);
    vf_store(sums->q + l, q1);
    vf_store(sums->w + l, w1);
    vf_store(sums->xq + l, xq);
    vf_store(sums->x + l, x1);
}

/* d and dmin of each superblock that suit its integers: least squares in two unknowns. */
static void solve(const kvq_quantizer *z, const normal *sums, batch *b) {
    for (uint32_t first = 0; first < LANES; first += z->n_groups) {
        double dd = 0, de = 0, ee = 0, xd = 0, xe = 0; /* e: -min */
        for (uint32_t g = first; g < first + z->n_groups; g++) {
            double scale = b->fit.scale[g], min = b->fit.min[g];
            dd += scale * scale * sums->qq[g];
            de += scale * min * sums->q[g];
            ee += min * min * sums->w[g];
            xd += scale * sums->xq[g];
            xe += min * sums->x[g];
        }
        double det = dd * ee - de * de, d = xd / dd, dmin = 0;
        if (ee > 0 && det > 1e-9 * dd * ee) {
            d = (xd * ee - de * xe) / det;
            dmin = (de * xd - dd * xe) / det;
        }
        if (!(dd > 0) || dmin < 0)
            continue; /* what there is will do */
        for (uint32_t g = first; g < first + z->n_groups; g++) {
            b->fit.d[g] = round_f16((float)d);
            b->fit.dmin[g] = round_f16((float)dmin);
        }
    }
}

/* ---- a batch ---- */

/* Row g of x (n_groups, n) becomes column g of y (n, LANES); the columns of missing groups stay. */
static void transpose(const float *x, uint32_t n, uint32_t n_groups, float *y) {
    int32_t lanes[LANES];
    for (uint32_t g = 0; g < LANES; g++)
        lanes[g] = (int32_t)(g * n);
    if (n_groups == LANES)
        for (uint32_t l = 0; l < LANES; l += VF) {
            vi32 index = vi_load(lanes + l);
            for (uint32_t j = 0; j < n; j++)
                vf_store(y + j * LANES + l, vi_to_bits(vi_gather(x + j, index)));
        }
    else
        for (uint32_t g = 0; g < n_groups; g++)
            for (uint32_t j = 0; j < n; j++)
                y[j * LANES + g] = x[g * n + j];
}

/* Weights of the columns from `column` on, which start again with each row */
static void load_weights(const kvq_quantizer *z, const float *weights, size_t column, uint32_t n_per_row, batch *b) {
    for (uint32_t g = 0; g < LANES; g++) {
        const float *w = weights + (column + g * z->n_elements) % n_per_row;
        for (uint32_t j = 0; j < z->n_elements; j++)
            b->w[j * LANES + g] = w[j];
    }
}

VEC_INLINE void final_codes(const shape *s, batch *b, uint32_t l) {
    vf32 inv = inverse(vf_mul(vf_load(b->fit.d + l), vf_load(b->fit.scale + l)));
    vf32 offset = vf_mul(vf_load(b->fit.dmin + l), vf_load(b->fit.min + l));
    for (uint32_t j = 0; j < s->n; j++) {
        vf32 q = nearest(s, vf_mul(vf_add(vf_load(b->x + l + j * LANES), offset), inv));
        if (s->table) { /* the code is the number of values below */
            vf32 value = q;
            q = vf_zero();
            for (int i = 0; i < 15; i++)
                q = vf_add(q, vf_select_less(vf_set1(s->z->values[i]), value, vf_set1(1.0f), vf_zero()));
        }
        vi_store(b->fit.codes[j] + l, vi_from_f32(q));
    }
}

/* An error in a large element counts for more: evenness + |x| / rms, times the importance of its column. */
VEC_INLINE void weigh(const shape *s, batch *b) {
    float rms[LANES];
    vf32 evenness = vf_set1(s->z->evenness);
    for (uint32_t l = 0; l < LANES; l += VF) {
        vf32 sum = vf_zero();
        for (uint32_t j = 0; j < s->n; j++) {
            vf32 v = vf_load(b->x + j * LANES + l);
            sum = vf_add(sum, vf_mul(v, v));
        }
        vf_store(rms + l, vf_mul(sum, vf_set1(1.0f / (float)s->n)));
    }
    for (uint32_t g = 0; g < LANES; g++)
        rms[g] = sqrtf(rms[g]) + TINY;
    for (uint32_t l = 0; l < LANES; l += VF)
        for (uint32_t j = 0; j < s->n; j++) {
            vf32 v = vf_load(b->x + j * LANES + l), size = vf_max(v, vf_sub(vf_zero(), v));
            vf32 weight = vf_add(evenness, vf_div(size, vf_load(rms + l)));
            if (b->weighted)
                weight = vf_mul(weight, vf_load(b->w + j * LANES + l));
            vf_store(b->w + j * LANES + l, weight);
        }
}

VEC_INLINE void fit_batch(const shape *s, batch *b) {
    const kvq_quantizer *z = s->z;
    if (!b->weighted || z->evenness < 1.0f)
        weigh(s, b);
    for (uint32_t l = 0; l < LANES; l += VF) {
        best found = z->min_max > 0.0f ? fit_affine(s, b->x + l, b->w + l) : fit_scale(s, b->x + l, b->w + l);
        vf_store(b->scale + l, found.scale);
        vf_store(b->min + l, found.min);
    }
    first_scales(z, b);
    for (int i = 0; i < N_ROUNDS && z->n_groups > 1; i++) {
        normal sums;
        for (uint32_t l = 0; l < LANES; l += VF) {
            improve_scales(s, b, l);
            sum_up(s, b, l, &sums);
        }
        solve(z, &sums, b);
    }
    for (uint32_t l = 0; l < LANES; l += VF)
        final_codes(s, b, l);
}

static void fit_16(const kvq_quantizer *z, batch *b) {
    fit_batch(&(shape){z, 16, false}, b);
}

static void fit_32(const kvq_quantizer *z, batch *b) {
    fit_batch(&(shape){z, 32, false}, b);
}

static void fit_table(const kvq_quantizer *z, batch *b) {
    fit_batch(&(shape){z, 32, true}, b);
}

static void encode(const kvq_quantizer *z, const float *x, size_t n, const float *weights, uint32_t n_per_row,
                   uint8_t *dst) {
    batch b;
    size_t n_groups = n / z->n_elements;
    b.weighted = weights != NULL;
    for (size_t first = 0; first < n_groups; first += LANES) {
        uint32_t n_here = (uint32_t)(n_groups - first < LANES ? n_groups - first : LANES);
        if (n_here < LANES)
            memset(b.x, 0, sizeof b.x);
        transpose(x + first * z->n_elements, z->n_elements, n_here, b.x);
        if (weights != NULL)
            load_weights(z, weights, first * z->n_elements % n_per_row, n_per_row, &b);
        (z->values ? fit_table : z->n_elements == 16 ? fit_16 : fit_32)(z, &b);
        for (uint32_t g = 0; g < n_here; g += z->n_groups, dst += z->block_bytes)
            z->pack(&b.fit, g, dst);
    }
}

static void loss(const float *x, const float *y, size_t n, pykvq_weight_loss *sums) {
    enum { RUN = 1024 }; /* elements that are summed in float */
    for (size_t begin = 0; begin < n; begin += RUN) {
        size_t end = n - begin < RUN ? n : begin + RUN;
        vf32 xx = vf_zero(), ee = vf_zero(), largest = vf_zero();
        for (size_t i = begin; i < end; i += VF) {
            size_t left = end - i;
            vf32 a = left < VF ? vf_load_n(x + i, left) : vf_load(x + i);
            vf32 e = vf_sub(a, left < VF ? vf_load_n(y + i, left) : vf_load(y + i));
            xx = vf_add(xx, vf_mul(a, a));
            ee = vf_add(ee, vf_mul(e, e));
            largest = vf_max(largest, vf_max(e, vf_sub(vf_zero(), e)));
        }
        sums->squares += vf_reduce_add(xx);
        sums->squared_errors += vf_reduce_add(ee);
        float error = vf_reduce_max(largest);
        sums->max_error = error > sums->max_error ? error : sums->max_error;
    }
}

const kvq_quantize_kernels KVQ_NAME(kvq_quantize) = {encode, loss};
