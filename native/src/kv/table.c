/* The KV types. Adding one: its files, its declaration and its line here. */
#include "kv/codec.h"

#include <string.h>

#define CODECS(id) extern const kvq_codec kvq_codec_##id##_k, kvq_codec_##id##_v

CODECS(f16);
CODECS(q8_0);
CODECS(q4_0);
CODECS(fp8);
CODECS(nvfp4);
CODECS(kivi4);
CODECS(kivi2);
CODECS(kivi2_g64);
CODECS(turbo4);
CODECS(turbo3);
CODECS(turbo2);
CODECS(turbo3_5);
CODECS(turbo2_5);
CODECS(kvarn4);
CODECS(kvarn3);
CODECS(kvarn2);
extern const kvq_codec kvq_codec_tier3_k, kvq_codec_tier2_k; /* their V side is kvarn's */

static const kvq_kv_type types[] = {
    {"f16", "exact; the reference", &kvq_codec_f16_k, &kvq_codec_f16_v, 0, UINT32_MAX, NULL},
    {"q8_0", "8.5 bits, no loss to be seen", &kvq_codec_q8_0_k, &kvq_codec_q8_0_v, 64, 64, NULL},
    {"q4_0", "4.5 bits, the common choice, cheap to encode", &kvq_codec_q4_0_k, &kvq_codec_q4_0_v, 64, 64, NULL},
    {"fp8", "8 bits as e4m3 floats, for GPUs that have them; q8_0 loses less", &kvq_codec_fp8_k, &kvq_codec_fp8_v, 64, 64,
     NULL},
    {"nvfp4", "4.5 bits in the format of NVIDIA's tensor cores", &kvq_codec_nvfp4_k, &kvq_codec_nvfp4_v, 64, 64, NULL},
    {"kivi4", "5 bits, keys by channel, values by token", &kvq_codec_kivi4_k, &kvq_codec_kivi4_v, 64, 64, NULL},
    {"kivi2", "3 bits, KIVI; tier2 is smaller and loses less", &kvq_codec_kivi2_k, &kvq_codec_kivi2_v, 64, 64, "tier2"},
    {"kivi2_g64", "2.5 bits, KIVI with groups of 64", &kvq_codec_kivi2_g64_k, &kvq_codec_kivi2_g64_v, 64, 64, "tier2"},
    {"turbo4", "4.1 bits, TurboQuant", &kvq_codec_turbo4_k, &kvq_codec_turbo4_v, 64, 64, NULL},
    {"turbo3", "3.1 bits, TurboQuant", &kvq_codec_turbo3_k, &kvq_codec_turbo3_v, 64, 64, NULL},
    {"turbo2", "2.1 bits, TurboQuant: the smallest", &kvq_codec_turbo2_k, &kvq_codec_turbo2_v, 64, 64, "tier2"},
    {"turbo3.5", "3.8 bits, TurboQuant with wide outlier channels", &kvq_codec_turbo3_5_k, &kvq_codec_turbo3_5_v, 64, 64,
     NULL},
    {"turbo2.5", "2.8 bits, TurboQuant with wide outlier channels", &kvq_codec_turbo2_5_k, &kvq_codec_turbo2_5_v, 64, 64,
     "tier2"},
    {"kvarn4", "4.6 bits, the least loss near 4 bits", &kvq_codec_kvarn4_k, &kvq_codec_kvarn4_v, 64, 64, NULL},
    {"kvarn3", "3.6 bits, a good balance", &kvq_codec_kvarn3_k, &kvq_codec_kvarn3_v, 64, 64, NULL},
    {"kvarn2", "2.6 bits; tier2 loses less at about that size", &kvq_codec_kvarn2_k, &kvq_codec_kvarn2_v, 64, 64, "tier2"},
    {"tier3", "3.7 bits, key channels by importance", &kvq_codec_tier3_k, &kvq_codec_kvarn3_v, 64, 64, NULL},
    {"tier2", "2.7 bits, key channels by importance: the least loss below 3 bits", &kvq_codec_tier2_k, &kvq_codec_kvarn2_v,
     64, 64, NULL},
};

uint32_t kvq_kv_type_count(void) {
    return sizeof types / sizeof types[0];
}

const kvq_kv_type *kvq_kv_type_at(uint32_t i) {
    return i < kvq_kv_type_count() ? &types[i] : NULL;
}

const kvq_kv_type *kvq_kv_type_find(const char *name) {
    for (uint32_t i = 0; i < kvq_kv_type_count(); i++)
        if (strcmp(types[i].name, name) == 0)
            return &types[i];
    return NULL;
}
