/* Which codecs attention can read with this instruction set. Adding one: its name in a list here. */
#include "cpu/attend.h"
#include "cpu/isa.h"

#define VALUE_TYPES(X)                                                                                                     \
    X(f16)                                                                                                                 \
    X(q8_0)                                                                                                                \
    X(q4_0)                                                                                                                \
    X(fp8)                                                                                                                 \
    X(nvfp4)                                                                                                               \
    X(kivi4) X(kivi2) X(kivi2_g64) X(turbo4) X(turbo3) X(turbo2) X(turbo3_5) X(turbo2_5) X(kvarn4) X(kvarn3) X(kvarn2)
#define KEY_TYPES(X) VALUE_TYPES(X) X(tier3) X(tier2)

#define DECLARE_KEYS(id)   extern const kvq_key_kernels KVQ_NAME(kvq_keys_##id);
#define DECLARE_VALUES(id) extern const kvq_value_kernels KVQ_NAME(kvq_values_##id);
KEY_TYPES(DECLARE_KEYS)
VALUE_TYPES(DECLARE_VALUES)

void KVQ_NAME(kvq_attend_run)(const kvq_attend_work *work);
void KVQ_NAME(kvq_attend_rotate)(float *x, uint32_t n_rows, uint32_t n);
void KVQ_NAME(kvq_attend_rotate_back)(float *x, uint32_t n_rows, uint32_t n);

#define KEYS(id)   &KVQ_NAME(kvq_keys_##id),
#define VALUES(id) &KVQ_NAME(kvq_values_##id),
static const kvq_key_kernels *const keys[] = {KEY_TYPES(KEYS) NULL};
static const kvq_value_kernels *const values[] = {VALUE_TYPES(VALUES) NULL};

const kvq_attend_kernels KVQ_NAME(kvq_attend) = {
    keys, values, KVQ_NAME(kvq_attend_run), KVQ_NAME(kvq_attend_rotate), KVQ_NAME(kvq_attend_rotate_back),
};
