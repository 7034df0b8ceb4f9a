/* The constants that the iq and fp4 formats index. iq_tables.c is written by tools/gen_iq_tables.py. */
#ifndef KVQ_QUANT_IQ_TABLES_H
#define KVQ_QUANT_IQ_TABLES_H

#include <stdint.h>

extern const int8_t kvq_iq4_values[16]; /* IQ4_NL, IQ4_XS */
extern const int8_t kvq_fp4_values[16]; /* MXFP4, NVFP4: e2m1, doubled */

/* Rows of 8 or 4 elements, aligned so that a row is one load. */
extern const uint8_t kvq_iq2xxs_grid[256][8];
extern const uint8_t kvq_iq2xs_grid[512][8];
extern const uint8_t kvq_iq2s_grid[1024][8];
extern const uint8_t kvq_iq3xxs_grid[256][4];
extern const uint8_t kvq_iq3s_grid[512][4];
extern const int8_t kvq_iq1s_grid[2048][8]; /* IQ1_S, IQ1_M */

#endif
