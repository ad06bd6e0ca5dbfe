/* What a crash leaves: nothing, or objects that are complete, or (without O_TMPFILE, and while a corrupt object is
 * replaced) a file XX/.tmp-object-… that nothing refers to.  Nothing here flushes: the caller does, once for all. */

#include "store.h"

#include "beneath.h"
#include "object.h"
#include "retry.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* linux/fsverity.h, which older systems lack. */
struct enable_arg {
    uint32_t version, hash_algorithm, block_size, salt_size;
    uint64_t salt_ptr;
    uint32_t sig_size, reserved1;
    uint64_t sig_ptr, reserved2[11];
};

#define ENABLE_VERITY _IOW('f', 133, struct enable_arg)  /* FS_IOC_ENABLE_VERITY */
#define NO_REPLACE 1                                     /* RENAME_NOREPLACE, linux/fs.h since 3.15 */

#define TEMPORARY_TRIES 16
#define BUSY_TRIES 20 /* of a millisecond */
#define REWRITES 4

/* After this many new objects in a row the next one is taken to be new, too, which saves looking for it; unless it is so
 * large that to have written it for nothing would be a pity. */
#define NEW_IN_A_ROW 8
#define LARGE (64 << 10)

/* Everything about the object in hand.  Functions return 0, or an errno after they named the step in *step*. */
struct object {
    struct store_batch *batch;
    const uint8_t *id;
    struct verity_item content;
    bool probably_new;
    char path[OBJECT_PATH_SIZE];
    char temporary[sizeof "XX/.tmp-object-" + 12];     /* empty: there is no such name */
    const char *step;
    int fd;
};

static int failed(struct object *object, const char *step)
{
    object->step = step;
    return errno;
}

/* -- names ---------------------------------------------------------------------------------------------------- */

static int directory_of(const struct object *object, char name[3])
{
    memcpy(name, object->path, 2);
    name[2] = '\0';
    return RETRY(mkdirat(object->batch->objects, name, 0755)) == 0 || errno == EEXIST ? 0 : -1;
}

/* The name that composefs-rs gives to temporary objects, below XX so that a sweep of the directories finds it.
 * By the system call, since getrandom() came with glibc 2.25. */
static int name_temporary(struct object *object)
{
    static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    uint8_t random[12];
    char *to = object->temporary;

    if (RETRY(syscall(SYS_getrandom, random, sizeof random, 0)) != (long)sizeof random)
        return -1;
    memcpy(to, object->path, 3);
    memcpy(to + 3, ".tmp-object-", 12);
    for (int i = 0; i < 12; i++)
        to[15 + i] = letters[random[i] % 36];
    to[27] = '\0';
    return 0;
}

static void forget_temporary(struct object *object)
{
    if (object->temporary[0])
        (void)RETRY(unlinkat(object->batch->objects, object->temporary, 0));
    object->temporary[0] = '\0';
}

/* -- what is there already ------------------------------------------------------------------------------------ */

enum found { ABSENT, GOOD, CORRUPT };

/* 0 if the file measures as *id*, EBADMSG if as something else, or what the kernel says. */
static int measure(const struct object *object, int fd)
{
    switch (object_measure(&object->batch->params, fd, object->id, NULL)) {
    case OBJECT_SAME:
        return 0;
    case OBJECT_FAILED:
        return errno;
    default:
        return EBADMSG;
    }
}

/* What says that the thing itself is wrong: no regular file, or what fs-verity keeps of it is damaged.  All other errors
 * only say that it could not be read. */
static bool is_corrupt(int error)
{
    return error == ELOOP || error == ENXIO || error == EINVAL || error == EBADMSG;
}

static bool is_unprotected(int error)
{
    return error == ENODATA || error == ENOTTY || error == EOPNOTSUPP || error == EOVERFLOW || error == EBADMSG;
}

static int look_measured(struct object *object, enum found *found)
{
    int fd = beneath_open(object->batch->objects, object->path, O_RDONLY | O_NONBLOCK, 0);
    int error;

    *found = CORRUPT;
    if (fd < 0 && errno == ENOENT)
        *found = ABSENT;
    else if (fd < 0 && !is_corrupt(errno))
        return failed(object, "open");
    if (fd < 0)
        return 0;
    error = measure(object, fd);
    close(fd);
    if (error == 0)
        *found = GOOD;
    errno = error;
    return error == 0 || is_unprotected(error) ? 0 : failed(object, "measure");
}

/* 0 if the directory of the object is one, which is looked at once in a batch, or -1 with errno. */
static int require_shard(const struct object *object)
{
    uint8_t *seen = &object->batch->shards[object->id[0] / 8], bit = (uint8_t)(1u << (object->id[0] % 8));
    char directory[3] = {object->path[0], object->path[1]};

    if (!(*seen & bit) && beneath_require_directory(object->batch->objects, directory))
        return -1;
    *seen |= bit;
    return 0;
}

static int look(struct object *object, enum found *found)
{
    struct stat st;

    if (RETRY(fstatat(object->batch->objects, object->path, &st, AT_SYMLINK_NOFOLLOW))) {
        *found = ABSENT;
        return errno == ENOENT ? 0 : failed(object, "stat");
    }
    /* What is behind a link in the place of its directory is not here, and nobody would read it. */
    if (require_shard(object))
        return failed(object, "stat");
    *found = S_ISREG(st.st_mode) && (uint64_t)st.st_size == object->content.size ? GOOD : CORRUPT;
    if (*found == GOOD && object->batch->verity == STORE_VERITY_REQUIRE)
        return look_measured(object, found);
    return 0;
}

/* -- a new file ----------------------------------------------------------------------------------------------- */

static bool lacks_tmpfile(int error)
{
    return error == EOPNOTSUPP || error == EISDIR || error == ENOSYS || error == EINVAL;
}

static int open_named(struct object *object)
{
    for (int tries = 0; tries < TEMPORARY_TRIES; tries++) {
        if (name_temporary(object)) {
            object->temporary[0] = '\0';
            return failed(object, "random");
        }
        object->fd = beneath_open(object->batch->objects, object->temporary, O_CREAT | O_EXCL | O_RDWR, 0644);
        if (object->fd >= 0)
            return 0;
        if (errno != EEXIST)
            break;
    }
    object->temporary[0] = '\0';
    return failed(object, "create");
}

static int open_unnamed(struct object *object)
{
    char directory[3] = {object->path[0], object->path[1]};

    object->fd = beneath_open(object->batch->objects, directory, O_TMPFILE | O_RDWR, 0644);
    return object->fd >= 0 ? 0 : failed(object, "create");
}

static int open_new(struct object *object)
{
    char directory[3];
    bool made = false;

    for (;;) {
        int error = object->batch->tmpfile ? open_unnamed(object) : open_named(object);
        if (error == ENOENT && !made) {
            if (directory_of(object, directory))
                return failed(object, "mkdir");
            made = true;
        } else if (object->batch->tmpfile && lacks_tmpfile(error)) {
            object->batch->tmpfile = false;
        } else {
            return error;
        }
    }
}

static int write_all(struct object *object)
{
    const uint8_t *from = object->content.data;
    size_t left = object->content.size;

    while (left) {
        ssize_t now = RETRY(write(object->fd, from, left));
        if (now <= 0) {
            errno = now ? errno : EIO;
            return failed(object, "write");
        }
        from += now;
        left -= (size_t)now;
    }
    return 0;
}

static void proc_path(int fd, char path[32])
{
    snprintf(path, 32, "/proc/self/fd/%d", fd);
}

/* Verity needs a file that nobody can write to any more, and that goes for this descriptor too. */
static int reopen(struct object *object)
{
    char path[32];
    int fd;

    proc_path(object->fd, path);
    fd = RETRY(open(path, O_RDONLY | O_CLOEXEC));
    if (fd < 0)
        return failed(object, "reopen");
    close(object->fd);
    object->fd = fd;
    return 0;
}

/* Waits out ETXTBSY: another thread may be between fork and exec, where the child still has our writable file. */
static int enable(const struct object *object)
{
    struct enable_arg arg = {.version = 1, .block_size = VERITY_BLOCK};
    const struct timespec millisecond = {0, 1000000};

    arg.hash_algorithm = (uint32_t)object->batch->params.number;
    for (int tries = 0; tries < BUSY_TRIES; tries++) {
        if (ioctl(object->fd, ENABLE_VERITY, &arg) == 0 || errno == EEXIST)
            return 0;
        if (errno != ETXTBSY && errno != EINTR)
            return errno;
        nanosleep(&millisecond, NULL);
    }
    return ETXTBSY;
}

static int protect(struct object *object)
{
    struct store_batch *batch = object->batch;
    int error;

    if (batch->verity == STORE_VERITY_NEVER || (batch->verity == STORE_VERITY_TRY && batch->support == STORE_SUPPORT_NO))
        return 0;
    error = reopen(object);
    if (error == ENOENT && batch->verity == STORE_VERITY_TRY) { /* without /proc no file can be opened again */
        batch->support = STORE_SUPPORT_NO;
        return 0;
    }
    if (error)
        return error;
    error = enable(object);
    if (error == EOPNOTSUPP || error == ENOTTY)
        batch->support = STORE_SUPPORT_NO;
    else if (error == 0)
        batch->support = STORE_SUPPORT_YES;
    if (error && batch->verity == STORE_VERITY_TRY && batch->support == STORE_SUPPORT_NO)
        return 0;
    errno = error;
    if (error)
        return failed(object, "verity");
    if (batch->verity != STORE_VERITY_REQUIRE)
        return 0;
    errno = measure(object, object->fd);
    return errno ? failed(object, "measure") : 0;
}

static void discard(struct object *object)
{
    if (object->fd >= 0)
        close(object->fd);
    object->fd = -1;
    forget_temporary(object);
}

/* A child that keeps our file open for writing longer than a moment was forked while it was open; a new file is not
 * open in it. */
static int make(struct object *object)
{
    int error = 0;

    for (int tries = 0; tries < REWRITES; tries++) {
        error = open_new(object);
        if (!error)
            error = write_all(object);
        if (!error)
            error = protect(object);
        if (error != ETXTBSY)
            break;
        discard(object);
    }
    return error;
}

/* -- giving it its name --------------------------------------------------------------------------------------- */

/* 0, or -1 with errno. */
static int link_unnamed(struct object *object, const char *to)
{
    struct store_batch *batch = object->batch;
    char path[32];

    if (batch->empty_path) { /* saves the kernel a walk through /proc, but needs privilege or a new kernel */
        if (RETRY(linkat(object->fd, "", batch->objects, to, AT_EMPTY_PATH)) == 0)
            return 0;
        if (errno != ENOENT && errno != EPERM && errno != EINVAL)
            return -1;
        batch->empty_path = false;
    }
    proc_path(object->fd, path);
    return RETRY(linkat(AT_FDCWD, path, batch->objects, to, AT_SYMLINK_FOLLOW));
}

static int rename_unless_there(struct object *object)
{
    int objects = object->batch->objects;

    if (RETRY(syscall(SYS_renameat2, objects, object->temporary, objects, object->path, NO_REPLACE)) == 0) {
        object->temporary[0] = '\0';
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
        return -1;
    if (RETRY(linkat(objects, object->temporary, objects, object->path, 0)))
        return -1;
    forget_temporary(object);
    return 0;
}

static int publish(struct object *object)
{
    int status = object->temporary[0] ? rename_unless_there(object) : link_unnamed(object, object->path);

    return status ? failed(object, "link") : 0;
}

/* Puts the new file over what is there, in one step: readers see the old one or the new one. */
static int replace(struct object *object)
{
    int objects = object->batch->objects;

    for (int tries = 0; !object->temporary[0]; tries++) {
        if (name_temporary(object) || link_unnamed(object, object->temporary)) {
            object->temporary[0] = '\0';
            if (errno != EEXIST || tries == TEMPORARY_TRIES)
                return failed(object, "link");
        }
    }
    if (RETRY(renameat(objects, object->temporary, objects, object->path)))
        return failed(object, "replace");
    object->temporary[0] = '\0';
    return 0;
}

/* Returns an errno; *outcome* is for 0.  EEXIST means that somebody was faster, and then what they made counts like
 * what was there before. */
static int settle(struct object *object, enum found found, enum store_outcome *outcome)
{
    int error = make(object);

    *outcome = STORE_STORED;
    if (!error && found == ABSENT) {
        error = publish(object);
        if (error != EEXIST)
            return error;
        error = look(object, &found);
        *outcome = STORE_PRESENT;
    }
    if (!error && found != GOOD) {
        error = replace(object);
        *outcome = found == CORRUPT ? STORE_REPLACED : STORE_STORED;
    }
    return error;
}

static int store_one(struct object *object, enum store_outcome *outcome)
{
    enum found found = ABSENT;
    int error = object->probably_new ? 0 : look(object, &found);

    *outcome = STORE_PRESENT;
    if (error || found == GOOD)
        return error;
    error = settle(object, found, outcome);
    discard(object);
    return error;
}

/* -- the batch ------------------------------------------------------------------------------------------------ */

/* What one item meets all the others will meet. */
static bool ends_batch(int error)
{
    return error == ENOSPC || error == EDQUOT || error == EROFS || error == EMFILE || error == ENFILE;
}

ptrdiff_t store_batch_run(struct store_batch *batch, const struct verity_item *items, size_t count, uint8_t *ids,
                          uint8_t *outcomes, struct store_failure *failures)
{
    size_t digest = batch->params.algorithm->digest_size, hashed = 0;
    unsigned new_in_a_row = 0;
    ptrdiff_t failed_items = 0;
    struct store_failure fatal = {0, 0, NULL};

    batch->support = STORE_SUPPORT_UNKNOWN;
    batch->empty_path = true;
    memset(batch->shards, 0, sizeof batch->shards);
    for (size_t i = 0; i < count; i++) {
        struct object object = {.batch = batch, .id = ids + i * digest, .content = items[i], .fd = -1};
        enum store_outcome outcome = STORE_FAILED;
        int error = fatal.error;

        if (i == hashed) {
            size_t window = verity_window(items + i, count - i);
            if (verity_digest_many(&batch->params, items + i, window, ids + i * digest))
                return -1;
            hashed += window;
        }
        if (!error) {
            (void)object_path(object.id, digest, object.path);
            object.probably_new = new_in_a_row >= NEW_IN_A_ROW && items[i].size <= LARGE;
            error = store_one(&object, &outcome);
            new_in_a_row = outcome == STORE_STORED ? new_in_a_row + 1 : 0;
            fatal = (struct store_failure){0, ends_batch(error) ? error : 0, object.step};
        }
        if (error)
            failures[failed_items++] = (struct store_failure){i, error, fatal.error ? fatal.step : object.step};
        outcomes[i] = (uint8_t)(error ? STORE_FAILED : outcome);
    }
    return failed_items;
}
