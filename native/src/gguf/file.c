/* Mapping a file, and saying what it is if it is no GGUF. */
#define _GNU_SOURCE
#include "gguf/container.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static pykvq_status fail_errno(int error) {
    if (error == ENOENT)
        return kvq_fail(PYKVQ_E_FILE, "no such file");
    if (error == EACCES)
        return kvq_fail(PYKVQ_E_FILE, "no permission to read it");
    if (error == ENOMEM)
        return kvq_fail(PYKVQ_E_MEMORY, "no memory to map it");
    return kvq_fail(PYKVQ_E_FILE, "cannot be read: %s", strerror(error));
}

static pykvq_status map_open_file(kvq_gguf_file *file, int fd) {
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return fail_errno(errno);
    if (S_ISDIR(stat.st_mode))
        return kvq_fail(PYKVQ_E_FILE, "expected a GGUF file, got a directory");
    if (!S_ISREG(stat.st_mode))
        return kvq_fail(PYKVQ_E_FILE, "expected a GGUF file, got something that is not a regular file");
    if (stat.st_size == 0)
        return kvq_fail(PYKVQ_E_FORMAT, "expected a GGUF file, got an empty one");
    if ((uint64_t)stat.st_size > SIZE_MAX)
        return kvq_fail(PYKVQ_E_MEMORY, "%" PRIu64 " bytes are more than this machine can address", (uint64_t)stat.st_size);
    void *bytes = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED)
        return fail_errno(errno);
    file->bytes = bytes;
    file->n_bytes = (uint64_t)stat.st_size;
    file->is_mapped = true;
    return PYKVQ_OK;
}

pykvq_status kvq_gguf_file_map(kvq_gguf_file *file, const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make it wait */
    if (fd < 0)
        return fail_errno(errno);
    pykvq_status status = map_open_file(file, fd);
    close(fd);
    return status;
}

static bool starts_with(const kvq_gguf_file *file, const char *text) {
    size_t n = strlen(text);
    return file->n_bytes >= n && memcmp(file->bytes, text, n) == 0;
}

static bool is_html(const kvq_gguf_file *file) {
    uint64_t at = 0;
    while (at < file->n_bytes && at < 64 && memchr(" \t\r\n", file->bytes[at], 4) != NULL)
        at++;
    const char *text = (const char *)file->bytes + at;
    uint64_t n = file->n_bytes - at;
    return (n >= 5 && strncasecmp(text, "<html", 5) == 0) || (n >= 9 && strncasecmp(text, "<!doctype", 9) == 0);
}

/* A safetensors file is a uint64 length, then that many bytes of JSON. */
static bool is_safetensors(const kvq_gguf_file *file) {
    uint64_t n_json;
    if (file->n_bytes < 10)
        return false;
    memcpy(&n_json, file->bytes, 8);
    return file->bytes[8] == '{' && n_json >= 2 && n_json <= file->n_bytes - 8;
}

/* n_bytes >= 4 */
static const char *guess(const kvq_gguf_file *file) {
    if (is_safetensors(file))
        return "a safetensors file: convert the model to GGUF first";
    if (starts_with(file, "PK\x03\x04"))
        return "a zip archive, perhaps a PyTorch checkpoint: convert the model to GGUF first";
    if (starts_with(file, "version https://git-lfs"))
        return "a git-lfs pointer: fetch the file itself with git lfs pull";
    if (is_html(file))
        return "an HTML page: the download got a web page instead of the file";
    if (starts_with(file, "tjgg") || starts_with(file, "lmgg") || starts_with(file, "fmgg") || starts_with(file, "algg"))
        return "a GGML file from before GGUF: convert the model to GGUF first";
    if (memcmp(file->bytes, (const uint8_t[4]){0}, 4) == 0)
        return "zeros: an unfinished download?";
    return NULL;
}

pykvq_status kvq_gguf_file_check_magic(const kvq_gguf_file *file) {
    enum { N_HEADER = 24 };
    if (file->n_bytes >= 4 && !starts_with(file, "GGUF")) {
        const char *what = guess(file);
        const uint8_t *b = file->bytes;
        if (what != NULL)
            return kvq_fail(PYKVQ_E_FORMAT, "expected a GGUF file, got %s", what);
        return kvq_fail(PYKVQ_E_FORMAT, "expected a GGUF file, whose first bytes are 47 47 55 46, got %02x %02x %02x %02x",
                        b[0], b[1], b[2], b[3]);
    }
    if (file->n_bytes < N_HEADER)
        return kvq_fail(PYKVQ_E_FORMAT, "expected a GGUF file of at least %d bytes, got %" PRIu64, N_HEADER, file->n_bytes);
    return PYKVQ_OK;
}
