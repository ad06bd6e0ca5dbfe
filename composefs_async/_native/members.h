/* Members of a tar archive that need no second look; no Python, no system calls.
 *
 * What is accepted here is less than a full parser accepts: ustar and GNU headers, fields filled with octal digits, and
 * nothing behind them but their terminator. */

#ifndef COMPOSEFS_MEMBERS_H
#define COMPOSEFS_MEMBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMBER_NAME 100
#define MEMBER_PREFIX 155
#define MEMBER_INLINE_MAX 64 /* INLINE_MAX of tar/header.py */

enum member_type { MEMBER_FILE, MEMBER_HARDLINK, MEMBER_SYMLINK, MEMBER_DIRECTORY };

struct member {
    enum member_type type;
    const uint8_t *name, *prefix, *link; /* in the header */
    size_t name_size, prefix_size, link_size;
    uint64_t mode, uid, gid, size, mtime;
};

/* Reads a header of 512 bytes; false: it needs a second look. */
bool member_parse(struct member *member, const uint8_t *header);

struct members_range {
    size_t begin, end;
};

struct members {
    const uint8_t *data;
    size_t size;
    size_t file_max; /* larger files are left to the caller */

    size_t at;                   /* in: of a header; out: of the first one that was not passed, perhaps beyond the end */
    struct members_range *files; /* out: the contents that become objects */
    size_t count, room;
};

/* Passes members as long as each is an ordinary one, is here with all its content, and there is room. */
void members_pass(struct members *members);

#endif
