#include "members.h"

#include <string.h>

#define BLOCK 512

/* Fields of a header (POSIX pax(1), "ustar Interchange Format"). */
enum { MODE = 100, UID = 108, GID = 116, SIZE = 124, MTIME = 136, CHECKSUM = 148, TYPE = 156, LINK = 157 };

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

static bool is_plain(const uint8_t *header, uint64_t *size)
{
    uint64_t mode, other;

    return header[0] && number(header + MODE, 8, &mode) && mode <= 07777 && number(header + UID, 8, &other) &&
           number(header + GID, 8, &other) && number(header + SIZE, 12, size) && number(header + MTIME, 12, &other) &&
           is_sound(header);
}

void members_pass(struct members *members)
{
    const size_t size = members->size;
    size_t at = members->at;

    while (at <= size && size - at >= BLOCK && members->count < members->room) {
        const uint8_t *header = members->data + at;
        const size_t content = at + BLOCK, left = size - content;
        const uint8_t type = header[TYPE];
        uint64_t bytes;

        if (!is_plain(header, &bytes))
            break;
        if (type == '0') {
            if (bytes > members->file_max || bytes > left)
                break;
            if (bytes > members->inline_max)
                members->files[members->count++] = (struct members_range){content, content + (size_t)bytes};
            else if (bytes && left < BLOCK)
                break;
            at = content + (size_t)((bytes + BLOCK - 1) / BLOCK * BLOCK);
        } else if (bytes == 0 && (type == '5' || ((type == '1' || type == '2') && header[LINK]))) {
            at = content;
        } else {
            break;
        }
    }
    members->at = at;
}
