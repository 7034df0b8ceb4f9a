"""The order of a tile on the GPU is a bijection of the canonical one: host code, no GPU and no nvcc needed."""

import shutil
import subprocess
from pathlib import Path

import pytest

CUDA = Path(__file__).parents[2] / "native" / "cuda"

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tile.h"

/* Every code has bits of its own and none is left over; what was put is got. */
static int check_codes(bool is_k, uint32_t bits, uint32_t head_dim) {
    uint32_t n_words = 64 * head_dim * bits / 32;
    uint32_t *words = calloc(n_words, 4);
    unsigned char *codes = malloc(64 * head_dim);
    for (uint32_t i = 0; i < 64 * head_dim; i++) {
        codes[i] = (unsigned char)(rand() >> 7 & ((1u << bits) - 1));
        put_code(words, place_code(is_k, bits, head_dim, i / head_dim, i % head_dim), codes[i]);
    }
    for (uint32_t i = 0; i < 64 * head_dim; i++)
        if (get_code(words, place_code(is_k, bits, head_dim, i / head_dim, i % head_dim), bits) != codes[i])
            return 1;
    memset(words, 0, n_words * 4);
    for (uint32_t i = 0; i < 64 * head_dim; i++)
        put_code(words, place_code(is_k, bits, head_dim, i / head_dim, i % head_dim), (1u << bits) - 1);
    for (uint32_t i = 0; i < n_words; i++)
        if (words[i] != ~0u)
            return 2;
    return 0;
}

/* The same of codes that index a table. */
static int check_levels(bool is_k, uint32_t bits, uint32_t head_dim) {
    uint32_t n_words = 64 * head_dim * bits / 32;
    uint32_t *words = calloc(n_words, 4);
    unsigned char *codes = malloc(64 * head_dim);
    for (uint32_t i = 0; i < 64 * head_dim; i++) {
        codes[i] = (unsigned char)(rand() >> 7 & ((1u << bits) - 1));
        put_level(words, place_level(is_k, bits, head_dim, i / head_dim, i % head_dim), codes[i]);
    }
    for (uint32_t i = 0; i < 64 * head_dim; i++)
        if (get_level(words, place_level(is_k, bits, head_dim, i / head_dim, i % head_dim), bits) != codes[i])
            return 1;
    memset(words, 0, n_words * 4);
    for (uint32_t i = 0; i < 64 * head_dim; i++)
        put_level(words, place_level(is_k, bits, head_dim, i / head_dim, i % head_dim), (1u << bits) - 1);
    for (uint32_t i = 0; i < n_words; i++)
        if (words[i] != ~0u)
            return 2;
    return 0;
}

/* The same of tiles of several widths; bits: of the type. */
static void put_tiered(bool is_k, uint32_t family, uint32_t bits, uint32_t head_dim, uint32_t i, uint32_t *words,
                       uint32_t code) {
    if (family == FAMILY_TIER)
        put_code(words, place_tiered(bits, head_dim, i / head_dim, i % head_dim), code);
    else
        put_level(words, place_split(is_k, bits, head_dim, i / head_dim, i % head_dim), code);
}

static int check_tiers(bool is_k, uint32_t family, uint32_t bits, uint32_t head_dim) {
    uint32_t n_words = code_words(family, bits, head_dim), n_bits = 0;
    uint32_t *words = calloc(n_words, 4);
    unsigned char *codes = malloc(64 * head_dim);
    for (uint32_t i = 0; i < 64 * head_dim; i++) {
        uint32_t width = tier_bits(family, bits, head_dim, i % head_dim);
        codes[i] = (unsigned char)(rand() >> 7 & ((1u << width) - 1));
        put_tiered(is_k, family, bits, head_dim, i, words, codes[i]);
        n_bits += width;
    }
    for (uint32_t i = 0; i < 64 * head_dim; i++) {
        uint32_t t = i / head_dim, place = i % head_dim, width = tier_bits(family, bits, head_dim, place);
        uint32_t code = family == FAMILY_TIER ? get_code(words, place_tiered(bits, head_dim, t, place), width)
                                              : get_level(words, place_split(is_k, bits, head_dim, t, place), width);
        if (code != codes[i])
            return 1;
    }
    memset(words, 0, n_words * 4);
    for (uint32_t i = 0; i < 64 * head_dim; i++)
        put_tiered(is_k, family, bits, head_dim, i, words, (1u << tier_bits(family, bits, head_dim, i % head_dim)) - 1);
    for (uint32_t i = 0; i < n_words; i++)
        if (words[i] != ~0u)
            return 2;
    return n_bits != 32 * n_words;
}

static int check_nvfp4_scales(bool is_k, uint32_t head_dim) {
    uint32_t n = head_dim / 16 * 64;
    char *seen = calloc(n, 1);
    for (uint32_t i = 0; i < n; i++)
        if (nvfp4_scale_place(is_k, i) >= n || seen[nvfp4_scale_place(is_k, i)]++)
            return 1;
    return 0;
}

static int check_meta(uint32_t family, bool is_k, uint32_t group, uint32_t head_dim) {
    uint32_t n = meta_halfs(family, is_k, group, head_dim);
    char *seen = calloc(n, 1);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t place = meta_place(family, is_k, group, head_dim, i);
        if (place >= n || seen[place])
            return 1;
        seen[place] = 1;
    }
    return 0;
}

int main(void) {
    static const uint32_t widths[] = {2, 3, 4, 8};
    static const uint32_t groups[][2] = {
        {FAMILY_KIVI, 32},  {FAMILY_KIVI, 64},   {FAMILY_BLOCKS, 32},
        {FAMILY_KVARN, 64}, {FAMILY_TURBO, 256}, {FAMILY_SPLIT, 256}};
    int n = 0;
    for (uint32_t head_dim = 16; head_dim <= 256; head_dim += 16)
        for (int is_k = 0; is_k < 2; is_k++) {
            for (int i = 0; i < 4; i++, n++)
                if (check_codes(is_k, widths[i], head_dim)) {
                    printf("codes: side %d, %u bits, head_dim %u\n", is_k, widths[i], head_dim);
                    return 1;
                }
            for (uint32_t bits = 2; bits <= 4; bits++, n++)
                if (check_levels(is_k, bits, head_dim)) {
                    printf("levels: side %d, %u bits, head_dim %u\n", is_k, bits, head_dim);
                    return 1;
                }
            for (uint32_t bits = 2; bits <= 3; bits++, n++)
                if ((is_k && check_tiers(is_k, FAMILY_TIER, bits, head_dim)) ||
                    (head_dim >= 32 && check_tiers(is_k, FAMILY_SPLIT, bits, head_dim))) {
                    printf("tiers: side %d, %u bits, head_dim %u\n", is_k, bits, head_dim);
                    return 1;
                }
            if (check_nvfp4_scales(is_k, head_dim))
                return 1;
            char *seen = calloc(64 * head_dim, 1);
            for (uint32_t i = 0; i < 64 * head_dim; i++)
                if (seen[place_half(is_k, head_dim, i / head_dim, i % head_dim)]++)
                    return 1;
            for (int i = 0; i < 6; i++, n++)
                if (check_meta(groups[i][0], is_k, groups[i][1], head_dim)) {
                    printf("scales: side %d, family %u, head_dim %u\n", is_k, groups[i][0], head_dim);
                    return 1;
                }
        }
    for (uint32_t code = 0; code < 16; code++)
        if (from_sign_magnitude(4, sign_magnitude(4, code)) != code ||
            from_sign_magnitude(2, sign_magnitude(2, code % 4)) != code % 4)
            return 1;
    printf("%d\n", n);
    return 0;
}
"""


def test_tile_order_is_a_bijection(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "tiles.c"
    source.write_text(PROGRAM)
    command = [compiler, "-std=c11", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover", f"-I{CUDA}", source]
    subprocess.run([*command, "-o", tmp_path / "tiles"], check=True)
    done = subprocess.run([tmp_path / "tiles"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout) == 16 * 2 * 15
