/* SHA-2 for 64-bit Arm: interleaved streams on the cryptographic extensions of Armv8.0 (SHA-256) and 8.2 (SHA-512).
 *
 * Every function says itself which instructions it uses, so that the file needs no compiler options and the choice
 * is made when it runs. */

#include "sha2.h"

#if SHA2_ARM

#include <arm_neon.h>
#include <sys/auxv.h>

#if defined(__clang__)
#define SHA256 __attribute__((target("sha2")))
#define SHA512 __attribute__((target("sha3")))
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define SHA256 __attribute__((target("+crypto"))) /* GCC ties the intrinsics to all of it */
#define SHA512 __attribute__((target("arch=armv8.2-a+sha3")))
#define UNROLL _Pragma("GCC unroll 64")
#endif

/* Bits of AT_HWCAP, linux/arch/arm64/include/uapi/asm/hwcap.h. */
#define CAP_SHA2 (1UL << 6)
#define CAP_SHA512 (1UL << 21)

struct stream256 {
    uint32x4_t abcd, efgh, m[4];
};

struct stream512 {
    uint64x2_t ab, cd, ef, gh, m[8];
};

/* One block of each of N streams in step; the messages are in m[] and are used up. */
#define BLOCK256(N, s)                                                                                                \
    do {                                                                                                              \
        struct stream256 before[N];                                                                                   \
        UNROLL for (int n = 0; n < (N); n++) before[n] = (s)[n];                                                      \
        UNROLL for (int q = 0; q < 16; q++)                                                                           \
        {                                                                                                             \
            const uint32x4_t k = vld1q_u32(sha256_k + 4 * q);                                                         \
            UNROLL for (int n = 0; n < (N); n++)                                                                      \
            {                                                                                                         \
                struct stream256 *x = &(s)[n];                                                                        \
                uint32x4_t wk = vaddq_u32(x->m[q & 3], k), abcd = x->abcd;                                            \
                x->abcd = vsha256hq_u32(abcd, x->efgh, wk);                                                           \
                x->efgh = vsha256h2q_u32(x->efgh, abcd, wk);                                                          \
                if (q < 12)                                                                                           \
                    x->m[q & 3] = vsha256su1q_u32(vsha256su0q_u32(x->m[q & 3], x->m[(q + 1) & 3]),                    \
                                                  x->m[(q + 2) & 3], x->m[(q + 3) & 3]);                              \
            }                                                                                                         \
        }                                                                                                             \
        UNROLL for (int n = 0; n < (N); n++)                                                                          \
        {                                                                                                             \
            (s)[n].abcd = vaddq_u32((s)[n].abcd, before[n].abcd);                                                     \
            (s)[n].efgh = vaddq_u32((s)[n].efgh, before[n].efgh);                                                     \
        }                                                                                                             \
    } while (0)

#define STREAMS256(N)                                                                                                 \
    static SHA256 void sha256_streams##N(const uint8_t *const in[], size_t length, uint8_t *const out[])             \
    {                                                                                                                 \
        struct stream256 s[N];                                                                                        \
                                                                                                                      \
        UNROLL for (int n = 0; n < (N); n++)                                                                          \
        {                                                                                                             \
            s[n].abcd = vld1q_u32(sha256_iv);                                                                         \
            s[n].efgh = vld1q_u32(sha256_iv + 4);                                                                     \
        }                                                                                                             \
        for (size_t at = 0; at < length; at += 64) {                                                                  \
            UNROLL for (int n = 0; n < (N); n++) UNROLL for (int i = 0; i < 4; i++)                                   \
                s[n].m[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(in[n] + at + 16 * i)));                          \
            BLOCK256(N, s);                                                                                           \
        }                                                                                                             \
        UNROLL for (int n = 0; n < (N); n++)                                                                          \
        {                                                                                                             \
            s[n].m[0] = vsetq_lane_u32(0x80000000U, vdupq_n_u32(0), 0);                                               \
            s[n].m[1] = s[n].m[2] = vdupq_n_u32(0);                                                                   \
            s[n].m[3] = vsetq_lane_u32((uint32_t)(length * 8), vdupq_n_u32(0), 3);                                    \
        }                                                                                                             \
        BLOCK256(N, s);                                                                                               \
        UNROLL for (int n = 0; n < (N); n++)                                                                          \
        {                                                                                                             \
            vst1q_u8(out[n], vrev32q_u8(vreinterpretq_u8_u32(s[n].abcd)));                                            \
            vst1q_u8(out[n] + 16, vrev32q_u8(vreinterpretq_u8_u32(s[n].efgh)));                                       \
        }                                                                                                             \
    }

STREAMS256(1)
STREAMS256(2)
STREAMS256(3)

/* Two rounds.  They turn gh into what is ab afterwards, and the other pairs move on by one. */
#define TWO_ROUNDS512(x, k, i)                                                                                        \
    do {                                                                                                              \
        uint64x2_t wk = vaddq_u64((x)->m[i], k), ab = (x)->ab;                                                        \
        uint64x2_t sum = vaddq_u64(vextq_u64(wk, wk, 1), (x)->gh);                                                    \
        sum = vsha512hq_u64(sum, vextq_u64((x)->ef, (x)->gh, 1), vextq_u64((x)->cd, (x)->ef, 1));                     \
        (x)->gh = (x)->ef;                                                                                            \
        (x)->ef = vaddq_u64((x)->cd, sum);                                                                            \
        (x)->ab = vsha512h2q_u64(sum, (x)->cd, ab);                                                                   \
        (x)->cd = ab;                                                                                                 \
    } while (0)

#define BLOCK512(N, s)                                                                                                \
    do {                                                                                                              \
        struct stream512 before[N];                                                                                   \
        UNROLL for (int n = 0; n < (N); n++) before[n] = (s)[n];                                                      \
        UNROLL for (int q = 0; q < 40; q++)                                                                           \
        {                                                                                                             \
            const uint64x2_t k = vld1q_u64(sha512_k + 2 * q);                                                         \
            UNROLL for (int n = 0; n < (N); n++)                                                                      \
            {                                                                                                         \
                struct stream512 *x = &(s)[n];                                                                        \
                TWO_ROUNDS512(x, k, q & 7);                                                                           \
                if (q < 32)                                                                                           \
                    x->m[q & 7] = vsha512su1q_u64(vsha512su0q_u64(x->m[q & 7], x->m[(q + 1) & 7]), x->m[(q + 7) & 7], \
                                                  vextq_u64(x->m[(q + 4) & 7], x->m[(q + 5) & 7], 1));                \
            }                                                                                                         \
        }                                                                                                             \
        UNROLL for (int n = 0; n < (N); n++)                                                                          \
        {                                                                                                             \
            (s)[n].ab = vaddq_u64((s)[n].ab, before[n].ab);                                                           \
            (s)[n].cd = vaddq_u64((s)[n].cd, before[n].cd);                                                           \
            (s)[n].ef = vaddq_u64((s)[n].ef, before[n].ef);                                                           \
            (s)[n].gh = vaddq_u64((s)[n].gh, before[n].gh);                                                           \
        }                                                                                                             \
    } while (0)

#define STREAMS512(N)                                                                                                 \
    static SHA512 void sha512_streams##N(const uint8_t *const in[], size_t length, uint8_t *const out[])             \
    {                                                                                                                 \
        struct stream512 s[N];                                                                                        \
                                                                                                                      \
        UNROLL for (int n = 0; n < (N); n++)                                                                          \
        {                                                                                                             \
            s[n].ab = vld1q_u64(sha512_iv);                                                                           \
            s[n].cd = vld1q_u64(sha512_iv + 2);                                                                       \
            s[n].ef = vld1q_u64(sha512_iv + 4);                                                                       \
            s[n].gh = vld1q_u64(sha512_iv + 6);                                                                       \
        }                                                                                                             \
        for (size_t at = 0; at < length; at += 128) {                                                                 \
            UNROLL for (int n = 0; n < (N); n++) UNROLL for (int i = 0; i < 8; i++)                                   \
                s[n].m[i] = vreinterpretq_u64_u8(vrev64q_u8(vld1q_u8(in[n] + at + 16 * i)));                          \
            BLOCK512(N, s);                                                                                           \
        }                                                                                                             \
        UNROLL for (int n = 0; n < (N); n++)                                                                          \
        {                                                                                                             \
            s[n].m[0] = vsetq_lane_u64(1ULL << 63, vdupq_n_u64(0), 0);                                                \
            UNROLL for (int i = 1; i < 7; i++) s[n].m[i] = vdupq_n_u64(0);                                            \
            s[n].m[7] = vsetq_lane_u64((uint64_t)length * 8, vdupq_n_u64(0), 1);                                      \
        }                                                                                                             \
        BLOCK512(N, s);                                                                                               \
        UNROLL for (int n = 0; n < (N); n++)                                                                          \
        {                                                                                                             \
            vst1q_u8(out[n], vrev64q_u8(vreinterpretq_u8_u64(s[n].ab)));                                              \
            vst1q_u8(out[n] + 16, vrev64q_u8(vreinterpretq_u8_u64(s[n].cd)));                                         \
            vst1q_u8(out[n] + 32, vrev64q_u8(vreinterpretq_u8_u64(s[n].ef)));                                         \
            vst1q_u8(out[n] + 48, vrev64q_u8(vreinterpretq_u8_u64(s[n].gh)));                                         \
        }                                                                                                             \
    }

STREAMS512(1)
STREAMS512(2)

static bool has_sha2(void)
{
    return getauxval(AT_HWCAP) & CAP_SHA2;
}

static bool has_sha512(void)
{
    return getauxval(AT_HWCAP) & CAP_SHA512;
}

const struct sha2_implementation sha256_armv8 = {
    "armv8", has_sha2, {{3, 3, sha256_streams3}, {2, 2, sha256_streams2}, {1, 1, sha256_streams1}}};
const struct sha2_implementation sha512_armv82 = {
    "armv8.2", has_sha512, {{2, 2, sha512_streams2}, {1, 1, sha512_streams1}}};

#else
typedef int composefs_sha2_arm_unused; /* C forbids an empty file */
#endif
