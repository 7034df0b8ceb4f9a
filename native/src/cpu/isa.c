#include "cpu/isa.h"
#include "cpu/encode.h"

#include <stdatomic.h>
#include <string.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#define DECLARE(isa)                                                                                                       \
    extern const struct kvq_linear_kernels kvq_linear_##isa;                                                               \
    extern const struct kvq_attend_kernels kvq_attend_##isa;                                                               \
    extern const struct kvq_row_kernels kvq_row_##isa;                                                                     \
    extern const struct kvq_quantize_kernels kvq_quantize_##isa;                                                           \
    extern const kvq_tile_encoder kvq_encoders_##isa[];

#define TABLES(isa) {#isa, &kvq_linear_##isa, &kvq_attend_##isa, &kvq_row_##isa, &kvq_quantize_##isa, kvq_encoders_##isa}

DECLARE(scalar)
static bool has_scalar(void) {
    return true;
}
#ifdef KVQ_HAVE_avx2
DECLARE(avx2)
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
}
#endif
#ifdef KVQ_HAVE_avx512
DECLARE(avx512)
static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vbmi");
}
#endif
#ifdef KVQ_HAVE_neon
DECLARE(neon)
static bool has_neon(void) {
    return (getauxval(AT_HWCAP) & (1u << 20)) != 0; /* HWCAP_ASIMDDP: the dot product */
}
#endif

static const struct {
    kvq_kernels tables;
    bool (*available)(void);
} sets[] = {
/* widest first */
#ifdef KVQ_HAVE_avx512
    {TABLES(avx512), has_avx512},
#endif
#ifdef KVQ_HAVE_avx2
    {TABLES(avx2), has_avx2},
#endif
#ifdef KVQ_HAVE_neon
    {TABLES(neon), has_neon},
#endif
    {TABLES(scalar), has_scalar},
};

static _Atomic(const kvq_kernels *) selected;

const kvq_kernels *kvq_kernels_selected(void) {
    const kvq_kernels *kernels = atomic_load(&selected);
    for (size_t i = 0; kernels == NULL; i++)
        if (sets[i].available())
            atomic_store(&selected, kernels = &sets[i].tables);
    return kernels;
}

const char *pykvq_cpu_isa(void) {
    return kvq_kernels_selected()->isa;
}

pykvq_status pykvq_cpu_select(const char *isa) {
    if (isa == NULL) {
        atomic_store(&selected, NULL);
        return PYKVQ_OK;
    }
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        if (strcmp(sets[i].tables.isa, isa) != 0)
            continue;
        if (!sets[i].available())
            return kvq_fail(PYKVQ_E_UNSUPPORTED, "instruction set '%s': this machine does not have it", isa);
        atomic_store(&selected, &sets[i].tables);
        return PYKVQ_OK;
    }
    return kvq_fail(PYKVQ_E_ARGUMENT, "instruction set '%s': not in this build", isa);
}
