/* What the core and the CUDA library agree on: the one symbol that library exports. Included by both. */
#ifndef KVQ_BACKEND_CUDA_LIBRARY_H
#define KVQ_BACKEND_CUDA_LIBRARY_H

#ifdef __cplusplus
extern "C" {
#endif
#include "backend/backend.h"

enum { KVQ_CUDA_ABI = 5 /* grows with every change of backend.h or codec.h */ };

typedef struct kvq_cuda_host { /* what the core gives */
    uint32_t abi;
    size_t limits_bytes, ops_bytes;                                     /* of kvq_backend_limits, kvq_backend_ops */
    pykvq_status (*fail)(pykvq_status status, const char *format, ...); /* kvq_fail */
} kvq_cuda_host;

typedef struct kvq_cuda_library {
    pykvq_status (*check_device)(void); /* a GPU that the library can use, or a sentence */
    pykvq_status (*create)(const kvq_backend_limits *limits, kvq_backend **out);
    size_t (*scratch_bytes)(const kvq_backend_limits *limits);                           /* what create takes */
    pykvq_status (*kv_check)(const kvq_codec *k, const kvq_codec *v, uint32_t head_dim); /* as kvq_device_kv_check */
    size_t (*weight_bytes)(const kvq_weight *w);                                         /* of a weight on the GPU */
    size_t (*taken_bytes)(size_t n_bytes);                                               /* by an allocation of so many */
    pykvq_status (*memory)(size_t *n_free, size_t *n_total);                             /* of the GPU */
} kvq_cuda_library;

#define KVQ_CUDA_OPEN "kvq_cuda_open"
typedef const kvq_cuda_library *kvq_cuda_open_function(const kvq_cuda_host *host); /* NULL if built for another version */

#ifdef __cplusplus
}
#endif
#endif
