/* Errors: a status code up the call chain, one sentence per thread beside it. */
#ifndef KVQ_BASE_STATUS_H
#define KVQ_BASE_STATUS_H

#include "pykvq.h"

/* Sets this thread's sentence and returns status. Write "object: what is wrong, what was expected", no final period. */
pykvq_status kvq_fail(pykvq_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Puts "text: " in front of this thread's sentence; returns status. */
pykvq_status kvq_fail_in(pykvq_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *kvq_error(void);

#define KVQ_TRY(call)                                                                                                      \
    do {                                                                                                                   \
        pykvq_status kvq_try_status_ = (call);                                                                             \
        if (kvq_try_status_ != PYKVQ_OK)                                                                                   \
            return kvq_try_status_;                                                                                        \
    } while (0)

#endif
