/* One function per weight type, for the table in quant.c. The order of the float operations is gguf.quants' own. */
#ifndef KVQ_QUANT_DEQUANTIZE_H
#define KVQ_QUANT_DEQUANTIZE_H

#include <stddef.h>

#define KVQ_DEQUANTIZE(name) void kvq_dequantize_##name(const void *src, float *dst, size_t n)

KVQ_DEQUANTIZE(f32);
KVQ_DEQUANTIZE(f16);
KVQ_DEQUANTIZE(bf16);
KVQ_DEQUANTIZE(q4_0);
KVQ_DEQUANTIZE(q4_1);
KVQ_DEQUANTIZE(q5_0);
KVQ_DEQUANTIZE(q5_1);
KVQ_DEQUANTIZE(q8_0);
KVQ_DEQUANTIZE(q2_k);
KVQ_DEQUANTIZE(q3_k);
KVQ_DEQUANTIZE(q4_k);
KVQ_DEQUANTIZE(q5_k);
KVQ_DEQUANTIZE(q6_k);
KVQ_DEQUANTIZE(iq4_nl);
KVQ_DEQUANTIZE(iq4_xs);
KVQ_DEQUANTIZE(mxfp4);
KVQ_DEQUANTIZE(nvfp4);
KVQ_DEQUANTIZE(tq1_0);
KVQ_DEQUANTIZE(tq2_0);
KVQ_DEQUANTIZE(iq2_xxs);
KVQ_DEQUANTIZE(iq2_xs);
KVQ_DEQUANTIZE(iq2_s);
KVQ_DEQUANTIZE(iq3_xxs);
KVQ_DEQUANTIZE(iq3_s);
KVQ_DEQUANTIZE(iq1_s);
KVQ_DEQUANTIZE(iq1_m);

#endif
