#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char sentence[1024];

static void format_sentence(const char *format, va_list args) {
    /* Through a copy: an argument may be the old sentence. */
    char text[sizeof sentence];
    vsnprintf(text, sizeof text, format, args);
    memcpy(sentence, text, sizeof sentence);
}

pykvq_status kvq_fail(pykvq_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    format_sentence(format, args);
    va_end(args);
    return status;
}

pykvq_status kvq_fail_in(pykvq_status status, const char *format, ...) {
    char old[sizeof sentence];
    memcpy(old, sentence, sizeof sentence);
    va_list args;
    va_start(args, format);
    format_sentence(format, args);
    va_end(args);
    size_t n = strlen(sentence);
    snprintf(sentence + n, sizeof sentence - n, ": %s", old);
    return status;
}

const char *kvq_error(void) {
    return sentence;
}
