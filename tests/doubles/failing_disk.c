/* A disk that fails on demand: preloaded, it makes one chosen system call that writes below a folder return an error.

   FAILING_DISK names a file of `struct control` that all processes of a run share (benchmarks/faults.py).
   Build: cc -shared -fPIC -O1 -o failing_disk.so failing_disk.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE, PWRITE, WRITEV, FSYNC, FDATASYNC, RENAME, OPEN, MKDIR, LINK, SYMLINK, FTRUNCATE, UNLINK, RMDIR, UTIME, CALLS };

struct control {
    int active;     /* 1: count and fail; 2: count, and note every call in `trace` */
    int call;       /* which of the above fails */
    int error;      /* errno */
    int lasting;    /* fail from then on, every call that needs space or writes */
    long at;        /* the how manieth call fails, from 1 */
    long counts[CALLS];
    long fired;
    char where[512]; /* path of the first call that failed */
    char root[512];
    char trace[512]; /* file that calls are noted in */
};

static struct control *control;

__attribute__((constructor)) static void map_control(void) {
    const char *name = getenv("FAILING_DISK");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *place = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (place != MAP_FAILED) control = place;
}

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })

static int fd_path(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    out[n > 0 ? n : 0] = 0;
    return n > 0;
}

static void full_path(int dirfd, const char *path, char *out) {
    char folder[PATH_MAX] = "";
    if (path[0] != '/') {
        if (dirfd == AT_FDCWD) { if (!getcwd(folder, sizeof folder)) folder[0] = 0; }
        else fd_path(dirfd, folder);
        snprintf(out, PATH_MAX, "%.2000s/%.2000s", folder, path);
    } else snprintf(out, PATH_MAX, "%.4000s", path);
}

static void note(int call, long n, const char *path) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%d %ld %s\n", call, n, path);
    int fd = REAL(open)(control->trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd >= 0) { ssize_t done = REAL(write)(fd, line, length); (void)done; close(fd); }
}

/* Whether this call has to fail; errno is set then. */
static int fails(int call, const char *path) {
    if (!control || !control->active || strncmp(path, control->root, strlen(control->root))) return 0;
    long n = __atomic_add_fetch(&control->counts[call], 1, __ATOMIC_SEQ_CST);
    if (control->active == 2) { int saved = errno; note(call, n, path); errno = saved; return 0; }
    int writes = call != UNLINK && call != RMDIR && call != UTIME && call != RENAME;
    int now = call == control->call && n == control->at;
    if (!now && !(control->lasting && control->fired && writes)) return 0;
    if (__atomic_fetch_add(&control->fired, 1, __ATOMIC_SEQ_CST) == 0) snprintf(control->where, sizeof control->where, "%s", path);
    errno = control->error;
    return 1;
}

static int fd_fails(int call, int fd) {
    char path[PATH_MAX];
    if (!control || !control->active || fd < 3) return 0;
    int saved = errno;
    int known = fd_path(fd, path);
    errno = saved;
    return known && fails(call, path);
}

static int at_fails(int call, int dirfd, const char *name) {
    char path[PATH_MAX];
    if (!control || !control->active || !name) return 0;
    full_path(dirfd, name, path);
    return fails(call, path);
}

static int opens_to_write(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

ssize_t write(int fd, const void *data, size_t n) { return fd_fails(WRITE, fd) ? -1 : REAL(write)(fd, data, n); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { return fd_fails(PWRITE, fd) ? -1 : REAL(pwrite)(fd, data, n, at); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { return fd_fails(PWRITE, fd) ? -1 : REAL(pwrite64)(fd, data, n, at); }
ssize_t writev(int fd, const struct iovec *v, int n) { return fd_fails(WRITEV, fd) ? -1 : REAL(writev)(fd, v, n); }
int fsync(int fd) { return fd_fails(FSYNC, fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fd_fails(FDATASYNC, fd) ? -1 : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t n) { return fd_fails(FTRUNCATE, fd) ? -1 : REAL(ftruncate)(fd, n); }
int ftruncate64(int fd, off64_t n) { return fd_fails(FTRUNCATE, fd) ? -1 : REAL(ftruncate64)(fd, n); }
int rename(const char *a, const char *b) { return at_fails(RENAME, AT_FDCWD, b) ? -1 : REAL(rename)(a, b); }
int renameat(int d, const char *a, int e, const char *b) { return at_fails(RENAME, e, b) ? -1 : REAL(renameat)(d, a, e, b); }
int mkdir(const char *p, mode_t m) { return at_fails(MKDIR, AT_FDCWD, p) ? -1 : REAL(mkdir)(p, m); }
int mkdirat(int d, const char *p, mode_t m) { return at_fails(MKDIR, d, p) ? -1 : REAL(mkdirat)(d, p, m); }
int link(const char *a, const char *b) { return at_fails(LINK, AT_FDCWD, b) ? -1 : REAL(link)(a, b); }
int linkat(int d, const char *a, int e, const char *b, int f) { return at_fails(LINK, e, b) ? -1 : REAL(linkat)(d, a, e, b, f); }
int symlink(const char *a, const char *b) { return at_fails(SYMLINK, AT_FDCWD, b) ? -1 : REAL(symlink)(a, b); }
int symlinkat(const char *a, int d, const char *b) { return at_fails(SYMLINK, d, b) ? -1 : REAL(symlinkat)(a, d, b); }
int unlink(const char *p) { return at_fails(UNLINK, AT_FDCWD, p) ? -1 : REAL(unlink)(p); }
int unlinkat(int d, const char *p, int f) { return at_fails(UNLINK, d, p) ? -1 : REAL(unlinkat)(d, p, f); }
int rmdir(const char *p) { return at_fails(RMDIR, AT_FDCWD, p) ? -1 : REAL(rmdir)(p); }
int utimensat(int d, const char *p, const struct timespec t[2], int f) { return at_fails(UTIME, d, p) ? -1 : REAL(utimensat)(d, p, t, f); }

#define OPENING(name)                                                                    \
    int name(const char *path, int flags, ...) {                                         \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
        if (opens_to_write(flags) && at_fails(OPEN, AT_FDCWD, path)) return -1;          \
        return REAL(name)(path, flags, mode);                                            \
    }
#define OPENING_AT(name)                                                                 \
    int name(int dirfd, const char *path, int flags, ...) {                              \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
        if (opens_to_write(flags) && at_fails(OPEN, dirfd, path)) return -1;             \
        return REAL(name)(dirfd, path, flags, mode);                                     \
    }
OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)

FILE *fopen64(const char *path, const char *mode) {
    if (strpbrk(mode, "wa+") && at_fails(OPEN, AT_FDCWD, path)) return NULL;
    return REAL(fopen64)(path, mode);
}
