// A fault-injecting disk. Preloaded into the server (LD_PRELOAD), it intercepts the operations on the files below one
// folder: it counts them, and fails one, kills the process at one, or cuts the power at one.
//
// For a power cut it remembers what a disk need not hold yet. For each file: every write and truncation since its last
// sync, with the bytes that were there before. For each folder: the names that were created and removed since the
// folder was synced. At the cut the files are reset to what was synced. Then each sector (or page) gets one of the
// versions it has had since, each file one of its sizes, each name one of its files; a seed chooses. This gives any
// order and any tearing of writes, as long as the disk writes a sector as a whole.
//
// A sync that fails leaves the pages in the page cache, as Linux does: readable, skipped by every later sync because
// they count as written, and lost at a power cut unless they are written again.
//
// The unsynced changes outlive the process if it ends by an injected fault or after a failed sync: they are handed to
// the next process in a file. `-shm` is shared memory that no start relies on, so it is left out.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 4, READ = 8, OPEN = 16, UNLINK = 32, SYNC_FOLDER = 64, OPERATIONS = 7 };
enum { WAIT = 128 };
enum { NOTHING, KILL_BEFORE, KILL_AFTER, CUT, FAIL };

// Shared with the test, which writes it through a file: `kind` last, because a kind other than NOTHING arms it.
struct injection {
    uint32_t kind;
    uint32_t operations; // a bit for each that counts
    uint32_t lasting;    // for FAIL: later operations fail, too
    uint32_t error;      // for FAIL
    int64_t countdown;   // the fault happens at the n-th operation
    uint64_t seed;
    uint32_t sync_us;    // how long a sync takes
    uint32_t fired;
    uint64_t seen[OPERATIONS];
    char suffix[64];     // the end of the file's path, empty for any file
};

static struct injection *injection;
static const char *root, *boot_id, *carried;
static bool remembers;
static volatile bool is_dark;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
static __typeof__(&pwrite64) real_pwrite;
static __typeof__(&pread64) real_pread;
static __typeof__(&ftruncate64) real_ftruncate;
static __typeof__(&open64) real_open;
static __typeof__(&unlink) real_unlink;
static __typeof__(&mkdir) real_mkdir;
static __typeof__(&epoll_wait) real_epoll_wait;

// A change of a file that is not synced: bytes written, or (without bytes) a truncation.
struct change {
    struct change *next;
    int64_t offset;
    size_t len;
    unsigned char *bytes;
    unsigned char *before; // from `offset` to where the file ended or the bytes end
    size_t before_len;
    int64_t old_size, new_size;
};

// A page that is only in the page cache after a failed sync.
struct page {
    struct page *next;
    int64_t number;
    unsigned char durable[4096];
};

struct file {
    dev_t dev;
    ino_t ino;
    int fd;
    struct change *first, *last;
    struct page *forgotten;
};

// The files that a name has referred to since its folder was synced; the first is the synced one. A folder counts as a
// file.
struct name {
    char path[512];
    struct file *meanings[64];
    int count;
};

static struct name names[64];
static int name_count;
static struct file a_folder;

static void give_up(const char *why) {
    fprintf(stderr, "the faulty disk: %s: %s\n", why, strerror(errno));
    abort();
}

static void *room(size_t len) {
    void *memory = calloc(1, len + 1);
    if (!memory) give_up("memory");
    return memory;
}

static void load(void);

__attribute__((constructor)) static void begin(void) {
    if (real_open) return;
    real_pwrite = REAL(pwrite64);
    real_pread = REAL(pread64);
    real_ftruncate = REAL(ftruncate64);
    real_unlink = REAL(unlink);
    real_mkdir = REAL(mkdir);
    real_epoll_wait = REAL(epoll_wait);
    real_open = REAL(open64);
    root = getenv("DISK_ROOT");
    boot_id = getenv("DISK_BOOT_ID");
    carried = getenv("DISK_CARRIED");
    remembers = carried != NULL;
    const char *path = getenv("DISK_INJECTION");
    if (!root || !path) return;
    int fd = real_open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) give_up(path);
    injection = mmap(NULL, sizeof *injection, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (injection == MAP_FAILED) give_up(path);
    close(fd);
    if (remembers) load();
}

static bool ends_with(const char *path, const char *suffix) {
    size_t len = strlen(path), end = strlen(suffix);
    return len >= end && strcmp(path + len - end, suffix) == 0;
}

static bool is_ours(const char *path) {
    return injection && strncmp(path, root, strlen(root)) == 0 && !ends_with(path, "-shm");
}

// The path of an open file below the root, also of a deleted one, which the kernel marks with " (deleted)".
static bool path_of(int fd, char path[512]) {
    if (!injection) return false;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, 511);
    if (len <= 0) return false;
    path[len] = 0;
    if (ends_with(path, " (deleted)")) path[len - 10] = 0;
    return is_ours(path);
}

static struct name *name_of(const char *path) {
    for (int i = 0; i < name_count; i++)
        if (strcmp(names[i].path, path) == 0) return &names[i];
    if (name_count == 64) give_up("too many names");
    struct name *name = &names[name_count++];
    snprintf(name->path, sizeof name->path, "%s", path);
    return name;
}

static void now_means(struct name *name, struct file *file) {
    if (name->count == 64) give_up("too many meanings");
    name->meanings[name->count++] = file;
}

// A file that was just opened; NULL if its name referred to it before.
static struct file *track(int fd, const char *path, const struct file *before) {
    struct stat64 stat;
    if (fstat64(fd, &stat) != 0 || !S_ISREG(stat.st_mode)) return NULL;
    if (before && before->ino == stat.st_ino && before->dev == stat.st_dev) return NULL;
    struct file *file = room(sizeof *file);
    file->dev = stat.st_dev;
    file->ino = stat.st_ino;
    // Kept open: closing it would drop the locks that the process has on the file.
    file->fd = real_open(path, O_RDWR | O_CLOEXEC);
    if (file->fd < 0) give_up(path);
    return file;
}

static struct file *file_of(int fd) {
    struct stat64 stat;
    if (!remembers || fstat64(fd, &stat) != 0) return NULL;
    for (int i = name_count - 1; i >= 0; i--)
        for (int m = names[i].count - 1; m >= 0; m--) {
            struct file *file = names[i].meanings[m];
            if (file && file->ino == stat.st_ino && file->dev == stat.st_dev && file != &a_folder) return file;
        }
    return NULL;
}

static int64_t size_of(int fd) {
    struct stat64 stat;
    return fstat64(fd, &stat) == 0 ? stat.st_size : 0;
}

static unsigned char *read_at(int fd, int64_t offset, size_t len) {
    unsigned char *bytes = room(len);
    for (size_t done = 0; done < len;) {
        ssize_t n = real_pread(fd, bytes + done, len - done, offset + done);
        if (n <= 0) give_up("read back");
        done += n;
    }
    return bytes;
}

static void write_at(int fd, int64_t offset, const unsigned char *bytes, size_t len) {
    for (size_t done = 0; done < len;) {
        ssize_t n = real_pwrite(fd, bytes + done, len - done, offset + done);
        if (n <= 0) give_up("write back");
        done += n;
    }
}

static void add(struct file *file, struct change *change) {
    *(file->last ? &file->last->next : &file->first) = change;
    file->last = change;
}

static void drop_changes(struct file *file) {
    for (struct change *change = file->first, *next; change; change = next) {
        next = change->next;
        free(change->bytes);
        free(change->before);
        free(change);
    }
    file->first = file->last = NULL;
}

// Remembers a write of `len` bytes at `offset`, or without `bytes` a truncation or extension to `offset`.
static void remember(struct file *file, int64_t offset, const void *bytes, size_t len) {
    int64_t size = size_of(file->fd);
    // Writing to a page that is only in the page cache makes the whole page count as unsynced again.
    for (struct page **at = &file->forgotten, *page; (page = *at);) {
        int64_t begin = page->number * 4096, held = size - begin > 4096 ? 4096 : size - begin;
        bool is_touched = bytes ? offset < begin + 4096 && offset + (int64_t)len > begin : offset < begin + 4096;
        if (is_touched && held > 0) {
            struct change *again = room(sizeof *again);
            *again = (struct change){.offset = begin, .len = held, .bytes = read_at(file->fd, begin, held),
                                     .before = room(held), .before_len = held, .old_size = size, .new_size = size};
            memcpy(again->before, page->durable, held);
            add(file, again);
        }
        if (is_touched) {
            *at = page->next;
            free(page);
        } else {
            at = &page->next;
        }
    }
    struct change *change = room(sizeof *change);
    *change = (struct change){.offset = offset, .len = len, .old_size = size};
    int64_t end = bytes ? offset + (int64_t)len : size;
    change->new_size = bytes ? (end > size ? end : size) : offset;
    if (end > size) end = size;
    if (end > offset) {
        change->before_len = end - offset;
        change->before = read_at(file->fd, offset, change->before_len);
    }
    if (bytes) {
        change->bytes = room(len);
        memcpy(change->bytes, bytes, len);
    }
    add(file, change);
}

static uint64_t random_state;

static uint64_t throw_dice(uint64_t below) {
    uint64_t z = (random_state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (z ^ (z >> 31)) % below;
}

// The synced bytes of a file. The buffer has room for the largest size that the file has had since.
static unsigned char *durable_image(struct file *file, int64_t *size, int64_t *largest) {
    *largest = *size = size_of(file->fd);
    for (struct change *change = file->first; change; change = change->next)
        if (change->old_size > *largest) *largest = change->old_size;
    unsigned char *now = read_at(file->fd, 0, *size), *image = room(*largest + 4096);
    memcpy(image, now, *size);
    free(now);
    // Undoes the changes from the last to the first: the list is reversed, and reversed back.
    struct change *turned = NULL;
    for (struct change *change = file->first, *next; change; change = next) {
        next = change->next;
        change->next = turned;
        turned = change;
    }
    struct change *again = NULL;
    for (struct change *change = turned, *next; change; change = next) {
        int64_t grown = change->new_size - change->old_size;
        if (grown > 0) memset(image + change->old_size, 0, grown);
        memcpy(image + change->offset, change->before, change->before_len);
        *size = change->old_size;
        next = change->next;
        change->next = again;
        again = change;
    }
    file->first = again;
    return image;
}

// The probability that an unsynced change reached the disk, in eighths: often all or none of a file's changes did.
static uint64_t throw_likelihood(void) {
    static const uint64_t eighths[] = {0, 0, 1, 4, 4, 7, 8, 8};
    return eighths[throw_dice(8)];
}

// One of `count` versions, the last of them more likely than the others.
static int throw_version(int count, uint64_t likelihood) {
    if (likelihood == 0 || count == 0) return 0;
    return throw_dice(8) < likelihood ? count : (int)throw_dice(count + 1);
}

// The bytes of a file as the disk may hold them after a cut.
static unsigned char *image_after_cut(struct file *file, int64_t *size) {
    int64_t largest, durable_size;
    unsigned char *image = durable_image(file, size, &largest);
    durable_size = *size;
    for (struct page *page = file->forgotten; page; page = page->next) {
        int64_t begin = page->number * 4096;
        if (begin < largest) memcpy(image + begin, page->durable, largest - begin > 4096 ? 4096 : largest - begin);
    }
    int64_t granule = throw_dice(2) ? 512 : 4096, granules = largest / granule + 1;
    int *left = room(granules * sizeof *left), changes = 0;
    for (struct change *change = file->first; change; change = change->next, changes++) {
        int64_t end = change->bytes ? change->offset + (int64_t)change->len : largest;
        for (int64_t g = change->offset / granule; g * granule < end; g++) left[g]++;
    }
    uint64_t likelihood = throw_likelihood();
    // A block that was allocated to the file but not written holds arbitrary bytes.
    bool is_dirty = throw_dice(4) == 0;
    for (int64_t g = 0; g < granules; g++) {
        int versions = left[g];
        left[g] = throw_version(versions, likelihood);
        if (versions && !left[g] && is_dirty && g * granule >= durable_size)
            for (int64_t i = g * granule; i < (g + 1) * granule && i < largest; i++) image[i] = throw_dice(256);
    }
    int sizes = throw_version(changes, likelihood);
    for (struct change *change = file->first; change; change = change->next) {
        int64_t end = change->bytes ? change->offset + (int64_t)change->len : largest;
        for (int64_t g = change->offset / granule; g * granule < end; g++) {
            if (left[g]-- <= 0) continue;
            int64_t from = g * granule < change->offset ? change->offset : g * granule;
            int64_t to = (g + 1) * granule > end ? end : (g + 1) * granule;
            if (change->bytes) memcpy(image + from, change->bytes + (from - change->offset), to - from);
            else memset(image + from, 0, to - from);
        }
        if (sizes-- > 0) *size = change->new_size;
    }
    free(left);
    return image;
}

static void cut_power(void) {
    is_dark = true;
    random_state = injection->seed;
    for (int i = 0; i < name_count; i++) {
        struct name *name = &names[i];
        // A folder that was there before and was only opened.
        if (!name->count) continue;
        struct file *now = name->meanings[name->count - 1];
        struct file *chosen = name->meanings[throw_version(name->count - 1, throw_likelihood())];
        if (now == &a_folder || chosen == &a_folder) {
            // A folder stands before everything in it, so its files are dropped here.
            size_t len = strlen(name->path);
            for (int j = i + 1; !chosen && j < name_count; j++)
                if (strncmp(names[j].path, name->path, len) == 0 && names[j].path[len] == '/') {
                    names[j].count = 1;
                    names[j].meanings[0] = NULL;
                }
            continue;
        }
        if (chosen && (chosen->first || chosen->forgotten || chosen != now)) {
            int64_t size;
            unsigned char *image = image_after_cut(chosen, &size);
            int fd = chosen == now ? chosen->fd : real_open(name->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
            if (fd < 0 || real_ftruncate(fd, size) != 0) give_up(name->path);
            write_at(fd, 0, image, size);
            free(image);
        }
        if (!chosen) real_unlink(name->path);
    }
    for (int i = name_count - 1; i >= 0; i--) {
        char shm[600];
        snprintf(shm, sizeof shm, "%s-shm", names[i].path);
        if (throw_dice(2) || (names[i].count == 1 && !names[i].meanings[0])) real_unlink(shm);
        // A lost folder is empty by now. One that is not lost is not empty, so that rmdir fails.
        if (names[i].count && names[i].meanings[names[i].count - 1] == &a_folder) rmdir(names[i].path);
    }
    real_unlink(carried);
    kill(getpid(), SIGKILL);
    pause();
}

static void put(FILE *out, const void *bytes, size_t len) {
    if (len && fwrite(bytes, len, 1, out) != 1) give_up("carry");
}

static void get(FILE *in, void *bytes, size_t len) {
    if (len && fread(bytes, len, 1, in) != 1) give_up("take over");
}

// The unsynced part of a file in the file for the next process: this header, then the changes, then the pages.
struct carried_file {
    char path[512];
    uint32_t changes, pages;
};

// Writes the unsynced changes for the next process. Unsynced names count as synced there.
static void carry(void) {
    if (!remembers) return;
    char draft[600];
    snprintf(draft, sizeof draft, "%s.new", carried);
    FILE *out = fopen(draft, "w");
    if (!out) give_up(draft);
    for (int i = 0; i < name_count; i++) {
        struct file *file = names[i].count ? names[i].meanings[names[i].count - 1] : NULL;
        if (!file || file == &a_folder) continue;
        struct carried_file head = {0};
        memcpy(head.path, names[i].path, sizeof head.path);
        for (struct change *change = file->first; change; change = change->next) head.changes++;
        for (struct page *page = file->forgotten; page; page = page->next) head.pages++;
        put(out, &head, sizeof head);
        for (struct change *change = file->first; change; change = change->next) {
            put(out, change, sizeof *change);
            put(out, change->bytes, change->bytes ? change->len : 0);
            put(out, change->before, change->before_len);
        }
        for (struct page *page = file->forgotten; page; page = page->next) put(out, page, sizeof *page);
    }
    if (fclose(out) != 0 || rename(draft, carried) != 0) give_up(carried);
}

static void load(void) {
    FILE *in = fopen(carried, "r");
    if (!in) return;
    struct carried_file head;
    while (fread(&head, sizeof head, 1, in) == 1) {
        int fd = real_open(head.path, O_RDWR | O_CLOEXEC);
        struct file *file = fd < 0 ? NULL : track(fd, head.path, NULL);
        if (!file) give_up(head.path);
        close(fd);
        now_means(name_of(head.path), file);
        for (uint32_t i = 0; i < head.changes; i++) {
            struct change *change = room(sizeof *change);
            get(in, change, sizeof *change);
            change->next = NULL;
            if (change->bytes) get(in, change->bytes = room(change->len), change->len);
            if (change->before) get(in, change->before = room(change->before_len), change->before_len);
            add(file, change);
        }
        for (uint32_t i = 0; i < head.pages; i++) {
            struct page *page = room(sizeof *page);
            get(in, page, sizeof *page);
            page->next = file->forgotten;
            file->forgotten = page;
        }
    }
    fclose(in);
}

__attribute__((destructor)) static void end(void) {
    pthread_mutex_lock(&lock);
    carry();
}

// Marks unsynced pages as only in the page cache: the sync failed, and no later sync will write them.
static void forget(struct file *file) {
    int64_t size, largest;
    unsigned char *image = durable_image(file, &size, &largest);
    for (struct change *change = file->first; change; change = change->next) {
        int64_t end = change->bytes ? change->offset + (int64_t)change->len : largest;
        for (int64_t number = change->offset / 4096; number * 4096 < end; number++) {
            struct page *page = file->forgotten;
            while (page && page->number != number) page = page->next;
            if (page) continue;
            page = room(sizeof *page);
            page->number = number;
            page->next = file->forgotten;
            memcpy(page->durable, image + number * 4096, 4096);
            file->forgotten = page;
        }
    }
    free(image);
    drop_changes(file);
}

static void stay_dark(void) {
    while (is_dark) pause();
}

static void die(void) {
    carry();
    kill(getpid(), SIGKILL);
    pause();
}

// The fault that is injected at this operation on a file, if any. The lock is held.
static uint32_t fault_at(uint32_t operation, const char *path) {
    injection->seen[__builtin_ctz(operation)]++;
    uint32_t kind = __atomic_load_n(&injection->kind, __ATOMIC_ACQUIRE);
    if (kind == NOTHING || !(injection->operations & operation) || !ends_with(path, injection->suffix)) return NOTHING;
    if (--injection->countdown > 0) return NOTHING;
    __atomic_add_fetch(&injection->fired, 1, __ATOMIC_RELEASE);
    if (!(kind == FAIL && injection->lasting)) injection->kind = NOTHING;
    if (kind == KILL_BEFORE) die();
    // Half of the cuts come before the operation, half after it.
    if (kind == CUT && injection->seed / 2 % 2) cut_power();
    return kind;
}

static void then(uint32_t kind) {
    if (kind == KILL_AFTER) die();
    if (kind == CUT) cut_power();
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t offset) {
    begin();
    char path[512];
    if (!path_of(fd, path)) return real_pwrite(fd, bytes, len, offset);
    pthread_mutex_lock(&lock);
    uint32_t kind = fault_at(WRITE, path);
    // A write that fails, and some that are followed by a kill, have written only a part.
    size_t some = kind == FAIL || (kind == KILL_AFTER && injection->seed % 3 == 0) ? len * (injection->seed % 8) / 8 : len;
    struct file *file = file_of(fd);
    if (file && some) remember(file, offset, bytes, some);
    ssize_t written = some ? real_pwrite(fd, bytes, some, offset) : 0;
    int error = errno;
    then(kind);
    pthread_mutex_unlock(&lock);
    errno = kind == FAIL ? (int)injection->error : error;
    return kind == FAIL ? -1 : written;
}

ssize_t pread64(int fd, void *bytes, size_t len, off64_t offset) {
    begin();
    char path[512];
    uint32_t kind = NOTHING;
    stay_dark();
    if (injection && injection->kind && injection->operations & READ && path_of(fd, path)) {
        pthread_mutex_lock(&lock);
        kind = fault_at(READ, path);
        then(kind);
        pthread_mutex_unlock(&lock);
    }
    ssize_t n = real_pread(fd, bytes, len, offset);
    stay_dark();
    if (kind != FAIL) return n;
    errno = (int)injection->error;
    return -1;
}

int ftruncate64(int fd, off64_t size) {
    begin();
    char path[512];
    if (!path_of(fd, path)) return real_ftruncate(fd, size);
    pthread_mutex_lock(&lock);
    uint32_t kind = fault_at(TRUNCATE, path);
    int result = -1;
    errno = (int)injection->error;
    if (kind != FAIL) {
        struct file *file = file_of(fd);
        if (file && size != size_of(fd)) remember(file, size, NULL, 0);
        result = real_ftruncate(fd, size);
        then(kind);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

// Does not sync the real disk: only simulated power cuts lose data.
static int sync_file(int fd) {
    begin();
    char path[512];
    if (!path_of(fd, path)) return 0;
    struct stat64 stat;
    bool is_folder = fstat64(fd, &stat) == 0 && S_ISDIR(stat.st_mode);
    if (!is_folder && injection->sync_us) usleep(injection->sync_us);
    pthread_mutex_lock(&lock);
    uint32_t kind = fault_at(is_folder ? SYNC_FOLDER : SYNC, path);
    struct file *file = is_folder ? NULL : file_of(fd);
    if (file && kind == FAIL) forget(file);
    if (file && kind != FAIL) drop_changes(file);
    size_t len = strlen(path);
    for (int i = 0; is_folder && kind != FAIL && i < name_count; i++) {
        struct name *name = &names[i];
        bool is_below = strncmp(name->path, path, len) == 0 && name->path[len] == '/';
        if (!is_below || !name->count || strchr(name->path + len + 1, '/')) continue;
        name->meanings[0] = name->meanings[name->count - 1];
        name->count = 1;
    }
    then(kind);
    pthread_mutex_unlock(&lock);
    errno = (int)injection->error;
    return kind == FAIL ? -1 : 0;
}

static int open_file(const char *path, int flags, mode_t mode) {
    begin();
    if (boot_id && strcmp(path, "/proc/sys/kernel/random/boot_id") == 0) path = boot_id;
    if (!is_ours(path)) return real_open(path, flags, mode);
    pthread_mutex_lock(&lock);
    uint32_t kind = fault_at(OPEN, path);
    struct stat64 stat;
    bool was_there = lstat64(path, &stat) == 0;
    int fd = kind == FAIL ? -1 : real_open(path, flags, mode);
    int error = kind == FAIL ? (int)injection->error : errno;
    if (remembers && fd >= 0) {
        struct name *name = name_of(path);
        struct file *file = track(fd, path, name->count ? name->meanings[name->count - 1] : NULL);
        if (file && !name->count && !was_there) now_means(name, NULL);
        if (file) now_means(name, file);
    }
    then(kind);
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

static int take_away(const char *path) {
    begin();
    if (!is_ours(path)) return real_unlink(path);
    pthread_mutex_lock(&lock);
    uint32_t kind = fault_at(UNLINK, path);
    int result = kind == FAIL ? -1 : real_unlink(path);
    int error = kind == FAIL ? (int)injection->error : errno;
    if (remembers && result == 0) {
        struct name *name = name_of(path);
        if (name->count) now_means(name, NULL);
    }
    then(kind);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

int mkdir(const char *path, mode_t mode) {
    begin();
    int result = real_mkdir(path, mode);
    if (result == 0 && remembers && is_ours(path)) {
        pthread_mutex_lock(&lock);
        struct name *name = name_of(path);
        if (!name->count) now_means(name, NULL);
        now_means(name, &a_folder);
        pthread_mutex_unlock(&lock);
    }
    return result;
}

// Not a disk operation: fails the wait of a network thread. The suffix is compared with the name of the thread.
int epoll_wait(int fd, struct epoll_event *events, int max, int timeout) {
    begin();
    int result = real_epoll_wait(fd, events, max, timeout);
    char name[16] = "";
    if (!injection || injection->kind != FAIL || !(injection->operations & WAIT)) return result;
    if (pthread_getname_np(pthread_self(), name, sizeof name) != 0 || !ends_with(name, injection->suffix)) return result;
    pthread_mutex_lock(&lock);
    bool fails = injection->kind == FAIL;
    injection->kind = NOTHING;
    pthread_mutex_unlock(&lock);
    if (!fails) return result;
    errno = (int)injection->error;
    return -1;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_file(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_file(path, flags | O_LARGEFILE, mode); }
int unlink(const char *path) { return take_away(path); }
int fsync(int fd) { return sync_file(fd); }
int fdatasync(int fd) { return sync_file(fd); }
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
ssize_t pwrite(int fd, const void *bytes, size_t len, off_t offset) { return pwrite64(fd, bytes, len, offset); }
ssize_t pread(int fd, void *bytes, size_t len, off_t offset) { return pread64(fd, bytes, len, offset); }
