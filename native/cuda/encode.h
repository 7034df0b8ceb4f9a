/* Encoding tiles on the GPU. */
#ifndef KVQ_CUDA_ENCODE_H
#define KVQ_CUDA_ENCODE_H

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "format.h"
#include "tile.h"

typedef struct tile_format { /* of a codec, as the encoder needs it */
    uint32_t family, bits, group;
    bool is_k, rotated;
} tile_format;

typedef struct encode_job { /* layout of kvq_encode_job */
    uint32_t raw, coded, tile;
} encode_job;

typedef struct encode_args {
    const __half *raw; /* (page, head, { K, V } f16 fragment tiles) */
    uint8_t *coded;
    const encode_job *jobs; /* device memory */
    tile_format k, v;
    uint32_t k_tile_bytes, v_tile_bytes, n_head_kv, head_dim;
    bias_tables bias;
} encode_args;

size_t encode_shared_bytes(const tile_format &k, const tile_format &v, uint32_t head_dim); /* that a block needs */
cudaError_t launch_encode(const encode_args &args, uint32_t n_jobs, cudaStream_t stream);

#endif
