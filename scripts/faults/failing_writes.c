/* Preloaded into every process of a run (LD_PRELOAD): while the file DARTS_FAILING_WRITES is there,
 * writes to files below a directory fail. The file's first line is the error's number, the second
 * the directory. Any program is met, whatever language it is written in. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The error for a write to this descriptor; 0: it goes on. System calls of its own, so that it
 * never meets itself. */
static int error_for(int descriptor) {
    const char *plan = getenv("DARTS_FAILING_WRITES");
    char text[PATH_MAX + 16], name[64], path[PATH_MAX];
    if (plan == NULL) return 0;
    int kept = errno;
    int file = (int)syscall(SYS_openat, AT_FDCWD, plan, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        errno = kept;
        return 0;
    }
    long size = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    errno = kept;
    if (size <= 0) return 0;
    text[size] = 0;
    char *directory = strchr(text, '\n');
    if (directory == NULL) return 0;
    directory += 1;
    directory[strcspn(directory, "\n")] = 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    long length = syscall(SYS_readlinkat, AT_FDCWD, name, path, sizeof path - 1);
    errno = kept;
    if (length <= 0) return 0;
    path[length] = 0;
    return strncmp(path, directory, strlen(directory)) == 0 ? atoi(text) : 0;
}

#define FAILING(result, name, parameters, arguments)                        \
    result name parameters {                                                \
        static result(*next) parameters;                                    \
        if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, #name);        \
        int error = error_for(descriptor);                                  \
        if (error != 0) {                                                   \
            errno = error;                                                  \
            return -1;                                                      \
        }                                                                   \
        return next arguments;                                              \
    }

FAILING(ssize_t, write, (int descriptor, const void *from, size_t count), (descriptor, from, count))
FAILING(ssize_t, pwrite, (int descriptor, const void *from, size_t count, off_t at), (descriptor, from, count, at))
FAILING(ssize_t, pwrite64, (int descriptor, const void *from, size_t count, off64_t at), (descriptor, from, count, at))
FAILING(ssize_t, writev, (int descriptor, const struct iovec *from, int count), (descriptor, from, count))
FAILING(int, fsync, (int descriptor), (descriptor))
FAILING(int, fdatasync, (int descriptor), (descriptor))
FAILING(int, ftruncate, (int descriptor, off_t size), (descriptor, size))
FAILING(int, ftruncate64, (int descriptor, off64_t size), (descriptor, size))
