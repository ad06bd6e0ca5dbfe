/* SHA-256 and SHA-512 of many messages of one length at once; no Python, no system calls.
 *
 * fs-verity hashes independent blocks, so the way to speed is not one fast stream but several side by side:
 * the lanes of a vector register, or streams interleaved on an instruction that has more latency than throughput. */

#ifndef COMPOSEFS_SHA2_H
#define COMPOSEFS_SHA2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHA2_MAX_LANES 16
#define SHA2_MAX_DIGEST 64

/* Hashes exactly *lanes* messages of *length* bytes, which is a multiple of 128. */
typedef void sha2_run(const uint8_t *const in[], size_t length, uint8_t *const out[]);

struct sha2_group {
    unsigned lanes;
    unsigned least; /* with fewer messages than this the next smaller group is quicker */
    sha2_run *run;
};

struct sha2_implementation {
    const char *name;
    bool (*usable)(void);
    struct sha2_group groups[4]; /* most lanes first; the last one used has one lane */
};

struct sha2_algorithm {
    size_t digest_size;
    const struct sha2_implementation *const *implementations; /* fastest first, up to NULL; the last is plain C */
};

extern const uint32_t sha256_k[64], sha256_iv[8];
extern const uint64_t sha512_k[80], sha512_iv[8];
extern const struct sha2_algorithm sha256_algorithm, sha512_algorithm;

sha2_run sha256_plain, sha512_plain;

/* Clang declared the intrinsics of Armv8.2 only under compiler options before version 16. */
#if defined(__x86_64__) && defined(__GNUC__)
#define SHA2_X86 1
#elif defined(__aarch64__) && defined(__ORDER_LITTLE_ENDIAN__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ &&         \
    (!defined(__clang__) || __clang_major__ >= 16)
#define SHA2_ARM 1
#endif

#if SHA2_X86
extern const struct sha2_implementation sha256_shani, sha256_avx512, sha256_avx2, sha512_avx512, sha512_avx2;
#endif
#if SHA2_ARM
extern const struct sha2_implementation sha256_armv8, sha512_armv82;
#endif

/* By fs-verity number (1, 2); NULL for any other. */
const struct sha2_algorithm *sha2_by_number(int number);

/* By name, or the fastest usable one for NULL; NULL if this processor cannot run it. */
const struct sha2_implementation *sha2_choose(const struct sha2_algorithm *algorithm, const char *name);

/* Hashes *count* messages of *length* bytes (a multiple of 128) each. */
void sha2_many(const struct sha2_implementation *implementation, const uint8_t *const in[], size_t count,
               size_t length, uint8_t *const out[]);

#endif
