/* Which codecs attention can read with this instruction set. Adding one: its declaration and its lines here. */
#include "cpu/attend.h"
#include "cpu/isa.h"

extern const kvq_key_kernels KVQ_NAME(kvq_keys_f16);
extern const kvq_value_kernels KVQ_NAME(kvq_values_f16);

void KVQ_NAME(kvq_attend_run)(const kvq_attend_work *work);

static const kvq_key_kernels *const keys[] = {&KVQ_NAME(kvq_keys_f16), NULL};
static const kvq_value_kernels *const values[] = {&KVQ_NAME(kvq_values_f16), NULL};

const kvq_attend_kernels KVQ_NAME(kvq_attend) = {keys, values, KVQ_NAME(kvq_attend_run)};
