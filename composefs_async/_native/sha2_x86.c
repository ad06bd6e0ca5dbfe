/* SHA-2 for x86-64: lanes of AVX2 and AVX-512 registers.
 *
 * Every function says itself which instructions it uses, so that the file needs no compiler options and the choice
 * is made when it runs. */

#include "sha2.h"

#if SHA2_X86

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512vl")))
#define INLINE static inline __attribute__((always_inline))

/* -- loading: rows of input become columns of words ----------------------------------------------------------- */

/* Reverses the bytes of each word, within 16 bytes. */
#define SWAP32 12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3
#define SWAP64 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7

INLINE AVX2 __m256i row256(const uint8_t *from, __m128i swap)
{
    __m256i row = _mm256_loadu_si256((const __m256i *)(const void *)from);
    return _mm256_shuffle_epi8(row, _mm256_broadcastsi128_si256(swap));
}

INLINE AVX512 __m512i row512(const uint8_t *from, __m128i swap)
{
    __m512i row = _mm512_loadu_si512((const void *)from);
    return _mm512_shuffle_epi8(row, _mm512_broadcast_i32x4(swap));
}

INLINE AVX2 void load64x4(__m256i w[16], const uint8_t *const in[], size_t at)
{
    const __m128i swap = _mm_set_epi8(SWAP64);

    for (int i = 0; i < 16; i += 4, at += 32) {
        __m256i r0 = row256(in[0] + at, swap), r1 = row256(in[1] + at, swap);
        __m256i r2 = row256(in[2] + at, swap), r3 = row256(in[3] + at, swap);
        __m256i even01 = _mm256_unpacklo_epi64(r0, r1), odd01 = _mm256_unpackhi_epi64(r0, r1);
        __m256i even23 = _mm256_unpacklo_epi64(r2, r3), odd23 = _mm256_unpackhi_epi64(r2, r3);

        w[i + 0] = _mm256_permute2x128_si256(even01, even23, 0x20);
        w[i + 1] = _mm256_permute2x128_si256(odd01, odd23, 0x20);
        w[i + 2] = _mm256_permute2x128_si256(even01, even23, 0x31);
        w[i + 3] = _mm256_permute2x128_si256(odd01, odd23, 0x31);
    }
}

/* Four rows of 32-bit words, transposed within each 16 bytes: q[c] has word c of all four. */
INLINE AVX2 void quads256(__m256i q[4], const uint8_t *const in[], size_t at, __m128i swap)
{
    __m256i r0 = row256(in[0] + at, swap), r1 = row256(in[1] + at, swap);
    __m256i r2 = row256(in[2] + at, swap), r3 = row256(in[3] + at, swap);
    __m256i low01 = _mm256_unpacklo_epi32(r0, r1), high01 = _mm256_unpackhi_epi32(r0, r1);
    __m256i low23 = _mm256_unpacklo_epi32(r2, r3), high23 = _mm256_unpackhi_epi32(r2, r3);

    q[0] = _mm256_unpacklo_epi64(low01, low23);
    q[1] = _mm256_unpackhi_epi64(low01, low23);
    q[2] = _mm256_unpacklo_epi64(high01, high23);
    q[3] = _mm256_unpackhi_epi64(high01, high23);
}

INLINE AVX2 void load32x8(__m256i w[16], const uint8_t *const in[], size_t at)
{
    const __m128i swap = _mm_set_epi8(SWAP32);

    for (int i = 0; i < 16; i += 8, at += 32) {
        __m256i first[4], second[4];
        quads256(first, in, at, swap);
        quads256(second, in + 4, at, swap);
        for (int c = 0; c < 4; c++) {
            w[i + c] = _mm256_permute2x128_si256(first[c], second[c], 0x20);
            w[i + 4 + c] = _mm256_permute2x128_si256(first[c], second[c], 0x31);
        }
    }
}

/* A 4 by 4 transpose of the 16-byte parts of a, b, c, d into to[0], to[step], to[2 * step], to[3 * step]. */
INLINE AVX512 void spread512(__m512i *to, int step, __m512i a, __m512i b, __m512i c, __m512i d)
{
    __m512i even_ab = _mm512_shuffle_i64x2(a, b, 0x88), odd_ab = _mm512_shuffle_i64x2(a, b, 0xdd);
    __m512i even_cd = _mm512_shuffle_i64x2(c, d, 0x88), odd_cd = _mm512_shuffle_i64x2(c, d, 0xdd);

    to[0] = _mm512_shuffle_i64x2(even_ab, even_cd, 0x88);
    to[step] = _mm512_shuffle_i64x2(odd_ab, odd_cd, 0x88);
    to[2 * step] = _mm512_shuffle_i64x2(even_ab, even_cd, 0xdd);
    to[3 * step] = _mm512_shuffle_i64x2(odd_ab, odd_cd, 0xdd);
}

INLINE AVX512 void load64x8(__m512i w[16], const uint8_t *const in[], size_t at)
{
    const __m128i swap = _mm_set_epi8(SWAP64);

    for (int i = 0; i < 16; i += 8, at += 64) {
        __m512i even[4], odd[4];
        for (int j = 0; j < 4; j++) {
            __m512i r0 = row512(in[2 * j] + at, swap), r1 = row512(in[2 * j + 1] + at, swap);
            even[j] = _mm512_unpacklo_epi64(r0, r1);
            odd[j] = _mm512_unpackhi_epi64(r0, r1);
        }
        spread512(w + i, 2, even[0], even[1], even[2], even[3]);
        spread512(w + i + 1, 2, odd[0], odd[1], odd[2], odd[3]);
    }
}

INLINE AVX512 void load32x16(__m512i w[16], const uint8_t *const in[], size_t at)
{
    const __m128i swap = _mm_set_epi8(SWAP32);
    __m512i q[4][4];

    for (int j = 0; j < 4; j++) {
        const uint8_t *const *rows = in + 4 * j;
        __m512i r0 = row512(rows[0] + at, swap), r1 = row512(rows[1] + at, swap);
        __m512i r2 = row512(rows[2] + at, swap), r3 = row512(rows[3] + at, swap);
        __m512i low01 = _mm512_unpacklo_epi32(r0, r1), high01 = _mm512_unpackhi_epi32(r0, r1);
        __m512i low23 = _mm512_unpacklo_epi32(r2, r3), high23 = _mm512_unpackhi_epi32(r2, r3);
        q[j][0] = _mm512_unpacklo_epi64(low01, low23);
        q[j][1] = _mm512_unpackhi_epi64(low01, low23);
        q[j][2] = _mm512_unpacklo_epi64(high01, high23);
        q[j][3] = _mm512_unpackhi_epi64(high01, high23);
    }
    for (int c = 0; c < 4; c++)
        spread512(w + c, 4, q[0][c], q[1][c], q[2][c], q[3][c]);
}

/* -- lanes ---------------------------------------------------------------------------------------------------- */

/* The truth tables of vpternlog: xor of three, choose, majority. */
#define TERNARY_XOR3 0x96
#define TERNARY_CH 0xca
#define TERNARY_MAJ 0xe8

#define NAME sha512_lanes4_avx2
#define ATTRIBUTES static AVX2
#define WIDTH 64
#define LANES 4
#define V __m256i
#define LOAD(w, in, at) load64x4(w, in, at)
#define STORE(to, v) _mm256_storeu_si256((__m256i *)(void *)(to), v)
#define SET1(x) _mm256_set1_epi64x((long long)(x))
#define ADD(a, b) _mm256_add_epi64(a, b)
#define ROR(x, n) _mm256_or_si256(_mm256_srli_epi64(x, n), _mm256_slli_epi64(x, 64 - (n)))
#define SHR(x, n) _mm256_srli_epi64(x, n)
#define XOR3(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
#define CH(e, f, g) _mm256_xor_si256(_mm256_and_si256(_mm256_xor_si256(f, g), e), g)
#define MAJ(a, b, c) _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(c, _mm256_or_si256(a, b)))
#include "sha2_lanes.h"

#define NAME sha256_lanes8_avx2
#define ATTRIBUTES static AVX2
#define WIDTH 32
#define LANES 8
#define V __m256i
#define LOAD(w, in, at) load32x8(w, in, at)
#define STORE(to, v) _mm256_storeu_si256((__m256i *)(void *)(to), v)
#define SET1(x) _mm256_set1_epi32((int)(x))
#define ADD(a, b) _mm256_add_epi32(a, b)
#define ROR(x, n) _mm256_or_si256(_mm256_srli_epi32(x, n), _mm256_slli_epi32(x, 32 - (n)))
#define SHR(x, n) _mm256_srli_epi32(x, n)
#define XOR3(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
#define CH(e, f, g) _mm256_xor_si256(_mm256_and_si256(_mm256_xor_si256(f, g), e), g)
#define MAJ(a, b, c) _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(c, _mm256_or_si256(a, b)))
#include "sha2_lanes.h"

#define NAME sha512_lanes8_avx512
#define ATTRIBUTES static AVX512
#define WIDTH 64
#define LANES 8
#define V __m512i
#define LOAD(w, in, at) load64x8(w, in, at)
#define STORE(to, v) _mm512_storeu_si512((void *)(to), v)
#define SET1(x) _mm512_set1_epi64((long long)(x))
#define ADD(a, b) _mm512_add_epi64(a, b)
#define ROR(x, n) _mm512_ror_epi64(x, n)
#define SHR(x, n) _mm512_srli_epi64(x, n)
#define XOR3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, TERNARY_XOR3)
#define CH(e, f, g) _mm512_ternarylogic_epi64(e, f, g, TERNARY_CH)
#define MAJ(a, b, c) _mm512_ternarylogic_epi64(a, b, c, TERNARY_MAJ)
#include "sha2_lanes.h"

/* Half a register: for batches that would leave most lanes of the whole one empty. */
#define NAME sha512_lanes4_avx512
#define ATTRIBUTES static AVX512
#define WIDTH 64
#define LANES 4
#define V __m256i
#define LOAD(w, in, at) load64x4(w, in, at)
#define STORE(to, v) _mm256_storeu_si256((__m256i *)(void *)(to), v)
#define SET1(x) _mm256_set1_epi64x((long long)(x))
#define ADD(a, b) _mm256_add_epi64(a, b)
#define ROR(x, n) _mm256_ror_epi64(x, n)
#define SHR(x, n) _mm256_srli_epi64(x, n)
#define XOR3(a, b, c) _mm256_ternarylogic_epi64(a, b, c, TERNARY_XOR3)
#define CH(e, f, g) _mm256_ternarylogic_epi64(e, f, g, TERNARY_CH)
#define MAJ(a, b, c) _mm256_ternarylogic_epi64(a, b, c, TERNARY_MAJ)
#include "sha2_lanes.h"

#define NAME sha256_lanes16_avx512
#define ATTRIBUTES static AVX512
#define WIDTH 32
#define LANES 16
#define V __m512i
#define LOAD(w, in, at) load32x16(w, in, at)
#define STORE(to, v) _mm512_storeu_si512((void *)(to), v)
#define SET1(x) _mm512_set1_epi32((int)(x))
#define ADD(a, b) _mm512_add_epi32(a, b)
#define ROR(x, n) _mm512_ror_epi32(x, n)
#define SHR(x, n) _mm512_srli_epi32(x, n)
#define XOR3(a, b, c) _mm512_ternarylogic_epi32(a, b, c, TERNARY_XOR3)
#define CH(e, f, g) _mm512_ternarylogic_epi32(e, f, g, TERNARY_CH)
#define MAJ(a, b, c) _mm512_ternarylogic_epi32(a, b, c, TERNARY_MAJ)
#include "sha2_lanes.h"

#define NAME sha256_lanes8_avx512
#define ATTRIBUTES static AVX512
#define WIDTH 32
#define LANES 8
#define V __m256i
#define LOAD(w, in, at) load32x8(w, in, at)
#define STORE(to, v) _mm256_storeu_si256((__m256i *)(void *)(to), v)
#define SET1(x) _mm256_set1_epi32((int)(x))
#define ADD(a, b) _mm256_add_epi32(a, b)
#define ROR(x, n) _mm256_ror_epi32(x, n)
#define SHR(x, n) _mm256_srli_epi32(x, n)
#define XOR3(a, b, c) _mm256_ternarylogic_epi32(a, b, c, TERNARY_XOR3)
#define CH(e, f, g) _mm256_ternarylogic_epi32(e, f, g, TERNARY_CH)
#define MAJ(a, b, c) _mm256_ternarylogic_epi32(a, b, c, TERNARY_MAJ)
#include "sha2_lanes.h"

/* -- what this processor can do ------------------------------------------------------------------------------- */

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

const struct sha2_implementation sha256_avx512 = {
    "avx512",
    has_avx512,
    {{16, 9, sha256_lanes16_avx512}, {8, 3, sha256_lanes8_avx512}, {1, 1, sha256_plain}}};
const struct sha2_implementation sha256_avx2 = {
    "avx2", has_avx2, {{8, 3, sha256_lanes8_avx2}, {1, 1, sha256_plain}}};
const struct sha2_implementation sha512_avx512 = {
    "avx512",
    has_avx512,
    {{8, 5, sha512_lanes8_avx512}, {4, 2, sha512_lanes4_avx512}, {1, 1, sha512_plain}}};
const struct sha2_implementation sha512_avx2 = {
    "avx2", has_avx2, {{4, 3, sha512_lanes4_avx2}, {1, 1, sha512_plain}}};

#else
typedef int composefs_sha2_x86_unused; /* C forbids an empty file */
#endif
