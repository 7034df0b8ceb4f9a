/*
 * A page between the GPU's order and the canonical one, for saving and loading sequences. One block per (KV head, side).
 * Codes go through shared memory as bytes, scales from place to place.
 *
 * Canonically codes lie in planes (kv/pack.h): a plane has some bits of each code, 8 / bits codes in a byte; codes of 3
 * bits are a plane of 2 bits and one of 1. A tile with tiers has planes for each.
 */
#include "order.h"

#include "instructions.cuh"
#include "pack.cuh"

namespace {

constexpr int N_THREADS = 256, MAX_PLANES = 2 * N_TIERS;

struct plane {
    uint32_t bits, from; /* of a code */
    uint32_t first, n;   /* channels, of a tile with tiers places */
    uint32_t offset;     /* bytes into the tile */
};

__device__ uint32_t add_planes(uint32_t bits, uint32_t first, uint32_t n, uint32_t offset, plane *planes) {
    if (bits != 3) {
        planes[0] = {bits, 0, first, n, offset};
        return 1;
    }
    planes[0] = {2, 0, first, n, offset};
    planes[1] = {1, 2, first, n, offset + TILE_TOKENS * n * 2 / 8};
    return 2;
}

__device__ uint32_t find_planes(const tile_format &f, uint32_t head_dim, plane *planes) {
    uint32_t n_planes = 0;
    for (uint32_t i = 0; i < N_TIERS; i++) {
        tier t = tier_of(f.family, f.bits, head_dim, i);
        if (t.first < t.end)
            n_planes += add_planes(t.bits, t.first, t.end - t.first, 4 * tier_word(f.family, f.bits, head_dim, t.first),
                                   planes + n_planes);
    }
    return n_planes;
}

/* Where field `field` of byte i of a plane is from, in codes (64, head_dim): the inverse of kvq_dot_byte. */
__device__ uint32_t place_of_field(bool is_k, const plane &p, uint32_t head_dim, uint32_t i, uint32_t field) {
    uint32_t vector = i / 64 * (8 / p.bits) + field, lane = i % 64 / 4, byte = i % 4;
    uint32_t token = is_k ? vector % 4 * 16 + lane : vector % 16 * 4 + byte;
    uint32_t channel = is_k ? vector / 4 * 4 + byte : vector / 16 * 16 + lane;
    return token * head_dim + p.first + channel;
}

__device__ void codes_to_canonical(const tile_format &f, uint32_t head_dim, const uint8_t *codes, uint8_t *tile) {
    plane planes[MAX_PLANES];
    uint32_t n_planes = find_planes(f, head_dim, planes);
    for (uint32_t p = 0; p < n_planes; p++)
        for (uint32_t i = threadIdx.x; i < TILE_TOKENS * planes[p].n * planes[p].bits / 8; i += blockDim.x) {
            uint32_t byte = 0;
            for (uint32_t field = 0; field < 8 / planes[p].bits; field++) {
                uint32_t code = codes[place_of_field(f.is_k, planes[p], head_dim, i, field)] >> planes[p].from;
                byte |= (code & ((1u << planes[p].bits) - 1)) << field * planes[p].bits;
            }
            tile[planes[p].offset + i] = (uint8_t)byte;
        }
}

/* codes are zero */
__device__ void codes_from_canonical(const tile_format &f, uint32_t head_dim, const uint8_t *tile, uint8_t *codes) {
    plane planes[MAX_PLANES];
    uint32_t n_planes = find_planes(f, head_dim, planes);
    for (uint32_t p = 0; p < n_planes; p++) {
        for (uint32_t i = threadIdx.x; i < TILE_TOKENS * planes[p].n * planes[p].bits / 8; i += blockDim.x)
            for (uint32_t field = 0; field < 8 / planes[p].bits; field++) {
                uint32_t code = tile[planes[p].offset + i] >> field * planes[p].bits & ((1u << planes[p].bits) - 1);
                codes[place_of_field(f.is_k, planes[p], head_dim, i, field)] |= (uint8_t)(code << planes[p].from);
            }
        __syncthreads(); /* the next plane has other bits of the same bytes */
    }
}

template <typename T> __device__ void move(T *gpu, uint32_t at, T *canonical, uint32_t i, bool to_canonical) {
    if (to_canonical)
        canonical[i] = gpu[at];
    else
        gpu[at] = canonical[i];
}

/* What follows the codes. */
__device__ void order_meta(const tile_format &f, uint32_t head_dim, uint8_t *gpu, uint8_t *canonical, bool to_canonical) {
    uint32_t n_halfs = meta_halfs(f.family, f.is_k, f.group, head_dim);
    __half *gpu_halfs = reinterpret_cast<__half *>(gpu), *halfs = reinterpret_cast<__half *>(canonical);
    if (f.family == FAMILY_NVFP4) {
        uint32_t n = head_dim / 16 * TILE_TOKENS;
        for (uint32_t i = threadIdx.x; i < n + 4; i += blockDim.x) /* a byte each, then the tile's float */
            move(gpu, i < n ? nvfp4_scale_place(f.is_k, i) : i, canonical, i, to_canonical);
        return;
    }
    if (f.family == FAMILY_TIER)
        n_halfs -= head_dim / 2;
    for (uint32_t i = threadIdx.x; i < n_halfs; i += blockDim.x)
        move(gpu_halfs, meta_place(f.family, f.is_k, f.group, head_dim, i), halfs, i, to_canonical);
    if (f.family != FAMILY_TIER)
        return;
    uint8_t *gpu_order = gpu + 2 * n_halfs, *order = canonical + 2 * n_halfs;
    for (uint32_t place = threadIdx.x; place < head_dim; place += blockDim.x) {
        if (!to_canonical)
            gpu_order[col_order(place)] = (uint8_t)col_order(order[place]);
        for (uint32_t d = 0; to_canonical && d < head_dim; d++)
            if (col_order(d) == gpu_order[col_order(place)])
                order[place] = (uint8_t)d;
    }
}

/* The canonical K tile of f16 has tokens fastest, the V tile channels. */
__device__ void order_halfs(bool is_k, uint32_t head_dim, uint8_t *gpu, uint8_t *canonical, bool to_canonical) {
    for (uint32_t i = threadIdx.x; i < TILE_TOKENS * head_dim; i += blockDim.x) {
        uint32_t token = is_k ? i % TILE_TOKENS : i / head_dim, channel = is_k ? i / TILE_TOKENS : i % head_dim;
        move(reinterpret_cast<__half *>(gpu), place_half(is_k, head_dim, token, channel),
             reinterpret_cast<__half *>(canonical), i, to_canonical);
    }
}

__global__ void __launch_bounds__(N_THREADS) order_kernel(const __grid_constant__ order_args a) {
    bool is_k = blockIdx.y == 0;
    const tile_format &f = is_k ? a.k : a.v;
    uint32_t hd = a.head_dim, n_codes_bytes = 4 * code_words(f.family, f.bits, hd);
    size_t offset = (size_t)blockIdx.x * (a.k_bytes + a.v_bytes) + (is_k ? 0 : a.k_bytes);
    uint8_t *gpu = a.page + offset, *canonical = a.canonical + offset;
    if (a.to_canonical)
        for (uint32_t i = (is_k ? a.k_tile_bytes : a.v_tile_bytes) + threadIdx.x; i < (is_k ? a.k_bytes : a.v_bytes);
             i += blockDim.x)
            canonical[i] = 0;
    if (f.family == FAMILY_F16) {
        order_halfs(is_k, hd, gpu, canonical, a.to_canonical);
        return;
    }
    uint32_t *words = reinterpret_cast<uint32_t *>(shared_memory());
    uint8_t *codes = shared_memory() + n_codes_bytes;
    for (uint32_t i = threadIdx.x; i < n_codes_bytes / 4; i += blockDim.x)
        words[i] = a.to_canonical ? reinterpret_cast<const uint32_t *>(gpu)[i] : 0;
    for (uint32_t i = threadIdx.x; i < TILE_TOKENS * hd; i += blockDim.x)
        codes[i] = 0;
    __syncthreads();
    if (a.to_canonical) {
        unpack_codes(f, hd, words, codes);
        __syncthreads();
        codes_to_canonical(f, hd, codes, canonical);
    } else {
        codes_from_canonical(f, hd, canonical, codes);
        pack_codes(f, hd, codes, words);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n_codes_bytes / 4; i += blockDim.x)
            reinterpret_cast<uint32_t *>(gpu)[i] = words[i];
    }
    order_meta(f, hd, gpu + n_codes_bytes, canonical + n_codes_bytes, a.to_canonical);
}

} // namespace

cudaError_t launch_order(const order_args &args, cudaStream_t stream) {
    size_t shared = 2 * TILE_TOKENS * args.head_dim; /* codes, and words of at most 8 bits */
    return launch_after(order_kernel, dim3(args.n_head_kv, 2), N_THREADS, shared, stream, args);
}
