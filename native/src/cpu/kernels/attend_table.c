/* Which codecs attention can read with this instruction set. Adding one: its lines here. */
#include "cpu/attend.h"
#include "cpu/isa.h"

#define KEYS(id)   KVQ_NAME(kvq_keys_##id)
#define VALUES(id) KVQ_NAME(kvq_values_##id)

extern const kvq_key_kernels KEYS(f16), KEYS(q8_0), KEYS(q4_0), KEYS(nvfp4), KEYS(kivi4), KEYS(kivi2), KEYS(kivi2_g64),
    KEYS(turbo4), KEYS(turbo3), KEYS(turbo2), KEYS(kvarn4), KEYS(kvarn3), KEYS(kvarn2), KEYS(tier3), KEYS(tier2);
extern const kvq_value_kernels VALUES(f16), VALUES(q8_0), VALUES(q4_0), VALUES(nvfp4), VALUES(kivi4), VALUES(kivi2),
    VALUES(kivi2_g64), VALUES(turbo4), VALUES(turbo3), VALUES(turbo2), VALUES(kvarn4), VALUES(kvarn3), VALUES(kvarn2);

void KVQ_NAME(kvq_attend_run)(const kvq_attend_work *work);

static const kvq_key_kernels *const keys[] = {
    &KEYS(f16),       &KEYS(q8_0),   &KEYS(q4_0),   &KEYS(nvfp4),  &KEYS(kivi4),  &KEYS(kivi2),
    &KEYS(kivi2_g64), &KEYS(turbo4), &KEYS(turbo3), &KEYS(turbo2), &KEYS(kvarn4), &KEYS(kvarn3),
    &KEYS(kvarn2),    &KEYS(tier3),  &KEYS(tier2),  NULL,
};
static const kvq_value_kernels *const values[] = {
    &VALUES(f16),       &VALUES(q8_0),
    &VALUES(q4_0),      &VALUES(nvfp4),
    &VALUES(kivi4),     &VALUES(kivi2),
    &VALUES(kivi2_g64), &VALUES(turbo4),
    &VALUES(turbo3),    &VALUES(turbo2),
    &VALUES(kvarn4),    &VALUES(kvarn3),
    &VALUES(kvarn2),    NULL,
};

const kvq_attend_kernels KVQ_NAME(kvq_attend) = {keys, values, KVQ_NAME(kvq_attend_run)};
