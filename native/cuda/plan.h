/* Which units of work an attention launch has. Host code. */
#ifndef KVQ_CUDA_PLAN_H
#define KVQ_CUDA_PLAN_H

extern "C" {
#include "backend/backend.h"
}
#include "format.h"

typedef struct plan_shape { /* of an attention operation */
    uint32_t group, window, n_head_kv, head_group;
    uint32_t n_cols;   /* columns of a unit: 8 or 16 */
    uint32_t n_blocks; /* that run at the same time */
} plan_shape;

/* Units of a step, at most max_units; tables: where each span's page table of this group starts. Returns how many, or 0 if
 * they do not fit. */
uint32_t plan_units(const plan_shape *shape, const kvq_batch *batch, const uint32_t *tables, attend_unit *units,
                    uint32_t max_units);
/* The most units that a step of a backend with these limits can have. */
uint32_t plan_max_units(const kvq_backend_limits *limits, uint32_t n_blocks);

#endif
