/* A disk that fails: LD_PRELOAD below Python and SQLite.
 *
 * Counts every call that changes a file in one directory, or makes it durable: writes,
 * syncs, truncations, removals, renames, and the making of files and folders. At call
 * number `at` it does one of these:
 *
 *   none          every change that no sync covers is undone, and the process is gone
 *   prefix        of those changes, the first few are kept; the same end
 *   torn          the same, and of the last one kept only some sectors
 *   subset        a random part of them is kept, in no order; the same end
 *   kill          the process is gone; what was written stays, as after a SIGKILL
 *   eio           the call fails once with EIO
 *   eio-cut       the same; what a failed sync was to cover never becomes durable,
 *                 and power is cut when `iofaults_cut` is called
 *   eio-read      the same as eio, at the n-th read instead
 *   enospc-once   the call fails once with ENOSPC, if it needs space
 *   enospc        so does every later one, but for the room that removals have made,
 *                 until `iofaults_free` is called
 *   slow          every sync takes `at` milliseconds longer
 *
 * A change is remembered with the bytes before and after it until its file is synced. A
 * name is durable once the folder it stands in was synced: until then a new file is
 * removed again, a removed one put back, a renamed one named as before.
 *
 * A process that nobody arms may be armed by its environment: IOFAULTS_DIR,
 * IOFAULTS_MODE (eio, enospc or slow), IOFAULTS_MS, IOFAULTS_MATCH (a part of the
 * path) and IOFAULTS_TRIGGER (a file; faults happen for as long as it is there).
 *
 * Not modelled: errors of errors, mmap (SQLite does not use it here), and a file system
 * that makes a name durable by itself.
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
#include <time.h>
#include <unistd.h>

enum kind { WRITE, TRUNCATE, CREATE, FOLDER, REMOVE, RENAME };
enum mode {
    OFF, NONE, PREFIX, TORN, SUBSET, KILL, EIO_ONCE, EIO_CUT, EIO_READ,
    ENOSPC_ONCE, ENOSPC_ON, SLOW, WATCH,
};
static const char *const mode_names[] = {
    "off", "none", "prefix", "torn", "subset", "kill", "eio", "eio-cut", "eio-read",
    "enospc-once", "enospc", "slow", "watch",
};

struct change {
    enum kind kind;
    ino_t inode;          /* of the file; of names, the folder they stand in */
    int fd;               /* our own, see own_fd */
    int is_doomed;        /* its sync has failed: no later one covers it */
    char path[PATH_MAX];  /* of names */
    char to[PATH_MAX];    /* of RENAME */
    char backup[PATH_MAX];  /* of what a REMOVE or RENAME took away: another name */
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
static int is_from_environ, is_full;
static const char *match, *trigger;
static long at, calls, reads, names, room;
static unsigned seed;
static char hit[PATH_MAX + 64], phase[16];
static struct change *first, *last;

#define MAX_FDS 4096
#define MAX_FILES 1024
static char *watched_path[MAX_FDS];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* -- for Python, through ctypes ------------------------------------------- */

static enum mode mode_named(const char *name) {
    for (unsigned i = 0; i < sizeof mode_names / sizeof *mode_names; i++)
        if (!strcmp(name, mode_names[i])) return i;
    abort();
}

void iofaults_arm(const char *path, const char *how, long number, unsigned random) {
    if (!realpath(path, directory)) abort();
    directory_len = strlen(directory);
    mode = mode_named(how);
    at = number;
    seed = random;
    calls = reads = room = is_full = 0;
    hit[0] = 0;
}

long iofaults_calls(void) { return mode == EIO_READ ? reads : calls; }
const char *iofaults_hit(void) { return hit; }
void iofaults_phase(const char *name) { snprintf(phase, sizeof phase, "%s", name); }
void iofaults_free(void) { is_full = 0; at = 0; }

__attribute__((constructor)) static void from_environ(void) {
    const char *path = getenv("IOFAULTS_DIR"), *how = getenv("IOFAULTS_MODE");
    if (!path || !how) return;
    const char *ms = getenv("IOFAULTS_MS");
    snprintf(directory, sizeof directory, "%s", path);
    directory_len = strlen(directory);
    mode = mode_named(how);
    at = ms ? atol(ms) : 0;
    match = getenv("IOFAULTS_MATCH");
    trigger = getenv("IOFAULTS_TRIGGER");
    is_from_environ = 1;
}

/* -- what was changed and is not durable ---------------------------------- */

static int tracks(void) {
    return (mode >= NONE && mode <= SUBSET) || mode == EIO_CUT;
}

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

static ino_t parent_of(const char *path) {
    char parent[PATH_MAX];
    struct stat status;
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (!slash) abort();
    *slash = 0;
    return stat(parent, &status) ? 0 : status.st_ino;
}

/* One descriptor of ours for each file, good for reading and writing. It is never
 * closed: that would drop the record locks of the process, and let the inode's number
 * be used again. */
static int own_fd(const char *path, ino_t inode) {
    static struct { ino_t inode; int fd; } files[MAX_FILES];
    for (int i = 0; i < MAX_FILES; i++) {
        if (files[i].inode == inode) return files[i].fd;
        if (!files[i].inode) {
            int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
            if (fd < 0) abort();
            files[i].inode = inode;
            return files[i].fd = fd;
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
    if (change->backup[0]) syscall(SYS_unlink, change->backup);
    free(change->before);
    free(change->after);
    free(change);
}

static void remember_data(enum kind kind, const char *path, const void *data,
                          size_t len, off_t offset) {
    struct stat status;
    if (!tracks() || stat(path, &status)) return;
    ino_t inode = status.st_ino;
    struct change *change = remember(kind, inode, own_fd(path, inode));
    change->offset = offset;
    change->size_before = status.st_size;
    off_t end = kind == TRUNCATE ? status.st_size : offset + (off_t)len;
    if (end > status.st_size) end = status.st_size;
    if (end > offset) {
        change->before_len = end - offset;
        change->before = malloc(change->before_len);
        if (syscall(SYS_pread64, change->fd, change->before, change->before_len, offset)
            != (ssize_t)change->before_len) abort();
    }
    if (len) {
        change->after = malloc(len);
        memcpy(change->after, data, len);
        change->after_len = len;
    }
}

static void write_at(int fd, const void *data, size_t len, off_t offset) {
    if (syscall(SYS_pwrite64, fd, data, len, offset) != (ssize_t)len) abort();
}

static void name_beside(char *name, const char *what) {
    if (snprintf(name, PATH_MAX, "%s.%s-%ld", directory, what, names++) >= PATH_MAX)
        abort();
}

static struct change *remember_name(enum kind kind, const char *path, const char *taken) {
    if (!tracks()) return NULL;
    struct change *change = remember(kind, parent_of(path), -1);
    snprintf(change->path, sizeof change->path, "%s", path);
    if (taken) {
        name_beside(change->backup, "removed");
        if (syscall(SYS_link, taken, change->backup)) change->backup[0] = 0;
    }
    return change;
}

static void undo(struct change *change) {
    char lost[PATH_MAX];
    switch (change->kind) {
    case CREATE:
        syscall(SYS_unlink, change->path);
        break;
    case FOLDER: /* and whatever is in it */
        name_beside(lost, "lost");
        syscall(SYS_rename, change->path, lost);
        break;
    case REMOVE:
        if (change->backup[0] && syscall(SYS_rename, change->backup, change->path))
            abort();
        break;
    case RENAME:
        syscall(SYS_rename, change->to, change->path);
        if (change->backup[0] && syscall(SYS_rename, change->backup, change->to))
            abort();
        break;
    default:
        if (change->before_len)
            write_at(change->fd, change->before, change->before_len, change->offset);
        if (syscall(SYS_ftruncate, change->fd, change->size_before)) abort();
    }
}

static void tear(struct change *change) {
    if (change->after_len <= 512) return;
    size_t kept = rand_r(&seed) % (change->after_len / 512 + 1) * 512;
    for (size_t place = kept; place < change->after_len; place++) {
        char byte = place < change->before_len ? change->before[place] : 0;
        write_at(change->fd, &byte, 1, change->offset + place);
    }
}

static void cut(void) {
    long count = 0, kept = 0, place;
    int keeps_names = 0;
    struct change *change;
    for (change = first; change; change = change->later) count++;
    if (mode == PREFIX || mode == TORN) kept = rand_r(&seed) % (count + 1);
    if (mode == SUBSET) keeps_names = rand_r(&seed) % 2;
    if (mode == KILL) kept = count;
    place = count;
    for (change = last; change; change = change->earlier) {
        if (place-- <= kept) break;
        if (keeps_names && change->kind != WRITE && change->kind != TRUNCATE) continue;
        undo(change);
    }
    if (mode == TORN && change && change->kind == WRITE) tear(change);
    if (mode == SUBSET) {
        struct change *torn = NULL;
        for (change = first; change; change = change->later)
            if (change->kind == WRITE && rand_r(&seed) % 2) {
                write_at(change->fd, change->after, change->after_len, change->offset);
                torn = change;
            }
        if (torn) tear(torn);
    }
    syscall(SYS_exit_group, 86);
}

void iofaults_cut(void) { cut(); }

static void note_hit(const char *what, const char *path) {
    const char *inside = strlen(path) > directory_len ? path + directory_len + 1 : ".";
    snprintf(hit, sizeof hit, "%s%s %s", phase, what, inside);
}

/* Whether a process armed by its environment is to fail here. */
static int is_on(const char *path) {
    return (!match || strstr(path, match)) && (!trigger || !access(trigger, F_OK));
}

/* Count one call; is it to fail? `space` is what it needs, -1 for none. */
static int step(const char *what, const char *path, long space) {
    if (is_from_environ) {
        if (!is_on(path)) return 0;
        if (mode == EIO_ONCE) return EIO;
        return mode == ENOSPC_ON && space >= 0 ? ENOSPC : 0;
    }
    calls++;
    if (mode == ENOSPC_ON && at && calls >= at) {
        if (!is_full) note_hit(what, path);
        is_full = 1;
        if (space < 0) return 0;
        if (space > room) return ENOSPC;
        room -= space;
        return 0;
    }
    if (calls != at) return 0;
    if (mode == EIO_ONCE || mode == EIO_CUT) {
        note_hit(what, path);
        return EIO;
    }
    if (mode == ENOSPC_ONCE && space >= 0) {
        note_hit(what, path);
        return ENOSPC;
    }
    if (mode >= NONE && mode <= KILL) cut();
    return 0;
}

static int step_read(const char *path) {
    if (mode != EIO_READ || is_from_environ) return 0;
    if (++reads != at) return 0;
    note_hit("read", path);
    return EIO;
}

static const char *watched(int fd) {
    return mode != OFF && fd >= 0 && fd < MAX_FDS ? watched_path[fd] : NULL;
}

#define GUARDED(...)                                                           \
    pthread_mutex_lock(&lock);                                                 \
    __VA_ARGS__                                                                \
    pthread_mutex_unlock(&lock);

#define FAIL_IF(failure)                                                       \
    if (failure) { errno = failure; return -1; }

/* -- opening and closing ---------------------------------------------------- */

static int before_open(const char *path, int flags) {
    int failure = 0;
    if (mode == OFF || !is_inside(path)) return 0;
    struct stat status;
    int existed = !stat(path, &status);
    GUARDED(
        if (!existed && (flags & O_CREAT)) {
            failure = step("create", path, 0);
            if (!failure) remember_name(CREATE, path, NULL);
        } else if (existed && (flags & O_TRUNC) && status.st_size) {
            failure = step("truncate", path, -1);
            if (!failure) remember_data(TRUNCATE, path, NULL, 0, 0);
            if (!failure) room += status.st_size;
        }
    )
    return failure;
}

static int opened(int fd, const char *path) {
    if (fd < 0 || fd >= MAX_FDS) return fd;
    GUARDED(
        free(watched_path[fd]);
        watched_path[fd] = mode != OFF && is_inside(path) ? strdup(path) : NULL;
    )
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
    int failure = before_open(path, flags);                                    \
    FAIL_IF(failure)                                                           \
    return opened(REAL(name)(__VA_ARGS__, flags, permissions), path);

int open(const char *path, int flags, ...) { OPENING(open, path) }
int open64(const char *path, int flags, ...) { OPENING(open64, path) }
int openat(int at_fd, const char *path, int flags, ...) { OPENING(openat, at_fd, path) }
int openat64(int at_fd, const char *path, int flags, ...) {
    OPENING(openat64, at_fd, path)
}

int close(int fd) {
    if (fd >= 0 && fd < MAX_FDS && watched_path[fd]) {
        GUARDED(free(watched_path[fd]); watched_path[fd] = NULL;)
    }
    return REAL(close)(fd);
}

/* -- reading and writing ---------------------------------------------------- */

#define READING(call)                                                          \
    const char *path = watched(fd);                                            \
    if (path) {                                                                \
        int failure;                                                           \
        GUARDED(failure = step_read(path);)                                    \
        FAIL_IF(failure)                                                       \
    }                                                                          \
    return call;

ssize_t read(int fd, void *data, size_t len) { READING(REAL(read)(fd, data, len)) }
ssize_t pread(int fd, void *data, size_t len, off_t offset) {
    READING(REAL(pread)(fd, data, len, offset))
}
ssize_t pread64(int fd, void *data, size_t len, off_t offset) {
    READING(REAL(pread64)(fd, data, len, offset))
}

/* The file of a descriptor, which may have lost its name, or has another one now. */
static const char *file_of(int fd, char *path) {
    snprintf(path, 32, "/proc/self/fd/%d", fd);
    return path;
}

static int before_write(int fd, const void *data, size_t len, off_t offset) {
    int failure;
    char file[32];
    GUARDED(
        failure = step("write", watched_path[fd], len);
        if (!failure) remember_data(WRITE, file_of(fd, file), data, len, offset);
    )
    return failure;
}

#define WRITING(call, offset)                                                  \
    if (watched(fd)) {                                                         \
        int failure = before_write(fd, data, len, offset);                     \
        FAIL_IF(failure)                                                       \
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

static int before_allocate(int fd, off_t end) {
    int failure;
    char file[32];
    struct stat status;
    off_t size = fstat(fd, &status) ? 0 : status.st_size;
    GUARDED(
        failure = step("allocate", watched_path[fd], end);
        if (!failure) remember_data(TRUNCATE, file_of(fd, file), NULL, 0, size);
    )
    return failure;
}

#define ALLOCATING(name)                                                       \
    if (watched(fd)) {                                                         \
        int failure = before_allocate(fd, offset + len);                       \
        if (failure) return failure; /* it does not set errno */               \
    }                                                                          \
    return REAL(name)(fd, offset, len);

int posix_fallocate(int fd, off_t offset, off_t len) { ALLOCATING(posix_fallocate) }
int posix_fallocate64(int fd, off64_t offset, off64_t len) {
    ALLOCATING(posix_fallocate64)
}

/* -- making durable --------------------------------------------------------- */

/* What a failed sync lost is there again if it was written again, and synced. */
static void heal(struct change *written) {
    struct change *next;
    off_t end = written->offset + (off_t)written->after_len;
    for (struct change *change = first; change && change != written; change = next) {
        next = change->later;
        if (change->is_doomed && change->kind == WRITE && written->kind == WRITE
            && change->inode == written->inode && change->offset >= written->offset
            && change->offset + (off_t)change->after_len <= end) forget(change);
    }
}

static int before_sync(int fd) {
    int failure = 0;
    const char *path = watched_path[fd];
    if (mode == SLOW && (!is_from_environ || is_on(path))) {
        struct timespec time = {at / 1000, at % 1000 * 1000000};
        nanosleep(&time, NULL);
        return 0;
    }
    GUARDED(
        failure = step("sync", path, -1);
        struct stat status;
        if (tracks() && !fstat(fd, &status)) {
            struct change *next;
            for (struct change *change = first; change; change = next) {
                next = change->later;
                if (change->inode != status.st_ino || change->is_doomed) continue;
                if (failure) { /* of names a later sync is good; the journal has them */
                    change->is_doomed = !S_ISDIR(status.st_mode);
                } else {
                    heal(change);
                    forget(change);
                }
            }
        }
    )
    return failure;
}

#define SYNCING(name)                                                          \
    if (watched(fd)) {                                                         \
        int failure = before_sync(fd);                                         \
        FAIL_IF(failure)                                                       \
    }                                                                          \
    return REAL(name)(fd);

int fsync(int fd) { SYNCING(fsync) }
int fdatasync(int fd) { SYNCING(fdatasync) }

/* -- shortening, removing, naming ------------------------------------------- */

static int before_truncate(const char *path, const char *file, off_t size) {
    int failure;
    struct stat status;
    off_t size_before = stat(file, &status) ? 0 : status.st_size;
    GUARDED(
        failure = step("truncate", path, -1);
        if (!failure) remember_data(TRUNCATE, file, NULL, 0, size);
        if (!failure && size_before > size) room += size_before - size;
    )
    return failure;
}

#define TRUNCATING(name)                                                       \
    const char *path = watched(fd);                                            \
    if (path) {                                                                \
        char file[32];                                                         \
        int failure = before_truncate(path, file_of(fd, file), size);          \
        FAIL_IF(failure)                                                       \
    }                                                                          \
    return REAL(name)(fd, size);

int ftruncate(int fd, off_t size) { TRUNCATING(ftruncate) }
int ftruncate64(int fd, off64_t size) { TRUNCATING(ftruncate64) }

#define TRUNCATING_PATH(name)                                                  \
    if (mode != OFF && is_inside(path)) {                                      \
        int failure = before_truncate(path, path, size);                       \
        FAIL_IF(failure)                                                       \
    }                                                                          \
    return REAL(name)(path, size);

int truncate(const char *path, off_t size) { TRUNCATING_PATH(truncate) }
int truncate64(const char *path, off64_t size) { TRUNCATING_PATH(truncate64) }

static int before_removal(const char *path) {
    struct stat status;
    int failure = 0;
    if (mode == OFF || !is_inside(path) || lstat(path, &status)) return 0;
    GUARDED(
        failure = step("unlink", path, -1);
        if (!failure) remember_name(REMOVE, path, path);
        if (!failure) room += status.st_size;
    )
    return failure;
}

int unlink(const char *path) {
    int failure = before_removal(path);
    FAIL_IF(failure)
    return REAL(unlink)(path);
}
int unlinkat(int at_fd, const char *path, int flags) {
    int failure = flags & AT_REMOVEDIR ? 0 : before_removal(path);
    FAIL_IF(failure)
    return REAL(unlinkat)(at_fd, path, flags);
}

static int before_rename(const char *path, const char *to) {
    struct stat status;
    int failure = 0;
    if (mode == OFF || !is_inside(to) || lstat(path, &status)) return 0;
    GUARDED(
        failure = step("rename", to, -1);
        if (!failure) {
            struct change *change = remember_name(RENAME, path, to);
            if (change) snprintf(change->to, sizeof change->to, "%s", to);
        }
    )
    return failure;
}

int rename(const char *path, const char *to) {
    int failure = before_rename(path, to);
    FAIL_IF(failure)
    return REAL(rename)(path, to);
}
int renameat(int at_fd, const char *path, int to_fd, const char *to) {
    int failure = before_rename(path, to);
    FAIL_IF(failure)
    return REAL(renameat)(at_fd, path, to_fd, to);
}

static int before_folder(const char *path) {
    struct stat status;
    int failure = 0;
    if (mode == OFF || !is_inside(path) || !stat(path, &status)) return 0;
    GUARDED(
        failure = step("mkdir", path, 0);
        if (!failure) remember_name(FOLDER, path, NULL);
    )
    return failure;
}

int mkdir(const char *path, mode_t permissions) {
    int failure = before_folder(path);
    FAIL_IF(failure)
    return REAL(mkdir)(path, permissions);
}
int mkdirat(int at_fd, const char *path, mode_t permissions) {
    int failure = before_folder(path);
    FAIL_IF(failure)
    return REAL(mkdirat)(at_fd, path, permissions);
}
