/* Pages in the order of the GPU (tile.h) and in the canonical one, which files and the CPU have (kv/pack.h, backend.h). */
#ifndef KVQ_CUDA_ORDER_H
#define KVQ_CUDA_ORDER_H

#include "encode.h"

typedef struct order_args {
    uint8_t *page, *canonical; /* a page of a layer as it lies in the cache; as it lies in a file; device memory */
    tile_format k, v;          /* of encoded pages; of f16 pages those of f16 */
    uint32_t k_bytes, v_bytes; /* of a head, as they lie in a page */
    uint32_t k_tile_bytes, v_tile_bytes; /* of these, what the codec has; the rest is zero in the canonical page */
    uint32_t n_head_kv, head_dim;
    bool to_canonical;
} order_args;

cudaError_t launch_order(const order_args &args, cudaStream_t stream);

#endif
