/* What the bytes of GGML's weight blocks are: little-endian, packed, and possibly at odd addresses.
 * d and dmin are f16 bits. The formulas stand at kvq_dequantize_* in the .c files. */
#ifndef KVQ_QUANT_BLOCKS_H
#define KVQ_QUANT_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#define KVQ_PACKED __attribute__((packed))

/* Blocks of 32 (64 for NVFP4). */
typedef struct KVQ_PACKED kvq_q4_0 {
    uint16_t d;
    uint8_t qs[16]; /* element j low, j + 16 high nibble; so in all of these */
} kvq_q4_0;
typedef struct KVQ_PACKED kvq_q4_1 {
    uint16_t d, m;
    uint8_t qs[16];
} kvq_q4_1;
typedef struct KVQ_PACKED kvq_q5_0 {
    uint16_t d;
    uint32_t qh; /* bit j: bit 4 of element j */
    uint8_t qs[16];
} kvq_q5_0;
typedef struct KVQ_PACKED kvq_q5_1 {
    uint16_t d, m;
    uint32_t qh;
    uint8_t qs[16];
} kvq_q5_1;
typedef struct KVQ_PACKED kvq_q8_0 {
    uint16_t d;
    int8_t qs[32];
} kvq_q8_0;
typedef struct KVQ_PACKED kvq_iq4_nl {
    uint16_t d;
    uint8_t qs[16];
} kvq_iq4_nl;
typedef struct KVQ_PACKED kvq_mxfp4 {
    uint8_t e; /* e8m0 */
    uint8_t qs[16];
} kvq_mxfp4;
typedef struct KVQ_PACKED kvq_nvfp4 {
    uint8_t d[4];     /* e4m3, sign ignored, one for 16 elements */
    uint8_t qs[4][8]; /* element j low, j + 8 high nibble of its 16 */
} kvq_nvfp4;

/* Superblocks of 256. */
typedef struct KVQ_PACKED kvq_q2_k {
    uint8_t scales[16]; /* of 16 elements: low nibble scale, high nibble minimum */
    uint8_t qs[64];     /* 2 x 128 elements: byte l of 32 holds elements l, l + 32, l + 64, l + 96 */
    uint16_t d, dmin;
} kvq_q2_k;
typedef struct KVQ_PACKED kvq_q3_k {
    uint8_t hmask[32];  /* bit g of byte l: bit 2 of element 32 g + l */
    uint8_t qs[64];     /* as in q2_k */
    uint8_t scales[12]; /* 16 x 6 bits: see kvq_dequantize_q3_k */
    uint16_t d;
} kvq_q3_k;
typedef struct KVQ_PACKED kvq_q4_k {
    uint16_t d, dmin;
    uint8_t scales[12]; /* 8 scales and 8 minima of 6 bits: see kvq_scale_min_k4 */
    uint8_t qs[128];    /* 4 x 64 elements: byte l of 32 holds elements l and l + 32 */
} kvq_q4_k;
typedef struct KVQ_PACKED kvq_q5_k {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32]; /* bit g of byte l: bit 4 of element 32 g + l */
    uint8_t qs[128];
} kvq_q5_k;
typedef struct KVQ_PACKED kvq_q6_k {
    uint8_t ql[128]; /* 2 x 128 elements: byte l of 64 holds elements l and l + 64 */
    uint8_t qh[64];  /* as qs of q2_k */
    int8_t scales[16];
    uint16_t d;
} kvq_q6_k;
typedef struct KVQ_PACKED kvq_iq4_xs {
    uint16_t d, scales_h;
    uint8_t scales_l[4];
    uint8_t qs[128]; /* 8 x 32 elements, each as iq4_nl */
} kvq_iq4_xs;
typedef struct KVQ_PACKED kvq_tq1_0 {
    uint8_t qs[48]; /* 32 bytes of 5 trits, then 16 bytes of 5 trits */
    uint8_t qh[4];  /* 4 trits each */
    uint16_t d;
} kvq_tq1_0;
typedef struct KVQ_PACKED kvq_tq2_0 {
    uint8_t qs[64];
    uint16_t d;
} kvq_tq2_0;

/* Superblocks of 256, elements in groups of 8 (iq3: 4) that are rows of a grid (iq_tables.h). */
typedef struct KVQ_PACKED kvq_iq2_xxs {
    uint16_t d;
    struct KVQ_PACKED {
        uint8_t grid[4];
        uint32_t signs; /* 4 x 7 bits of signs, 4 bits of scale */
    } of32[8];
} kvq_iq2_xxs;
typedef struct KVQ_PACKED kvq_iq2_xs {
    uint16_t d;
    uint16_t qs[32];   /* 9 bits of grid, 7 of signs */
    uint8_t scales[8]; /* 16 x 4 bits */
} kvq_iq2_xs;
typedef struct KVQ_PACKED kvq_iq2_s {
    uint16_t d;
    uint8_t qs[32], signs[32];
    uint8_t qh[8]; /* 32 x 2 bits: bits 8 and 9 of the grid row */
    uint8_t scales[8];
} kvq_iq2_s;
typedef struct KVQ_PACKED kvq_iq3_xxs {
    uint16_t d;
    uint8_t qs[64];
    uint32_t signs[8]; /* as in iq2_xxs */
} kvq_iq3_xxs;
typedef struct KVQ_PACKED kvq_iq3_s {
    uint16_t d;
    uint8_t qs[64];
    uint8_t qh[8]; /* 64 x 1 bit: bit 8 of the grid row */
    uint8_t signs[32];
    uint8_t scales[4]; /* 8 x 4 bits */
} kvq_iq3_s;
typedef struct KVQ_PACKED kvq_iq1_s {
    uint16_t d;
    uint8_t qs[32];
    uint16_t qh[8]; /* 4 x 3 bits: bits 8 to 10 of the grid row; 3 bits of scale; sign of the shift */
} kvq_iq1_s;
typedef struct KVQ_PACKED kvq_iq1_m {
    uint8_t qs[32];
    uint8_t qh[16];     /* 32 x (3 bits of the grid row, sign of the shift) */
    uint16_t scales[4]; /* 4 x 3 bits of scale; the top nibbles are d */
} kvq_iq1_m;

/* Scale and minimum j (0..7) of q4_k and q5_k. Bytes 0..3 and 4..7 hold scales and minima 0..3 in their low 6 bits, bytes
 * 8..11 the low 4 bits of scales and minima 4..7, whose top 2 bits are those of bytes 0..7. */
static inline void kvq_scale_min_k4(const uint8_t scales[12], int j, uint8_t *scale, uint8_t *min) {
    if (j < 4) {
        *scale = scales[j] & 63;
        *min = scales[j + 4] & 63;
    } else {
        *scale = (uint8_t)((scales[j + 4] & 15) | (scales[j - 4] >> 2 & 48));
        *min = (uint8_t)(scales[j + 4] >> 4 | (scales[j] >> 2 & 48));
    }
}

/* 7 stored sign bits to 8: their number is even. */
static inline uint8_t kvq_iq_signs(uint32_t bits) {
    return (uint8_t)((bits & 127) | (uint32_t)__builtin_parity(bits & 127) << 7);
}

#endif
