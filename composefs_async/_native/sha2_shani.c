/* SHA-256 on the SHA extensions of x86-64, several streams interleaved.
 *
 * sha256rnds2 answers after four cycles but can start every second one: one stream leaves half of the unit idle. */

#include "sha256_pair.h"
#include "sha2.h"

#if SHA2_X86

#include <cpuid.h>
#include <immintrin.h>

#define SHANI __attribute__((target("sse4.1,sha")))
#define INLINE static inline __attribute__((always_inline))

/* Reverses the bytes of each word, within 16 bytes. */
#define SWAP32 12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

struct shani_stream {
    __m128i abef, cdgh, m[4];
};

/* The 64 rounds of one block on N streams in step; the messages are in m[] and are used up. */
#define SHANI_BLOCK(N, s)                                                                                             \
    do {                                                                                                              \
        struct shani_stream before[N];                                                                                \
        UNROLL for (int n = 0; n < (N); n++) before[n] = (s)[n];                                                      \
        UNROLL for (int q = 0; q < 16; q++)                                                                           \
        {                                                                                                             \
            const __m128i k = _mm_loadu_si128((const __m128i *)(const void *)(sha256_k + 4 * q));                     \
            UNROLL for (int n = 0; n < (N); n++)                                                                      \
            {                                                                                                         \
                struct shani_stream *x = &(s)[n];                                                                     \
                __m128i wk = _mm_add_epi32(x->m[q & 3], k);                                                           \
                x->cdgh = _mm_sha256rnds2_epu32(x->cdgh, x->abef, wk);                                                \
                x->abef = _mm_sha256rnds2_epu32(x->abef, x->cdgh, _mm_shuffle_epi32(wk, 0x0e));                       \
                if (q < 12) {                                                                                         \
                    __m128i next = _mm_sha256msg1_epu32(x->m[q & 3], x->m[(q + 1) & 3]);                              \
                    next = _mm_add_epi32(next, _mm_alignr_epi8(x->m[(q + 3) & 3], x->m[(q + 2) & 3], 4));             \
                    x->m[q & 3] = _mm_sha256msg2_epu32(next, x->m[(q + 3) & 3]);                                      \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
        UNROLL for (int n = 0; n < (N); n++)                                                                          \
        {                                                                                                             \
            (s)[n].abef = _mm_add_epi32((s)[n].abef, before[n].abef);                                                 \
            (s)[n].cdgh = _mm_add_epi32((s)[n].cdgh, before[n].cdgh);                                                 \
        }                                                                                                             \
    } while (0)

/* The registers have the eight words in this order, from the last to the first. */
INLINE SHANI void shani_begin(struct shani_stream *s, const uint32_t state[8])
{
    s->abef = _mm_set_epi32((int)state[0], (int)state[1], (int)state[4], (int)state[5]);
    s->cdgh = _mm_set_epi32((int)state[2], (int)state[3], (int)state[6], (int)state[7]);
}

INLINE SHANI void shani_load(struct shani_stream *s, const uint8_t *block)
{
    const __m128i swap = _mm_set_epi8(SWAP32);
    const __m128i *from = (const __m128i *)(const void *)block;

    UNROLL for (int i = 0; i < 4; i++) s->m[i] = _mm_shuffle_epi8(_mm_loadu_si128(from + i), swap);
}

/* The words in their order, each passed through *swap*. */
INLINE SHANI void shani_end(const struct shani_stream *s, void *to, __m128i swap)
{
    __m128i feba = _mm_shuffle_epi32(s->abef, 0x1b), hgdc = _mm_shuffle_epi32(s->cdgh, 0x1b);

    _mm_storeu_si128((__m128i *)to, _mm_shuffle_epi8(_mm_unpacklo_epi64(feba, hgdc), swap));
    _mm_storeu_si128((__m128i *)to + 1, _mm_shuffle_epi8(_mm_unpackhi_epi64(feba, hgdc), swap));
}

#define SHANI_STREAMS(N)                                                                                              \
    static SHANI void sha256_streams##N(const uint8_t *const in[], size_t length, uint8_t *const out[])              \
    {                                                                                                                 \
        struct shani_stream s[N];                                                                                     \
                                                                                                                      \
        UNROLL for (int n = 0; n < (N); n++) shani_begin(&s[n], sha256_iv);                                           \
        for (size_t at = 0; at < length; at += 64) {                                                                  \
            UNROLL for (int n = 0; n < (N); n++) shani_load(&s[n], in[n] + at);                                       \
            SHANI_BLOCK(N, s);                                                                                        \
        }                                                                                                             \
        UNROLL for (int n = 0; n < (N); n++)                                                                          \
        {                                                                                                             \
            s[n].m[0] = _mm_set_epi32(0, 0, 0, (int)0x80000000U);                                                     \
            s[n].m[1] = s[n].m[2] = _mm_setzero_si128();                                                              \
            s[n].m[3] = _mm_set_epi32((int)(length * 8), 0, 0, 0);                                                    \
        }                                                                                                             \
        SHANI_BLOCK(N, s);                                                                                            \
        UNROLL for (int n = 0; n < (N); n++) shani_end(&s[n], out[n], _mm_set_epi8(SWAP32));                          \
    }

SHANI_STREAMS(1)
SHANI_STREAMS(2)
SHANI_STREAMS(3)

static bool has_shani(void)
{
    unsigned a, b, c, d;

    /* Leaf 7, EBX bit 29; not every compiler has a name for it. */
    return __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("ssse3") &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1);
}

/* Other libraries may leave the upper halves of the registers in use, which slows the SHA extensions down by a
 * quarter for as long as they are (seen with ISA-L); one instruction clears them. */
static __attribute__((target("avx"))) void clear_upper_halves(void)
{
    _mm256_zeroupper();
}

#define SHANI_BLOCKS(N)                                                                                               \
    SHANI void sha256_blocks##N(uint32_t *const state[], const uint8_t *const in[], size_t blocks)                    \
    {                                                                                                                 \
        const __m128i same = _mm_set_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);                      \
        struct shani_stream s[N];                                                                                     \
                                                                                                                      \
        if (__builtin_cpu_supports("avx"))                                                                            \
            clear_upper_halves();                                                                                     \
        UNROLL for (int n = 0; n < (N); n++) shani_begin(&s[n], state[n]);                                            \
        for (size_t at = 0; at < 64 * blocks; at += 64) {                                                             \
            UNROLL for (int n = 0; n < (N); n++) shani_load(&s[n], in[n] + at);                                       \
            SHANI_BLOCK(N, s);                                                                                        \
        }                                                                                                             \
        UNROLL for (int n = 0; n < (N); n++) shani_end(&s[n], state[n], same);                                        \
    }

SHANI_BLOCKS(1)
SHANI_BLOCKS(2)

bool sha256_pair_usable(void)
{
    return has_shani();
}

static void sha256_streams3_clean(const uint8_t *const in[], size_t length, uint8_t *const out[])
{
    if (__builtin_cpu_supports("avx"))
        clear_upper_halves();
    sha256_streams3(in, length, out);
}

const struct sha2_implementation sha256_shani = {
    "sha-ni", has_shani, {{3, 3, sha256_streams3_clean}, {2, 2, sha256_streams2}, {1, 1, sha256_streams1}}};

#else

bool sha256_pair_usable(void)
{
    return false;
}

void sha256_blocks1(uint32_t *const state[], const uint8_t *const in[], size_t blocks)
{
    (void)state, (void)in, (void)blocks;
}

void sha256_blocks2(uint32_t *const state[], const uint8_t *const in[], size_t blocks)
{
    (void)state, (void)in, (void)blocks;
}

#endif
