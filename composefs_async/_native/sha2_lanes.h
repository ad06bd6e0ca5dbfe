/* Template: SHA-2 on LANES messages at a time, one per lane of the vector type V.  Included once per instance.
 *
 * The includer defines
 *   NAME, ATTRIBUTES          of the function made
 *   WIDTH                     32 or 64: bits of a word, that is SHA-256 or SHA-512
 *   LANES, V                  number of lanes and the type that has them
 *   LOAD(w, in, at)           fill V w[16] with the big-endian words at byte *at* of each message
 *   STORE(to, v)              lanes of v to memory
 *   SET1, ADD, ROR, SHR, XOR3, CH, MAJ
 * and all of them are undefined at the end.  Constants and functions are those of FIPS 180-4. */

#if WIDTH == 64
#define WORD uint64_t
#define ROUNDS 80
#define K sha512_k
#define IV sha512_iv
#define BIG_SIGMA0(x) XOR3(ROR(x, 28), ROR(x, 34), ROR(x, 39))
#define BIG_SIGMA1(x) XOR3(ROR(x, 14), ROR(x, 18), ROR(x, 41))
#define SMALL_SIGMA0(x) XOR3(ROR(x, 1), ROR(x, 8), SHR(x, 7))
#define SMALL_SIGMA1(x) XOR3(ROR(x, 19), ROR(x, 61), SHR(x, 6))
#else
#define WORD uint32_t
#define ROUNDS 64
#define K sha256_k
#define IV sha256_iv
#define BIG_SIGMA0(x) XOR3(ROR(x, 2), ROR(x, 13), ROR(x, 22))
#define BIG_SIGMA1(x) XOR3(ROR(x, 6), ROR(x, 11), ROR(x, 25))
#define SMALL_SIGMA0(x) XOR3(ROR(x, 7), ROR(x, 18), SHR(x, 3))
#define SMALL_SIGMA1(x) XOR3(ROR(x, 17), ROR(x, 19), SHR(x, 10))
#endif

/* The roles of the eight variables move on by one with each round; only two of them change. */
#define ROUND(a, b, c, d, e, f, g, h, i)                                                                             \
    do {                                                                                                              \
        V first = ADD(ADD(h, BIG_SIGMA1(e)), ADD(CH(e, f, g), ADD(w[i], SET1(K[t + (i)]))));                         \
        d = ADD(d, first);                                                                                            \
        h = ADD(first, ADD(BIG_SIGMA0(a), MAJ(a, b, c)));                                                             \
    } while (0)

#define EIGHT_ROUNDS(i)                                                                                               \
    do {                                                                                                              \
        ROUND(a, b, c, d, e, f, g, h, (i) + 0);                                                                       \
        ROUND(h, a, b, c, d, e, f, g, (i) + 1);                                                                       \
        ROUND(g, h, a, b, c, d, e, f, (i) + 2);                                                                       \
        ROUND(f, g, h, a, b, c, d, e, (i) + 3);                                                                       \
        ROUND(e, f, g, h, a, b, c, d, (i) + 4);                                                                       \
        ROUND(d, e, f, g, h, a, b, c, (i) + 5);                                                                       \
        ROUND(c, d, e, f, g, h, a, b, (i) + 6);                                                                       \
        ROUND(b, c, d, e, f, g, h, a, (i) + 7);                                                                       \
    } while (0)

#define EXTEND(i)                                                                                                     \
    w[i] = ADD(ADD(w[i], SMALL_SIGMA0(w[((i) + 1) & 15])), ADD(w[((i) + 9) & 15], SMALL_SIGMA1(w[((i) + 14) & 15])))

#define EXTEND_FOUR(i)                                                                                                \
    do {                                                                                                              \
        EXTEND((i) + 0);                                                                                              \
        EXTEND((i) + 1);                                                                                              \
        EXTEND((i) + 2);                                                                                              \
        EXTEND((i) + 3);                                                                                              \
    } while (0)

ATTRIBUTES void NAME(const uint8_t *const in[], size_t length, uint8_t *const out[])
{
    V w[16], state[8];
    WORD words[8][LANES];

    for (int i = 0; i < 8; i++)
        state[i] = SET1(IV[i]);

    /* One turn more than there is input: the last one hashes the padding, which is the same for every lane. */
    for (size_t at = 0; at <= length; at += 2 * WIDTH) {
        if (at < length) {
            LOAD(w, in, at);
        } else {
            w[0] = SET1((WORD)1 << (WIDTH - 1));
            for (int i = 1; i < 15; i++)
                w[i] = SET1((WORD)0);
            w[15] = SET1((WORD)(length * 8));
        }
        V a = state[0], b = state[1], c = state[2], d = state[3];
        V e = state[4], f = state[5], g = state[6], h = state[7];
        for (int t = 0;;) {
            EIGHT_ROUNDS(0);
            EIGHT_ROUNDS(8);
            t += 16;
            if (t == ROUNDS)
                break;
            EXTEND_FOUR(0);
            EXTEND_FOUR(4);
            EXTEND_FOUR(8);
            EXTEND_FOUR(12);
        }
        state[0] = ADD(state[0], a);
        state[1] = ADD(state[1], b);
        state[2] = ADD(state[2], c);
        state[3] = ADD(state[3], d);
        state[4] = ADD(state[4], e);
        state[5] = ADD(state[5], f);
        state[6] = ADD(state[6], g);
        state[7] = ADD(state[7], h);
    }

    for (int i = 0; i < 8; i++)
        STORE(words[i], state[i]);
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 8; i++)
            for (int byte = 0; byte < WIDTH / 8; byte++)
                out[lane][i * (WIDTH / 8) + byte] = (uint8_t)(words[i][lane] >> (WIDTH - 8 - 8 * byte));
}

#undef WORD
#undef ROUNDS
#undef K
#undef IV
#undef BIG_SIGMA0
#undef BIG_SIGMA1
#undef SMALL_SIGMA0
#undef SMALL_SIGMA1
#undef ROUND
#undef EIGHT_ROUNDS
#undef EXTEND
#undef EXTEND_FOUR

#undef NAME
#undef ATTRIBUTES
#undef WIDTH
#undef LANES
#undef V
#undef LOAD
#undef STORE
#undef SET1
#undef ADD
#undef ROR
#undef SHR
#undef XOR3
#undef CH
#undef MAJ
