/* The architectures, one row each. */
#include <string.h>

#include "model/model.h"

static const kvq_arch archs[] = {
    {.name = "llama", .rope_interleaved = true},
    {.name = "qwen2"},
    {.name = "qwen3", .qk_norm = true},
    {.name = "gemma2",
     .activation = KVQ_GELU_TANH,
     .post_norms = true,
     .embed_scaled = true,
     .window_period = 2,
     .wide_scale_n_layer = 46,
     .default_window = 4096,
     .default_attn_softcap = 50.0f,
     .default_logit_softcap = 30.0f},
    {.name = "gemma3",
     .activation = KVQ_GELU_TANH,
     .post_norms = true,
     .embed_scaled = true,
     .qk_norm = true,
     .window_period = 6,
     .local_rope_base = 10000.0f,
     .wide_scale_n_layer = 62},
    {.name = "phi3", .window_period = KVQ_ALL_WINDOWED},
    {.name = "smollm3", .rope_interleaved = true, .nope_period = 4},
};

const kvq_arch *kvq_arch_find(kvq_str name) {
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++)
        if (strlen(archs[i].name) == name.n && memcmp(archs[i].name, name.data, name.n) == 0)
            return &archs[i];
    return NULL;
}

const char *kvq_arch_names(void) {
    return "llama, qwen2, qwen3, gemma2, gemma3, phi3, smollm3";
}
