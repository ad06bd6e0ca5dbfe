#include "members.h"

#include <string.h>

#define BLOCK 512

/* Fields of a header (POSIX pax(1), "ustar Interchange Format"). */
enum {
    MODE = 100,
    UID = 108,
    GID = 116,
    SIZE = 124,
    MTIME = 136,
    CHECKSUM = 148,
    TYPE = 156,
    LINK = 157,
    MAGIC = 257,
    PREFIX = 345
};

/* A number of exactly so many octal digits. */
static bool digits(const uint8_t *field, size_t count, uint64_t *value)
{
    uint64_t sum = 0;
    unsigned wrong = 0;

    for (size_t i = 0; i < count; i++) {
        unsigned digit = (unsigned)field[i] - '0';
        wrong |= digit;
        sum = sum << 3 | (digit & 7);
    }
    *value = sum;
    return wrong < 8;
}

static bool ends(uint8_t byte)
{
    return byte == 0 || byte == ' ';
}

/* A field of *width* bytes that digits fill, up to the terminator. */
static bool number(const uint8_t *field, size_t width, uint64_t *value)
{
    return digits(field, width - 1, value) && ends(field[width - 1]);
}

/* The checksum counts its own field as eight spaces; six digits stand there. */
static bool is_sound(const uint8_t *header)
{
    const uint8_t *field = header + CHECKSUM;
    uint64_t expected;
    unsigned sum = 8 * ' ';

    if (!digits(field, 6, &expected) || !ends(field[6]) || !ends(field[7]))
        return false;
    for (size_t i = 0; i < BLOCK; i++)
        sum += header[i];
    for (size_t i = 0; i < 8; i++)
        sum -= field[i];
    return sum == expected;
}

static bool numbers(struct member *member, const uint8_t *header)
{
    return number(header + MODE, 8, &member->mode) && number(header + UID, 8, &member->uid) &&
           number(header + GID, 8, &member->gid) && number(header + SIZE, 12, &member->size) &&
           number(header + MTIME, 12, &member->mtime);
}

static bool type_of(struct member *member, const uint8_t *header)
{
    switch (header[TYPE]) {
    case '0':
        member->type = MEMBER_FILE;
        return true;
    case '1':
        member->type = MEMBER_HARDLINK;
        return member->size == 0 && header[LINK];
    case '2':
        member->type = MEMBER_SYMLINK;
        return member->size == 0 && header[LINK];
    case '5':
        member->type = MEMBER_DIRECTORY;
        return member->size == 0;
    default:
        return false;
    }
}

bool member_parse(struct member *member, const uint8_t *header)
{
    const bool ustar = memcmp(header + MAGIC, "ustar\00000", 8) == 0;

    if (!ustar && memcmp(header + MAGIC, "ustar  ", 8) != 0)
        return false;
    if (!header[0] || !numbers(member, header) || !type_of(member, header) || !is_sound(header))
        return false;
    member->mode &= 07777;
    member->name = header;
    member->name_size = strnlen((const char *)header, MEMBER_NAME);
    member->link = header + LINK;
    member->link_size = strnlen((const char *)header + LINK, 100);
    member->prefix = header + PREFIX;
    member->prefix_size = ustar ? strnlen((const char *)header + PREFIX, MEMBER_PREFIX) : 0;
    return true;
}

void members_pass(struct members *members)
{
    const size_t size = members->size;
    size_t at = members->at;

    while (at <= size && size - at >= BLOCK && members->count < members->room) {
        const size_t content = at + BLOCK, left = size - content;
        struct member member;

        if (!member_parse(&member, members->data + at))
            break;
        if (member.size > members->file_max || member.size > left)
            break;
        if (member.size > MEMBER_INLINE_MAX)
            members->files[members->count++] = (struct members_range){content, content + (size_t)member.size};
        else if (member.size && left < BLOCK)
            break;
        at = content + (size_t)((member.size + BLOCK - 1) / BLOCK * BLOCK);
    }
    members->at = at;
}
