/* Ids in hexadecimal, and the one question to fs-verity. */

#include "object.h"

#include "retry.h"

#include <string.h>
#include <sys/ioctl.h>

#define MEASURE_VERITY _IOWR('f', 134, uint16_t[2]) /* FS_IOC_MEASURE_VERITY: the header without the digest */

struct measured { /* struct fsverity_digest of linux/fsverity.h, which older systems lack */
    uint16_t algorithm, size;
    uint8_t digest[SHA2_MAX_DIGEST];
};

const char *object_path(const uint8_t *id, size_t width, char path[OBJECT_PATH_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    char *to = path;

    for (size_t i = 0; i < width; i++) {
        *to++ = digits[id[i] >> 4];
        *to++ = digits[id[i] & 15];
        if (i == 0)
            *to++ = '/';
    }
    *to = '\0';
    return path;
}

enum object_measured object_measure(const struct verity_params *params, int fd, const uint8_t *id, uint8_t *digest)
{
    size_t width = params->algorithm->digest_size;
    struct measured measured = {.size = SHA2_MAX_DIGEST};

    if (RETRY(ioctl(fd, MEASURE_VERITY, &measured)))
        return OBJECT_FAILED;
    if (measured.algorithm != params->number || measured.size != width)
        return OBJECT_STRANGE;
    if (memcmp(measured.digest, id, width) == 0)
        return OBJECT_SAME;
    if (digest)
        memcpy(digest, measured.digest, width);
    return OBJECT_OTHER;
}
