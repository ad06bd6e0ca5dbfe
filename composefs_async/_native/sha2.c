/* Constants, the plain C implementations, and the choice among all of them. */

#include "sha2.h"

#include <string.h>

/* FIPS 180-4: the fractional parts of the cube roots (k) and square roots (iv) of the first primes. */
const uint32_t sha256_k[64] = {
    0x428a2f98U, 0x71374491U, 0xb5c0fbcfU, 0xe9b5dba5U, 0x3956c25bU, 0x59f111f1U, 0x923f82a4U, 0xab1c5ed5U,
    0xd807aa98U, 0x12835b01U, 0x243185beU, 0x550c7dc3U, 0x72be5d74U, 0x80deb1feU, 0x9bdc06a7U, 0xc19bf174U,
    0xe49b69c1U, 0xefbe4786U, 0x0fc19dc6U, 0x240ca1ccU, 0x2de92c6fU, 0x4a7484aaU, 0x5cb0a9dcU, 0x76f988daU,
    0x983e5152U, 0xa831c66dU, 0xb00327c8U, 0xbf597fc7U, 0xc6e00bf3U, 0xd5a79147U, 0x06ca6351U, 0x14292967U,
    0x27b70a85U, 0x2e1b2138U, 0x4d2c6dfcU, 0x53380d13U, 0x650a7354U, 0x766a0abbU, 0x81c2c92eU, 0x92722c85U,
    0xa2bfe8a1U, 0xa81a664bU, 0xc24b8b70U, 0xc76c51a3U, 0xd192e819U, 0xd6990624U, 0xf40e3585U, 0x106aa070U,
    0x19a4c116U, 0x1e376c08U, 0x2748774cU, 0x34b0bcb5U, 0x391c0cb3U, 0x4ed8aa4aU, 0x5b9cca4fU, 0x682e6ff3U,
    0x748f82eeU, 0x78a5636fU, 0x84c87814U, 0x8cc70208U, 0x90befffaU, 0xa4506cebU, 0xbef9a3f7U, 0xc67178f2U,
};

const uint32_t sha256_iv[8] = {
    0x6a09e667U, 0xbb67ae85U, 0x3c6ef372U, 0xa54ff53aU, 0x510e527fU, 0x9b05688cU, 0x1f83d9abU, 0x5be0cd19U,
};

const uint64_t sha512_k[80] = {
    0x428a2f98d728ae22ULL, 0x7137449123ef65cdULL, 0xb5c0fbcfec4d3b2fULL, 0xe9b5dba58189dbbcULL,
    0x3956c25bf348b538ULL, 0x59f111f1b605d019ULL, 0x923f82a4af194f9bULL, 0xab1c5ed5da6d8118ULL,
    0xd807aa98a3030242ULL, 0x12835b0145706fbeULL, 0x243185be4ee4b28cULL, 0x550c7dc3d5ffb4e2ULL,
    0x72be5d74f27b896fULL, 0x80deb1fe3b1696b1ULL, 0x9bdc06a725c71235ULL, 0xc19bf174cf692694ULL,
    0xe49b69c19ef14ad2ULL, 0xefbe4786384f25e3ULL, 0x0fc19dc68b8cd5b5ULL, 0x240ca1cc77ac9c65ULL,
    0x2de92c6f592b0275ULL, 0x4a7484aa6ea6e483ULL, 0x5cb0a9dcbd41fbd4ULL, 0x76f988da831153b5ULL,
    0x983e5152ee66dfabULL, 0xa831c66d2db43210ULL, 0xb00327c898fb213fULL, 0xbf597fc7beef0ee4ULL,
    0xc6e00bf33da88fc2ULL, 0xd5a79147930aa725ULL, 0x06ca6351e003826fULL, 0x142929670a0e6e70ULL,
    0x27b70a8546d22ffcULL, 0x2e1b21385c26c926ULL, 0x4d2c6dfc5ac42aedULL, 0x53380d139d95b3dfULL,
    0x650a73548baf63deULL, 0x766a0abb3c77b2a8ULL, 0x81c2c92e47edaee6ULL, 0x92722c851482353bULL,
    0xa2bfe8a14cf10364ULL, 0xa81a664bbc423001ULL, 0xc24b8b70d0f89791ULL, 0xc76c51a30654be30ULL,
    0xd192e819d6ef5218ULL, 0xd69906245565a910ULL, 0xf40e35855771202aULL, 0x106aa07032bbd1b8ULL,
    0x19a4c116b8d2d0c8ULL, 0x1e376c085141ab53ULL, 0x2748774cdf8eeb99ULL, 0x34b0bcb5e19b48a8ULL,
    0x391c0cb3c5c95a63ULL, 0x4ed8aa4ae3418acbULL, 0x5b9cca4f7763e373ULL, 0x682e6ff3d6b2b8a3ULL,
    0x748f82ee5defb2fcULL, 0x78a5636f43172f60ULL, 0x84c87814a1f0ab72ULL, 0x8cc702081a6439ecULL,
    0x90befffa23631e28ULL, 0xa4506cebde82bde9ULL, 0xbef9a3f7b2c67915ULL, 0xc67178f2e372532bULL,
    0xca273eceea26619cULL, 0xd186b8c721c0c207ULL, 0xeada7dd6cde0eb1eULL, 0xf57d4f7fee6ed178ULL,
    0x06f067aa72176fbaULL, 0x0a637dc5a2c898a6ULL, 0x113f9804bef90daeULL, 0x1b710b35131c471bULL,
    0x28db77f523047d84ULL, 0x32caab7b40c72493ULL, 0x3c9ebe0a15c9bebcULL, 0x431d67c49c100d4cULL,
    0x4cc5d4becb3e42b6ULL, 0x597f299cfc657e2aULL, 0x5fcb6fab3ad6faecULL, 0x6c44198c4a475817ULL,
};

const uint64_t sha512_iv[8] = {
    0x6a09e667f3bcc908ULL, 0xbb67ae8584caa73bULL, 0x3c6ef372fe94f82bULL, 0xa54ff53a5f1d36f1ULL,
    0x510e527fade682d1ULL, 0x9b05688c2b3e6c1fULL, 0x1f83d9abfb41bd6bULL, 0x5be0cd19137e2179ULL,
};

/* Byte by byte, so that neither alignment nor byte order matters; compilers make one load and one swap of it. */
static inline uint32_t load32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint64_t load64(const uint8_t *p)
{
    return (uint64_t)load32(p) << 32 | load32(p + 4);
}

#define SCALAR_LOAD(read, w, in, at)                                                                                  \
    for (int i_ = 0; i_ < 16; i_++)                                                                                   \
    (w)[i_] = read((in)[0] + (at) + (size_t)i_ * sizeof((w)[0]))

#define NAME sha256_plain
#define ATTRIBUTES
#define WIDTH 32
#define LANES 1
#define V uint32_t
#define LOAD(w, in, at) SCALAR_LOAD(load32, w, in, at)
#define STORE(to, v) ((to)[0] = (v))
#define SET1(x) (x)
#define ADD(a, b) ((a) + (b))
#define ROR(x, n) ((x) >> (n) | (x) << (32 - (n)))
#define SHR(x, n) ((x) >> (n))
#define XOR3(a, b, c) ((a) ^ (b) ^ (c))
#define CH(e, f, g) ((((f) ^ (g)) & (e)) ^ (g))
#define MAJ(a, b, c) (((a) & (b)) | ((c) & ((a) | (b))))
#include "sha2_lanes.h"

#define NAME sha512_plain
#define ATTRIBUTES
#define WIDTH 64
#define LANES 1
#define V uint64_t
#define LOAD(w, in, at) SCALAR_LOAD(load64, w, in, at)
#define STORE(to, v) ((to)[0] = (v))
#define SET1(x) (x)
#define ADD(a, b) ((a) + (b))
#define ROR(x, n) ((x) >> (n) | (x) << (64 - (n)))
#define SHR(x, n) ((x) >> (n))
#define XOR3(a, b, c) ((a) ^ (b) ^ (c))
#define CH(e, f, g) ((((f) ^ (g)) & (e)) ^ (g))
#define MAJ(a, b, c) (((a) & (b)) | ((c) & ((a) | (b))))
#include "sha2_lanes.h"

static bool always(void)
{
    return true;
}

static const struct sha2_implementation sha256_c = {"c", always, {{1, 1, sha256_plain}}};
static const struct sha2_implementation sha512_c = {"c", always, {{1, 1, sha512_plain}}};

static const struct sha2_implementation *const sha256_list[] = {
#if SHA2_X86
    &sha256_shani, &sha256_avx512, &sha256_avx2,
#elif SHA2_ARM
    &sha256_armv8,
#endif
    &sha256_c, NULL,
};

static const struct sha2_implementation *const sha512_list[] = {
#if SHA2_X86
    &sha512_avx512, &sha512_avx2,
#elif SHA2_ARM
    &sha512_armv82,
#endif
    &sha512_c, NULL,
};

const struct sha2_algorithm sha256_algorithm = {32, sha256_list};
const struct sha2_algorithm sha512_algorithm = {64, sha512_list};

const struct sha2_algorithm *sha2_by_number(int number)
{
    return number == 1 ? &sha256_algorithm : number == 2 ? &sha512_algorithm : NULL;
}

const struct sha2_implementation *sha2_choose(const struct sha2_algorithm *algorithm, const char *name)
{
    for (const struct sha2_implementation *const *each = algorithm->implementations; *each; each++)
        if ((!name || strcmp(name, (*each)->name) == 0) && (*each)->usable())
            return *each;
    return NULL;
}

/* Fills the lanes that have no message with the first one; what comes out of them is thrown away. */
static void run_partly(const struct sha2_group *group, const uint8_t *const in[], size_t count, size_t length,
                       uint8_t *const out[])
{
    uint8_t nowhere[SHA2_MAX_DIGEST];
    const uint8_t *all_in[SHA2_MAX_LANES];
    uint8_t *all_out[SHA2_MAX_LANES];

    for (size_t lane = 0; lane < group->lanes; lane++) {
        all_in[lane] = lane < count ? in[lane] : in[0];
        all_out[lane] = lane < count ? out[lane] : nowhere;
    }
    group->run(all_in, length, all_out);
}

void sha2_many(const struct sha2_implementation *implementation, const uint8_t *const in[], size_t count,
               size_t length, uint8_t *const out[])
{
    const struct sha2_group *group = implementation->groups;

    for (size_t done = 0; done < count;) {
        size_t left = count - done;

        while (left < group->least)
            group++;
        if (left >= group->lanes) {
            group->run(in + done, length, out + done);
            done += group->lanes;
        } else {
            run_partly(group, in + done, left, length, out + done);
            done = count;
        }
    }
}
