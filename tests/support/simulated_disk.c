/* A disk in memory that loses power: a VFS below the SQLite of the sqlite3 module.
 *
 * Each file has two images: what a reader sees, and what would survive. Writes and
 * truncations wait in a list until a sync brings them from the first to the second. At a
 * crash the list is dropped, kept up to a place, kept in random parts, or kept up to a
 * place with the next write torn at a sector; after a mere kill nothing is lost.
 *
 * Every write, sync, truncation and removal is a call, and has a number. At one number
 * the power goes, before or after the call; at another the call fails with an I/O error.
 * While the disk is full, no file grows. A sync that failed has brought some of its
 * writes to the disk and lost the others for good, although readers still see them: that
 * is what file systems do.
 *
 * One disk to a process, one connection at a time, no shared memory: the shard is opened
 * in exclusive mode. The functions of SQLite that are needed come in by pointer, so that
 * this works with whichever SQLite the module was linked to.
 */
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

enum { FILES_MAX = 8, NAME_MAX_BYTES = 256, SECTOR = 512 };
enum survival { KILL, NOTHING, PREFIX, SUBSET, TORN };
enum kind { WRITE = 1, SYNC, TRUNCATE, REMOVE };

struct image {
    unsigned char *bytes;
    long size, room;
};

struct change {
    long offset, len; /* len -1: truncated to offset */
    struct change *next;
    unsigned char data[];
};

struct file {
    char name[NAME_MAX_BYTES];
    int exists;
    struct image seen, durable;
    struct change *first, *last;
};

struct handle {
    sqlite3_file base;
    struct file *file;
    unsigned life;
    int is_new; /* a journal or WAL whose name is not durable yet */
};

static struct file files[FILES_MAX];
static unsigned life = 1; /* handles of earlier ones are dead */
static int is_dead;       /* the power is gone */
static int is_full;
static long calls, cut_at, error_at;
static int cut_is_after, cut_kind, cut_is_wal, errors, fulls;
static unsigned long long random_state = 1;

static unsigned next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 32);
}

/* -- images -- */

static void reserve(struct image *image, long size) {
    if (size > image->room) {
        image->room = size + size / 2 + 4096;
        image->bytes = realloc(image->bytes, (size_t)image->room);
        if (!image->bytes) abort();
    }
    if (size > image->size) {
        memset(image->bytes + image->size, 0, (size_t)(size - image->size));
        image->size = size;
    }
}

static void copy(struct image *to, const struct image *from) {
    to->size = 0;
    reserve(to, from->size);
    if (from->size) memcpy(to->bytes, from->bytes, (size_t)from->size);
}

static void apply(struct image *image, const struct change *change, long len) {
    if (change->len < 0) {
        if (change->offset < image->size) image->size = change->offset;
        else reserve(image, change->offset);
    } else {
        reserve(image, change->offset + len);
        memcpy(image->bytes + change->offset, change->data, (size_t)len);
    }
}

static void remember(struct file *file, long offset, long len, const void *data) {
    struct change *change = malloc(sizeof *change + (size_t)(len > 0 ? len : 0));
    if (!change) abort();
    change->offset = offset;
    change->len = len;
    change->next = NULL;
    if (len > 0) memcpy(change->data, data, (size_t)len);
    apply(&file->seen, change, len);
    if (file->last) file->last->next = change;
    else file->first = change;
    file->last = change;
}

/* Bring what waits to the disk, as far as `how` says, and forget the rest. */
static void settle(struct file *file, enum survival how) {
    long count = 0, place = 0;
    for (struct change *c = file->first; c; c = c->next) count++;
    long kept = how == KILL ? count : 0;
    if (how == PREFIX || how == TORN) kept = (long)(next_random() % (unsigned)(count + 1));
    for (struct change *c = file->first, *next; c; c = next, place++) {
        next = c->next;
        if (how == SUBSET ? next_random() % 2 : place < kept) {
            apply(&file->durable, c, c->len);
        } else if (how == TORN && place == kept && c->len > SECTOR) {
            unsigned sectors = next_random() % (unsigned)(c->len / SECTOR);
            apply(&file->durable, c, (long)sectors * SECTOR);
        }
        free(c);
    }
    file->first = file->last = NULL;
}

/* -- faults -- */

static int begin(struct file *file, enum kind kind, int error) {
    if (is_dead) return SQLITE_IOERR;
    calls++;
    if (calls == cut_at) {
        cut_kind = kind;
        cut_is_wal = strstr(file->name, "-wal") != NULL;
        if (!cut_is_after) {
            is_dead = 1;
            return error;
        }
    }
    if (calls == error_at) {
        errors++;
        if (kind == SYNC) settle(file, SUBSET);
        return error;
    }
    return SQLITE_OK;
}

static int end(void) {
    if (calls == cut_at && cut_is_after) {
        is_dead = 1;
        return SQLITE_IOERR;
    }
    return SQLITE_OK;
}

/* -- files -- */

static struct file *find(const char *name, int make) {
    struct file *unused = NULL;
    for (int i = 0; i < FILES_MAX; i++) {
        if (!strcmp(files[i].name, name)) return &files[i];
        if (!unused && !files[i].name[0]) unused = &files[i];
    }
    if (make && unused && strlen(name) < NAME_MAX_BYTES) {
        strcpy(unused->name, name);
        return unused;
    }
    return NULL;
}

static int is_stale(struct handle *handle) { return is_dead || handle->life != life; }

static int x_close(sqlite3_file *file) { (void)file; return SQLITE_OK; }

static int x_read(sqlite3_file *base, void *to, int count, sqlite3_int64 offset) {
    struct handle *handle = (struct handle *)base;
    struct image *image = &handle->file->seen;
    if (is_stale(handle)) return SQLITE_IOERR_READ;
    long there = image->size - (long)offset;
    if (there >= count) {
        memcpy(to, image->bytes + offset, (size_t)count);
        return SQLITE_OK;
    }
    memset(to, 0, (size_t)count);
    if (there > 0) memcpy(to, image->bytes + offset, (size_t)there);
    return SQLITE_IOERR_SHORT_READ;
}

static int x_write(sqlite3_file *base, const void *from, int count, sqlite3_int64 offset) {
    struct handle *handle = (struct handle *)base;
    if (is_stale(handle)) return SQLITE_IOERR_WRITE;
    int rc = begin(handle->file, WRITE, SQLITE_IOERR_WRITE);
    if (rc) return rc;
    if (is_full && (long)offset + count > handle->file->seen.size) {
        fulls++;
        return SQLITE_FULL;
    }
    remember(handle->file, (long)offset, count, from);
    return end();
}

static int x_truncate(sqlite3_file *base, sqlite3_int64 size) {
    struct handle *handle = (struct handle *)base;
    if (is_stale(handle)) return SQLITE_IOERR_TRUNCATE;
    int rc = begin(handle->file, TRUNCATE, SQLITE_IOERR_TRUNCATE);
    if (rc) return rc;
    remember(handle->file, (long)size, -1, NULL);
    return end();
}

static int x_sync(sqlite3_file *base, int flags) {
    struct handle *handle = (struct handle *)base;
    (void)flags;
    if (is_stale(handle)) return SQLITE_IOERR_FSYNC;
    int rc = begin(handle->file, SYNC, SQLITE_IOERR_FSYNC);
    if (rc) return rc;
    settle(handle->file, KILL);
    if (handle->is_new) { /* SQLite syncs the directory now, and so all its names */
        for (int i = 0; i < FILES_MAX; i++)
            if (!files[i].exists) settle(&files[i], KILL);
        handle->is_new = 0;
    }
    return end();
}

static int x_file_size(sqlite3_file *base, sqlite3_int64 *size) {
    struct handle *handle = (struct handle *)base;
    if (is_stale(handle)) return SQLITE_IOERR_FSTAT;
    *size = handle->file->seen.size;
    return SQLITE_OK;
}

static int x_lock(sqlite3_file *base, int level) { (void)base; (void)level; return SQLITE_OK; }
static int x_is_reserved(sqlite3_file *base, int *is) { (void)base; *is = 0; return SQLITE_OK; }
static int x_control(sqlite3_file *base, int what, void *with) {
    (void)base;
    (void)what;
    (void)with;
    return SQLITE_NOTFOUND; /* SQLite then does what it does by itself */
}
static int x_sector(sqlite3_file *base) { (void)base; return 4096; }
static int x_traits(sqlite3_file *base) { (void)base; return SQLITE_IOCAP_POWERSAFE_OVERWRITE; }

static const sqlite3_io_methods methods = {
    1, x_close, x_read, x_write, x_truncate, x_sync, x_file_size,
    x_lock, x_lock, x_is_reserved, x_control, x_sector, x_traits,
    NULL, NULL, NULL, NULL, NULL, NULL,
};

static int x_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *base, int flags, int *out) {
    struct handle *handle = (struct handle *)base;
    (void)vfs;
    base->pMethods = NULL;
    if (is_dead || !name) return SQLITE_CANTOPEN;
    struct file *file = find(name, 1);
    if (!file) return SQLITE_CANTOPEN;
    if (!file->exists && !(flags & SQLITE_OPEN_CREATE)) return SQLITE_CANTOPEN;
    handle->is_new = !file->exists && (flags & (SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_WAL));
    file->exists = 1;
    handle->file = file;
    handle->life = life;
    base->pMethods = &methods;
    if (out) *out = flags;
    return SQLITE_OK;
}

static int x_delete(sqlite3_vfs *vfs, const char *name, int sync) {
    (void)vfs;
    struct file *file = find(name, 0);
    if (is_dead) return SQLITE_IOERR_DELETE;
    if (!file || !file->exists) return SQLITE_IOERR_DELETE_NOENT;
    int rc = begin(file, REMOVE, SQLITE_IOERR_DELETE);
    if (rc) return rc;
    /* Until the directory is synced it may come back, with what it held. */
    remember(file, 0, -1, NULL);
    if (sync) settle(file, KILL);
    file->exists = 0;
    return end();
}

static int x_access(sqlite3_vfs *vfs, const char *name, int flags, int *out) {
    struct file *file = find(name, 0);
    (void)vfs;
    (void)flags;
    *out = file && file->exists && !(flags == SQLITE_ACCESS_EXISTS && !file->seen.size);
    return SQLITE_OK;
}

static int x_full_path(sqlite3_vfs *vfs, const char *name, int room, char *to) {
    (void)vfs;
    if ((int)strlen(name) >= room) return SQLITE_CANTOPEN;
    strcpy(to, name);
    return SQLITE_OK;
}

static int x_randomness(sqlite3_vfs *vfs, int count, char *to) {
    (void)vfs;
    for (int i = 0; i < count; i++) to[i] = (char)next_random();
    return count;
}

static int x_sleep(sqlite3_vfs *vfs, int micros) { (void)vfs; return micros; }
static int x_time(sqlite3_vfs *vfs, double *now) { (void)vfs; *now = 2460000.5; return SQLITE_OK; }
static int x_last_error(sqlite3_vfs *vfs, int room, char *to) { (void)vfs; if (room) *to = 0; return 0; }

static sqlite3_vfs vfs = {
    1, sizeof(struct handle), NAME_MAX_BYTES, NULL, "simulated", NULL,
    x_open, x_delete, x_access, x_full_path, NULL, NULL, NULL, NULL,
    x_randomness, x_sleep, x_time, x_last_error, NULL, NULL, NULL, NULL,
};

/* -- what the tests call -- */

int disk_register(int (*with)(sqlite3_vfs *, int)) { return with(&vfs, 0); }

/* An empty disk, and a seed for everything that happens by chance on it. */
void disk_reset(unsigned long long seed) {
    for (int i = 0; i < FILES_MAX; i++) {
        settle(&files[i], NOTHING);
        files[i].name[0] = 0;
        files[i].exists = 0;
        files[i].seen.size = files[i].durable.size = 0;
    }
    random_state = seed * 2654435761ULL + 88172645463325252ULL;
    life++;
    is_dead = is_full = cut_is_after = cut_kind = cut_is_wal = errors = fulls = 0;
    calls = cut_at = error_at = 0;
}

/* Let the power go at a call of this life, counted from 1; 0 takes that back. */
void disk_cut(long at, int after) {
    cut_at = at ? calls + at : 0;
    cut_is_after = after;
    cut_kind = 0;
}

void disk_fail(long at) { error_at = at ? calls + at : 0; }
void disk_fill(int full) { is_full = full; }
int disk_is_dead(void) { return is_dead; }
long disk_calls(void) { return calls; }
int disk_cut_kind(void) { return cut_kind; }
int disk_cut_is_wal(void) { return cut_is_wal; }
int disk_errors(void) { return errors; }
int disk_fulls(void) { return fulls; }

/* How many changes a crash could lose now. */
long disk_unsynced(void) {
    long count = 0;
    for (int i = 0; i < FILES_MAX; i++)
        for (struct change *c = files[i].first; c; c = c->next) count++;
    return count;
}

/* End a life: what survives is what the next one sees. */
void disk_crash(int how) {
    life++;
    is_dead = 0;
    cut_at = error_at = 0;
    is_full = 0;
    for (int i = 0; i < FILES_MAX; i++) {
        if (how == KILL) continue;
        settle(&files[i], (enum survival)how);
        copy(&files[i].seen, &files[i].durable);
        if (files[i].seen.size) files[i].exists = 1;
    }
}

long disk_size(const char *name) {
    struct file *file = find(name, 0);
    return file && file->exists ? file->seen.size : -1;
}

void disk_read(const char *name, unsigned char *to) {
    struct file *file = find(name, 0);
    if (file && file->seen.size) memcpy(to, file->seen.bytes, (size_t)file->seen.size);
}

void disk_write(const char *name, const unsigned char *from, long count) {
    struct file *file = find(name, 1);
    if (!file) abort();
    file->exists = 1;
    settle(file, NOTHING);
    file->seen.size = 0;
    reserve(&file->seen, count);
    memcpy(file->seen.bytes, from, (size_t)count);
    copy(&file->durable, &file->seen);
}
