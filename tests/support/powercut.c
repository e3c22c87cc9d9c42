/* A disk that loses power: LD_PRELOAD below Python and SQLite.
 *
 * Counts every write, sync, truncation and removal of a file in one directory. At call
 * number `at` it does one of these:
 *
 *   power   every change that no sync covers is undone, and the process is gone
 *   some    of those changes a random part is kept, the last one torn; the same end
 *   kill    the process is gone; what was written stays, as after a SIGKILL
 *   eio     the call fails once with EIO
 *   enospc  this call and every later one that needs space fail with ENOSPC
 *
 * A change is remembered with the bytes before and after it until its file is synced.
 * A name is durable once its directory was synced: a new file is removed again, a removed
 * one put back. Errors that no sync covers are not modelled; mmap is not either, and
 * SQLite does not use it here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE, TRUNCATE, CREATE, REMOVE };
enum mode { NONE, POWER, SOME, KILL, EIO_ONCE, ENOSPC_ON };

struct change {
    enum kind kind;
    ino_t inode;
    int fd;               /* our own, see own_fd */
    char path[PATH_MAX];  /* of CREATE and REMOVE */
    char backup[PATH_MAX];  /* of REMOVE: another name of the same file */
    off_t offset;
    off_t size_before;
    size_t before_len, after_len;
    char *before, *after;
    struct change *earlier, *later;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char directory[PATH_MAX];
static size_t directory_len;
static enum mode mode;
static long at, calls, removals;
static unsigned seed;
static struct change *first, *last;

#define MAX_FDS 4096
#define MAX_FILES 64
static char is_watched[MAX_FDS];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* -- for Python, through ctypes ------------------------------------------- */

void powercut_arm(const char *path, const char *how, long number, unsigned random) {
    if (!realpath(path, directory)) abort();
    directory_len = strlen(directory);
    mode = !strcmp(how, "power") ? POWER : !strcmp(how, "some") ? SOME
         : !strcmp(how, "kill") ? KILL : !strcmp(how, "eio") ? EIO_ONCE
         : !strcmp(how, "enospc") ? ENOSPC_ON : NONE;
    at = number;
    seed = random;
    calls = 0;
}

long powercut_calls(void) { return calls; }

/* -- what was changed and is not durable ---------------------------------- */

static int is_inside(const char *path) {
    char full[PATH_MAX], parent[PATH_MAX];
    if (!directory_len) return 0;
    if (path[0] != '/') {
        if (!getcwd(parent, sizeof parent)) return 0;
        if (snprintf(full, sizeof full, "%s/%s", parent, path) >= (int)sizeof full)
            return 0;
        path = full;
    }
    return !strncmp(path, directory, directory_len)
        && (path[directory_len] == '/' || path[directory_len] == 0);
}

/* One descriptor of ours for each file. It is never closed: that would drop the record
 * locks of the process, and let the inode's number be used again. */
static int own_fd(int fd, ino_t inode) {
    static struct { ino_t inode; int fd; } files[MAX_FILES];
    for (int i = 0; i < MAX_FILES; i++) {
        if (files[i].inode == inode) return files[i].fd;
        if (!files[i].inode) {
            files[i].inode = inode;
            return files[i].fd = dup(fd);
        }
    }
    abort();
}

static struct change *remember(enum kind kind, ino_t inode, int fd) {
    struct change *change = calloc(1, sizeof *change);
    change->kind = kind;
    change->inode = inode;
    change->fd = fd;
    change->earlier = last;
    if (last) last->later = change; else first = change;
    last = change;
    return change;
}

static void forget(struct change *change) {
    if (change->earlier) change->earlier->later = change->later;
    else first = change->later;
    if (change->later) change->later->earlier = change->earlier;
    else last = change->earlier;
    if (change->kind == REMOVE) syscall(SYS_unlink, change->backup);
    free(change->before);
    free(change->after);
    free(change);
}

static void remember_data(enum kind kind, int fd, const void *data, size_t len,
                          off_t offset) {
    struct stat status;
    if (fstat(fd, &status)) return;
    ino_t inode = status.st_ino;
    struct change *change = remember(kind, inode, own_fd(fd, inode));
    change->offset = offset;
    change->size_before = status.st_size;
    off_t end = kind == TRUNCATE ? status.st_size : offset + (off_t)len;
    if (end > status.st_size) end = status.st_size;
    if (end > offset) {
        change->before_len = end - offset;
        change->before = malloc(change->before_len);
        ssize_t got = REAL(pread)(fd, change->before, change->before_len, offset);
        if (got < 0) change->before_len = 0;
    }
    if (len) {
        change->after = malloc(len);
        memcpy(change->after, data, len);
        change->after_len = len;
    }
}

static void undo(struct change *change) {
    if (change->kind == CREATE) {
        syscall(SYS_unlink, change->path);
    } else if (change->kind == REMOVE) {
        if (syscall(SYS_rename, change->backup, change->path)) abort();
    } else {
        if (change->before_len
            && REAL(pwrite)(change->fd, change->before, change->before_len,
                            change->offset) != (ssize_t)change->before_len) abort();
        if (REAL(ftruncate)(change->fd, change->size_before)) abort();
    }
}

static void redo_some(void) {
    struct change *torn = NULL;
    for (struct change *change = first; change; change = change->later)
        if (change->kind == WRITE && rand_r(&seed) % 2) {
            size_t len = change->after_len;
            if (REAL(pwrite)(change->fd, change->after, len, change->offset)
                != (ssize_t)len) abort();
            torn = change;
        }
    if (torn && torn->after_len > 512) {
        /* Of the last one only some sectors arrived. */
        size_t kept = rand_r(&seed) % (torn->after_len / 512 + 1) * 512;
        for (size_t place = kept; place < torn->after_len; place++) {
            char byte = place < torn->before_len ? torn->before[place] : 0;
            if (REAL(pwrite)(torn->fd, &byte, 1, torn->offset + place) != 1) abort();
        }
    }
}

static void cut(void) {
    if (mode != KILL) {
        for (struct change *change = last; change; change = change->earlier)
            undo(change);
        if (mode == SOME) redo_some();
    }
    syscall(SYS_exit_group, 86);
}

/* Count one call; is it to fail? */
static int step(int needs_space) {
    calls++;
    if (mode == ENOSPC_ON && calls >= at && at && needs_space) return ENOSPC;
    if (calls != at) return 0;
    if (mode == EIO_ONCE) return EIO;
    if (mode != NONE && mode != ENOSPC_ON) cut();
    return 0;
}

static int watched(int fd) { return fd >= 0 && fd < MAX_FDS && is_watched[fd]; }

/* -- the calls ------------------------------------------------------------- */

static int opened(int fd, const char *path, int existed, int flags) {
    if (fd < 0 || fd >= MAX_FDS) return fd;
    pthread_mutex_lock(&lock);
    is_watched[fd] = is_inside(path);
    if (is_watched[fd] && !existed && (flags & O_CREAT)) {
        struct change *change = remember(CREATE, 0, -1);
        snprintf(change->path, sizeof change->path, "%s", path);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPENING(name, ...)                                                     \
    mode_t permissions = 0;                                                    \
    if (flags & (O_CREAT | O_TMPFILE)) {                                       \
        va_list rest;                                                          \
        va_start(rest, flags);                                                 \
        permissions = va_arg(rest, mode_t);                                    \
        va_end(rest);                                                          \
    }                                                                          \
    int existed = syscall(SYS_faccessat, AT_FDCWD, path, F_OK, 0) == 0;        \
    int fd = REAL(name)(__VA_ARGS__, flags, permissions);                      \
    return opened(fd, path, existed, flags);

int open(const char *path, int flags, ...) { OPENING(open, path) }
int open64(const char *path, int flags, ...) { OPENING(open64, path) }
int openat(int at_fd, const char *path, int flags, ...) { OPENING(openat, at_fd, path) }
int openat64(int at_fd, const char *path, int flags, ...) {
    OPENING(openat64, at_fd, path)
}

int close(int fd) {
    if (fd >= 0 && fd < MAX_FDS) is_watched[fd] = 0;
    return REAL(close)(fd);
}

static int before_write(int fd, const void *data, size_t len, off_t offset) {
    pthread_mutex_lock(&lock);
    int failure = step(1);
    if (!failure) remember_data(WRITE, fd, data, len, offset);
    pthread_mutex_unlock(&lock);
    return failure;
}

#define WRITING(call, offset)                                                  \
    if (watched(fd)) {                                                         \
        int failure = before_write(fd, data, len, offset);                     \
        if (failure) { errno = failure; return -1; }                           \
    }                                                                          \
    return call;

ssize_t write(int fd, const void *data, size_t len) {
    WRITING(REAL(write)(fd, data, len), lseek(fd, 0, SEEK_CUR))
}
ssize_t pwrite(int fd, const void *data, size_t len, off_t offset) {
    WRITING(REAL(pwrite)(fd, data, len, offset), offset)
}
ssize_t pwrite64(int fd, const void *data, size_t len, off_t offset) {
    WRITING(REAL(pwrite64)(fd, data, len, offset), offset)
}

/* Nobody gathers here; if somebody began to, the sweep would miss it. */
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (watched(fd)) abort();
    return REAL(writev)(fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    if (watched(fd)) abort();
    return REAL(pwritev)(fd, parts, count, offset);
}

static int before_sync(int fd) {
    pthread_mutex_lock(&lock);
    int failure = step(0);
    if (!failure) {
        struct stat status;
        fstat(fd, &status);
        struct change *next;
        for (struct change *change = first; change; change = next) {
            next = change->later;
            int is_name = change->kind == CREATE || change->kind == REMOVE;
            if (S_ISDIR(status.st_mode) ? is_name
                                        : !is_name && change->inode == status.st_ino)
                forget(change);
        }
    }
    pthread_mutex_unlock(&lock);
    return failure;
}

#define SYNCING(name)                                                          \
    if (watched(fd)) {                                                         \
        int failure = before_sync(fd);                                         \
        if (failure) { errno = failure; return -1; }                           \
    }                                                                          \
    return REAL(name)(fd);

int fsync(int fd) { SYNCING(fsync) }
int fdatasync(int fd) { SYNCING(fdatasync) }

#define TRUNCATING(name)                                                       \
    if (watched(fd)) {                                                         \
        pthread_mutex_lock(&lock);                                             \
        int failure = step(0);                                                 \
        if (!failure) remember_data(TRUNCATE, fd, NULL, 0, size);              \
        pthread_mutex_unlock(&lock);                                           \
        if (failure) { errno = failure; return -1; }                           \
    }                                                                          \
    return REAL(name)(fd, size);

int ftruncate(int fd, off_t size) { TRUNCATING(ftruncate) }
int ftruncate64(int fd, off64_t size) { TRUNCATING(ftruncate64) }

static int before_removal(const char *path) {
    pthread_mutex_lock(&lock);
    int failure = step(0);
    if (!failure) {
        char backup[PATH_MAX];
        if (snprintf(backup, sizeof backup, "%s.removed-%ld", directory, removals++)
            >= (int)sizeof backup) abort();
        if (!syscall(SYS_link, path, backup)) {
            struct change *change = remember(REMOVE, 0, -1);
            snprintf(change->path, sizeof change->path, "%s", path);
            memcpy(change->backup, backup, sizeof backup);
        }
    }
    pthread_mutex_unlock(&lock);
    return failure;
}

int unlink(const char *path) {
    if (is_inside(path)) {
        int failure = before_removal(path);
        if (failure) { errno = failure; return -1; }
    }
    return REAL(unlink)(path);
}
int unlinkat(int at_fd, const char *path, int flags) {
    if (is_inside(path) && !(flags & AT_REMOVEDIR)) {
        int failure = before_removal(path);
        if (failure) { errno = failure; return -1; }
    }
    return REAL(unlinkat)(at_fd, path, flags);
}
