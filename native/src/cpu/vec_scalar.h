/* vec.h for plain C: one lane. */
#define VF 1

typedef float vf32;
typedef int32_t vi32;

VEC_INLINE vf32 vf_load(const float *p) {
    return *p;
}
VEC_INLINE void vf_store(float *p, vf32 a) {
    *p = a;
}
VEC_INLINE vf32 vf_load_n(const float *p, size_t n) {
    return n ? *p : 0;
} /* n < VF; other lanes are 0 */
VEC_INLINE void vf_store_n(float *p, vf32 a, size_t n) {
    if (n)
        *p = a;
}
VEC_INLINE vf32 vf_load_f16(const uint16_t *p) {
    return kvq_f16_to_f32(*p);
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf32 a) {
    *p = kvq_f32_to_f16(a);
}
VEC_INLINE vf32 vf_load_bf16(const uint16_t *p) {
    return kvq_bf16_to_f32(*p);
}

VEC_INLINE vf32 vf_zero(void) {
    return 0;
}
VEC_INLINE vf32 vf_set1(float a) {
    return a;
}
VEC_INLINE vf32 vf_add(vf32 a, vf32 b) {
    return a + b;
}
VEC_INLINE vf32 vf_sub(vf32 a, vf32 b) {
    return a - b;
}
VEC_INLINE vf32 vf_mul(vf32 a, vf32 b) {
    return a * b;
}
VEC_INLINE vf32 vf_div(vf32 a, vf32 b) {
    return a / b;
}
VEC_INLINE vf32 vf_fma(vf32 a, vf32 b, vf32 c) {
    return fmaf(a, b, c);
} /* a b + c, rounded once */
VEC_INLINE vf32 vf_abs(vf32 a) {
    return fabsf(a);
}
VEC_INLINE vf32 vf_max(vf32 a, vf32 b) {
    return a > b ? a : b;
} /* b if either is NaN */
VEC_INLINE vf32 vf_min(vf32 a, vf32 b) {
    return a < b ? a : b;
}
VEC_INLINE vf32 vf_select_less(vf32 a, vf32 b, vf32 x, vf32 y) {
    return a < b ? x : y;
} /* a < b ? x : y */
VEC_INLINE bool vf_any_less(vf32 a, vf32 b) { /* a < b in any lane */
    return a < b;
}
VEC_INLINE vf32 vf_round(vf32 a) {
    return rintf(a);
} /* to nearest even */
VEC_INLINE vf32 vf_swap(vf32 a, const int n) { /* lane i becomes lane i ^ n; n is a power of two below VF */
    return a;
}
/* The lanes whose bit of mask is set go to ones, the others to zeros, in order; up to VF floats are written to each. */
VEC_INLINE void vf_store_split(vf32 a, uint32_t mask, float *ones, float *zeros) {
    *(mask & 1 ? ones : zeros) = a;
}
/* The inverse; up to VF floats are read from each. */
VEC_INLINE vf32 vf_load_merged(uint32_t mask, const float *ones, const float *zeros) {
    return *(mask & 1 ? ones : zeros);
}
VEC_INLINE float vf_reduce_add(vf32 a) {
    return a;
}
VEC_INLINE float vf_reduce_max(vf32 a) {
    return a;
}
/* 2^n for integral n from -127 (which gives 0) to 127 */
VEC_INLINE vf32 vf_pow2(vf32 n) {
    return n == n ? kvq_f32_from_bits((uint32_t)((int32_t)n + 127) << 23) : n;
}

/* Integers: arithmetic wraps, shifts are by 0 to 31. */
VEC_INLINE vi32 vi_load(const void *p) {
    vi32 a;
    memcpy(&a, p, 4);
    return a;
}
VEC_INLINE void vi_store(void *p, vi32 a) {
    memcpy(p, &a, 4);
}
VEC_INLINE vi32 vi_load1(const void *p) { /* 4 bytes, repeated */
    return vi_load(p);
}
VEC_INLINE vi32 vi_load_u8(const uint8_t *p) { /* VF bytes, one per lane */
    return *p;
}
VEC_INLINE vi32 vi_set1(int32_t a) {
    return a;
}
VEC_INLINE vi32 vi_and(vi32 a, vi32 b) {
    return a & b;
}
VEC_INLINE vi32 vi_or(vi32 a, vi32 b) {
    return a | b;
}
VEC_INLINE vi32 vi_xor(vi32 a, vi32 b) {
    return a ^ b;
}
VEC_INLINE vi32 vi_add(vi32 a, vi32 b) {
    return (int32_t)((uint32_t)a + (uint32_t)b);
}
VEC_INLINE vi32 vi_sub(vi32 a, vi32 b) {
    return (int32_t)((uint32_t)a - (uint32_t)b);
}
VEC_INLINE vi32 vi_mul(vi32 a, vi32 b) {
    return (int32_t)((uint32_t)a * (uint32_t)b);
}
VEC_INLINE vi32 vi_max(vi32 a, vi32 b) {
    return a > b ? a : b;
}
VEC_INLINE vi32 vi_shl(vi32 a, int n) {
    return (int32_t)((uint32_t)a << n);
}
VEC_INLINE vi32 vi_shr(vi32 a, int n) { /* zeros come in */
    return (int32_t)((uint32_t)a >> n);
}
VEC_INLINE vi32 vi_sar(vi32 a, int n) { /* the sign comes in */
    return a >> n;
}
VEC_INLINE vi32 vi_sub8(vi32 a, vi32 b) { /* bytes */
    uint32_t low = ((uint32_t)a | 0x80808080u) - ((uint32_t)b & 0x7f7f7f7fu);
    return (int32_t)(low ^ (((uint32_t)a ^ ~(uint32_t)b) & 0x80808080u));
}
VEC_INLINE int32_t vi_reduce_add(vi32 a) {
    return a;
}
VEC_INLINE int32_t vi_reduce_max(vi32 a) {
    return a;
}
VEC_INLINE void vi_store_i8(int8_t *p, vi32 a) { /* the low byte of each lane */
    *p = (int8_t)a;
}
VEC_INLINE vi32 vi_from_f32(vf32 a) { /* nearest even; any value if it does not fit */
    return a >= -0x1p31f && a < 0x1p31f ? (int32_t)rintf(a) : INT32_MIN;
}
VEC_INLINE vf32 vi_to_f32(vi32 a) {
    return (float)a;
}
VEC_INLINE vi32 vi_from_bits(vf32 a) {
    return (int32_t)kvq_f32_bits(a);
}
VEC_INLINE vf32 vi_to_bits(vi32 a) {
    return kvq_f32_from_bits((uint32_t)a);
}
VEC_INLINE vf32 vi_f16_to_f32(vi32 a) { /* of the low 16 bits of each lane */
    return kvq_f16_to_f32((uint16_t)a);
}
/* bytes[i] of 16 for each byte i < 16 of index */
VEC_INLINE vi32 vi_lookup16(const uint8_t *bytes, vi32 index) {
    uint32_t a = 0;
    for (int i = 0; i < 4; i++)
        a |= (uint32_t)bytes[index >> 8 * i & 15] << 8 * i;
    return (int32_t)a;
}
VEC_INLINE vf32 vf_pick(const float *x, uint32_t n, vi32 index) { /* x[index] of n floats, n a multiple of 16 */
    return x[index];
}
VEC_INLINE vi32 vi_gather(const void *table, vi32 index) { /* 4 bytes at table + 4 index */
    return vi_load((const uint8_t *)table + 4 * (size_t)index);
}
/* 16 bytes from each of VF rows, transposed: lane i of c[j] is dword j of row i, which begins at p + i stride */
VEC_INLINE void vi_load_rows(const uint8_t *p, size_t stride, vi32 c[4]) {
    for (int j = 0; j < 4; j++)
        c[j] = vi_load(p + 4 * j);
}
/* acc + the dot product of the 4 bytes in each lane: w unsigned and at most 127, x signed */
VEC_INLINE vi32 vi_dot(vi32 acc, vi32 w, vi32 x) {
    for (int i = 0; i < 32; i += 8)
        acc += (int8_t)(w >> i) * (int8_t)(x >> i);
    return acc;
}
/* The same for w of 8 bits, which are a signed code + VI_WIDE_OFFSET; x is not -128. */
#define VI_WIDE_OFFSET 0
VEC_INLINE vi32 vi_dot_wide(vi32 acc, vi32 w, vi32 x) {
    return vi_dot(acc, w, x);
}
