/* Passing over the members of a tar archive that need no second look; no Python, no system calls. */

#ifndef COMPOSEFS_MEMBERS_H
#define COMPOSEFS_MEMBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct members_range {
    size_t begin, end;
};

struct members {
    const uint8_t *data;
    size_t size;
    size_t inline_max; /* content of up to so many bytes stays where it is */
    size_t file_max;   /* larger files are left to the caller */

    size_t at;                   /* in: of a header; out: of the first one that was not passed, perhaps beyond the end */
    struct members_range *files; /* out: the contents that become objects */
    size_t count, room;
};

/* Passes members as long as each is an ordinary one, is here with all its content, and there is room.  It accepts
 * less than a full parser does: fields filled with octal digits, and nothing behind them but their terminator. */
void members_pass(struct members *members);

#endif
