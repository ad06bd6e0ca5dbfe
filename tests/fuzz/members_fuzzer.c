/* Feeds the native splitter archives; see test_tar.py.
 *
 *     clang -fsanitize=fuzzer,address,undefined -I composefs_async/_native members_fuzzer.c composefs_async/_native/members.c
 *
 * With -DSTANDALONE it has a driver of its own, for compilers without libFuzzer: ROUNDS FILE... */

#include "members.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 512
#define CONTROL 16
#define ROOM 7

static void require(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void seal(uint8_t *header)
{
    unsigned sum = 0;
    char text[9];

    memset(header + 148, ' ', 8);
    for (size_t i = 0; i < BLOCK; i++)
        sum += header[i];
    snprintf(text, sizeof text, "%06o", sum);
    memcpy(header + 148, text, 7);
}

static void check_member(const uint8_t *header)
{
    struct member member;

    if (!member_parse(&member, header))
        return;
    require(member.name_size >= 1 && member.name_size <= MEMBER_NAME, "a name");
    require(member.prefix_size <= MEMBER_PREFIX && member.link_size <= 100, "a prefix or a link");
    require(member.mode <= 07777 && member.uid < 1 << 21 && member.gid < 1 << 21, "mode or owner");
    require(member.type == MEMBER_FILE || member.size == 0, "a size");
}

static void pass(const uint8_t *data, size_t size)
{
    struct members_range files[ROOM];
    struct members members = {.data = data, .size = size, .file_max = 4096, .files = files, .room = ROOM};
    size_t last = 0, before;

    do {
        before = members.at;
        members.count = 0;
        members_pass(&members);
        require(members.at >= before && members.at % BLOCK == 0, "a place");
        for (size_t i = 0; i < members.count; i++) {
            require(files[i].begin >= last && files[i].begin % BLOCK == 0, "where a file begins");
            require(files[i].end > files[i].begin + MEMBER_INLINE_MAX && files[i].end <= size, "where a file ends");
            require(files[i].end - files[i].begin <= 4096, "how large a file is");
            last = files[i].end;
        }
    } while (members.count == ROOM);
    require(members.at < size + BLOCK, "the last place");
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    size_t length = size > CONTROL ? size - CONTROL : 0;
    uint8_t *data = malloc(length ? length : 1); /* of just this size, so that reading beyond it is seen */

    require(data != NULL, "memory");
    if (length)
        memcpy(data, input + CONTROL, length);
    for (size_t block = 0; block < length / BLOCK; block++)
        if (input[block / 8 % CONTROL] >> block % 8 & 1)
            seal(data + block * BLOCK);
    for (size_t block = 0; block < length / BLOCK; block++)
        check_member(data + block * BLOCK);
    pass(data, length);
    free(data);
    return 0;
}

#ifdef STANDALONE
static uint64_t state = 88172645463325252u;

static size_t below(size_t limit)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return limit ? (size_t)(state % limit) : 0;
}

#define FILES 64
#define LARGEST (1 << 16)

static struct {
    uint8_t data[LARGEST];
    size_t size;
} inputs[FILES];

static void load(size_t number, const char *path)
{
    FILE *file = fopen(path, "rb");

    require(file != NULL, path);
    inputs[number].size = fread(inputs[number].data, 1, LARGEST, file);
    fclose(file);
}

int main(int argc, char **argv)
{
    static const uint8_t digits[] = "01267 \0\x80\xff/ust5";
    static uint8_t changed[LARGEST];
    const size_t count = argc > 2 ? (size_t)argc - 2 : 0;

    require(count > 0 && count <= FILES, "files");
    for (size_t i = 0; i < count; i++)
        load(i, argv[2 + i]);
    for (long round = atol(argv[1]); round > 0; round--) {
        const size_t number = below(count), size = inputs[number].size;
        memcpy(changed, inputs[number].data, size);
        for (size_t changes = 1 + below(6); size && changes; changes--)
            changed[below(size)] = digits[below(sizeof digits - 1)];
        LLVMFuzzerTestOneInput(changed, below(4) ? size : below(size + 1));
    }
    return 0;
}
#endif
