/* Instruction sets: each kernel file is compiled once per set and exports one table; the widest the machine has is used. */
#ifndef KVQ_CPU_ISA_H
#define KVQ_CPU_ISA_H

#include "base/status.h"

/* In a kernel file: KVQ_NAME(foo) is foo_avx512 and so on. KVQ_ISA comes from the build. */
#define KVQ_JOIN_(a, b) a##_##b
#define KVQ_JOIN(a, b)  KVQ_JOIN_(a, b)
#define KVQ_NAME(name)  KVQ_JOIN(name, KVQ_ISA)

struct kvq_linear_kernels;
struct kvq_attend_kernels;
struct kvq_row_kernels;
struct kvq_quantize_kernels;
struct kvq_tile_encoder;

typedef struct kvq_kernels {
    const char *isa;
    const struct kvq_linear_kernels *linear;     /* cpu/linear.h: weights times activations */
    const struct kvq_attend_kernels *attend;     /* cpu/attend.h: scores, softmax, mixing */
    const struct kvq_row_kernels *row;           /* cpu/row.h: norms, RoPE, activations, conversions */
    const struct kvq_quantize_kernels *quantize; /* cpu/quantize.h: weights into blocks */
    const struct kvq_tile_encoder *encoders;     /* cpu/encode.h: keys and values into tiles; a list */
} kvq_kernels;

/* The tables in use. Chosen once, on first use. */
const kvq_kernels *kvq_kernels_selected(void);

#endif
