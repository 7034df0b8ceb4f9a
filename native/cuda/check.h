/* What the parts of kvq_cuda_check share. */
#ifndef KVQ_CUDA_CHECK_H
#define KVQ_CUDA_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#include "backend/backend.h"
#include "engine/engine.h"

void die(const char *what);
double seconds(void);
float uniform(void); /* 0 to 1 */
float normal(void);
void *device(kvq_backend *be, size_t n_bytes);
kvq_backend *open_backend(const kvq_backend_limits *limits); /* or the end, with status 77, if there is no GPU */

#define TRY(call)                                                                                                          \
    if ((call) != PYKVQ_OK)                                                                                                \
    die(#call)

/* check_product.c */
int check_products(void);
int time_products(void);
int time_few_rows(const char *type,
                  const char *last); /* type NULL: all, 1 and 32 rows; last: of the last matrix, or NULL */

#endif
