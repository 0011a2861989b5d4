// What bench-code.sh measures: programs that only compute, as a compiler makes them, and one loop in assembly language.
//
//   bench-code [NAME…]   runs all of them, or those; prints "begin NAME INSTRUCTIONS" and "end NAME CHECKSUM" around each, for
//                        the reader of the lines to take the time. INSTRUCTIONS is 0 where they have not been counted.
//
// Each is deterministic: the checksums must be the same wherever it runs.
#include <emmintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

static uint32_t random_word(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static uint64_t mix(uint64_t sum, uint64_t value) { return (sum ^ value) * 0x9e3779b97f4a7c15u + (sum >> 29); }

static void *reserve(size_t bytes) {
    void *memory = calloc(1, bytes);
    if (!memory) {
        fputs("bench-code: no memory\n", stderr);
        exit(1);
    }
    return memory;
}

// Loads, stores, address arithmetic, shifts, branches, a call, PUSH and POP: 18 instructions a turn, and sometimes INC.
#define LOOP_TURNS 20000000u
static uint32_t table[1024];

static uint64_t run_loop(void) {
    uint64_t turns = LOOP_TURNS, taken = 0, sum = 1;
    memset(table, 0, sizeof table);
    asm volatile("sub $128, %%rsp\n"
                 "xor %%ebx, %%ebx\n"
                 "xor %%edx, %%edx\n"
                 "1: mov (%[table], %%rbx, 4), %%eax\n"
                 "add %%ecx, %%eax\n"
                 "xor %%eax, %%edx\n"
                 "mov %%edx, (%[table], %%rbx, 4)\n"
                 "lea 1(%%rbx), %%ebx\n"
                 "and $0x3ff, %%ebx\n"
                 "cmp %%edx, %%eax\n"
                 "jb 2f\n"
                 "inc %[taken]\n"
                 "2: shr $3, %%eax\n"
                 "call 3f\n"
                 "push %%rax\n"
                 "imul $5, %%rax, %%rax\n"
                 "pop %%rax\n"
                 "dec %%rcx\n"
                 "jnz 1b\n"
                 "jmp 4f\n"
                 "3: lea (%%rax, %[sum]), %%r12\n"
                 "mov %%r12, %[sum]\n"
                 "ret\n"
                 "4: add $128, %%rsp\n"
                 : "+c"(turns), [taken] "+r"(taken), [sum] "+r"(sum)
                 : [table] "r"(table)
                 : "rax", "rbx", "rdx", "r12", "memory", "cc");
    return mix(sum, taken);
}

// Quicksort, insertion sort for what is short.
static void sort(uint32_t *first, uint32_t *last) {
    while (last - first > 12) {
        uint32_t *middle = first + (last - first) / 2, pivot;
        if (*middle < *first) { uint32_t t = *middle; *middle = *first; *first = t; }
        if (*last < *middle) {
            uint32_t t = *last; *last = *middle; *middle = t;
            if (*middle < *first) { t = *middle; *middle = *first; *first = t; }
        }
        pivot = *middle;
        uint32_t *i = first, *j = last;
        while (i <= j) {
            while (*i < pivot) i++;
            while (pivot < *j) j--;
            if (i <= j) { uint32_t t = *i; *i++ = *j; *j-- = t; }
        }
        if (j - first < last - i) { sort(first, j); first = i; } else { sort(i, last); last = j; }
    }
    for (uint32_t *i = first + 1; i <= last; i++) {
        uint32_t value = *i, *j = i;
        for (; j > first && j[-1] > value; j--) *j = j[-1];
        *j = value;
    }
}

static uint64_t run_sort(void) {
    enum { COUNT = 200000, ROUNDS = 6 };
    uint32_t *words = reserve(COUNT * sizeof *words);
    uint64_t sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < COUNT; i++) words[i] = random_word();
        sort(words, words + COUNT - 1);
        for (int i = 1; i < COUNT; i++) sum += words[i - 1] <= words[i];
        sum = mix(sum, words[COUNT / 2]);
    }
    free(words);
    return sum;
}

// A hash table with open addressing, its keys short strings.
static uint64_t hash_of(const char *text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    return hash ^ hash >> 32;
}

static uint64_t run_hash(void) {
    enum { SLOTS = 1 << 16, WORDS = 1000000 };
    struct slot { char key[16]; uint32_t count; uint32_t first; } *slots = reserve(SLOTS * sizeof *slots);
    uint64_t sum = 0;
    for (uint32_t word = 0; word < WORDS; word++) {
        char key[16];
        uint32_t value = random_word() % 30000, length = 0;
        do key[length++] = (char)('a' + value % 26); while ((value /= 26) != 0);
        while (length < 9) { key[length] = (char)('A' + length); length++; }
        key[length] = 0;
        uint64_t at = hash_of(key) % SLOTS;
        while (slots[at].count && strcmp(slots[at].key, key)) at = (at + 1) % SLOTS;
        if (!slots[at].count++) { memcpy(slots[at].key, key, sizeof key); slots[at].first = word; }
        sum += slots[at].first;
    }
    for (int i = 0; i < SLOTS; i++) sum = mix(sum, slots[i].count);
    free(slots);
    return sum;
}

// LZ77 with a hash of three bytes, and back.
static size_t pack(const uint8_t *in, size_t length, uint8_t *out, int32_t *heads) {
    size_t at = 0, literals = 0, used = 0;
    memset(heads, 0xff, sizeof(int32_t) << 14);
    while (at < length) {
        size_t best = 0, from = 0;
        if (at + 4 <= length) {
            uint32_t hash = (in[at] | in[at + 1] << 8 | (uint32_t)in[at + 2] << 16) * 2654435761u >> 18;
            int32_t seen = heads[hash];
            heads[hash] = (int32_t)at;
            if (seen >= 0 && at - (size_t)seen < 65535) {
                while (best < 255 && at + best < length && in[(size_t)seen + best] == in[at + best]) best++;
                from = at - (size_t)seen;
            }
        }
        if (best < 4) {
            if (literals++ % 128 == 0) out[used++] = 0;
            out[used - (literals - 1) % 128 - 1] = (uint8_t)((literals - 1) % 128);
            out[used++] = in[at++];
        } else {
            out[used++] = 128;
            out[used++] = (uint8_t)best;
            out[used++] = (uint8_t)from;
            out[used++] = (uint8_t)(from >> 8);
            at += best;
            literals = 0;
        }
    }
    return used;
}

static size_t unpack(const uint8_t *in, size_t length, uint8_t *out) {
    size_t at = 0, made = 0;
    while (at < length) {
        if (in[at] < 128) {
            for (int count = in[at++] + 1; count > 0; count--) out[made++] = in[at++];
        } else {
            size_t count = in[at + 1], from = in[at + 2] | (size_t)in[at + 3] << 8;
            for (; count > 0; count--, made++) out[made] = out[made - from];
            at += 4;
        }
    }
    return made;
}

static uint64_t run_lz(void) {
    enum { LENGTH = 1 << 20, ROUNDS = 12 };
    static const char *const words[] = {"the ", "machine ", "reads ", "a page ", "and ", "writes ", "nothing ", "of it; ", "then\n"};
    uint8_t *text = reserve(LENGTH + 16), *packed = reserve(2 * LENGTH), *again = reserve(LENGTH + 512);
    int32_t *heads = reserve(sizeof(int32_t) << 14);
    size_t length = 0;
    while (length < LENGTH) {
        const char *word = words[random_word() % 9];
        for (; *word && length < LENGTH; word++) text[length++] = (uint8_t)*word;
        if (random_word() % 4 == 0 && length < LENGTH) text[length++] = (uint8_t)random_word();
    }
    uint64_t sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        text[round * 1000] ^= 1;
        size_t used = pack(text, length, packed, heads);
        size_t made = unpack(packed, used, again);
        sum = mix(mix(sum, used), made == length && !memcmp(text, again, length));
    }
    free(text); free(packed); free(again); free(heads);
    return sum;
}

// SHA-256 (FIPS 180-4); the constants are computed as the standard says: the first bits of cube and square roots of primes.
static uint32_t round_keys[64];

static uint32_t root_bits(uint32_t prime, int cube) {
    // The fraction's first 32 bits by bisection: the largest r with r^k <= prime * 2^(32 k).
    unsigned __int128 low = 0, high = (unsigned __int128)1 << 37;
    while (high - low > 1) {
        unsigned __int128 middle = (low + high) / 2, power = middle * middle;
        int above = cube ? power * middle > (unsigned __int128)prime << 96 : power > (unsigned __int128)prime << 64;
        if (above) high = middle; else low = middle;
    }
    return (uint32_t)low;
}

static uint32_t turn(uint32_t word, int by) { return word >> by | word << (32 - by); }

static void digest(uint32_t hash[8], const uint8_t *block) {
    uint32_t w[64], a = hash[0], b = hash[1], c = hash[2], d = hash[3], e = hash[4], f = hash[5], g = hash[6], h = hash[7];
    for (int i = 0; i < 16; i++) w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + round_keys[i] + w[i];
        uint32_t t2 = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g; g = f; f = e; e = d + t1; d = c; c = b; b = a; a = t1 + t2;
    }
    hash[0] += a; hash[1] += b; hash[2] += c; hash[3] += d; hash[4] += e; hash[5] += f; hash[6] += g; hash[7] += h;
}

static uint64_t run_sha256(void) {
    enum { BLOCKS = 300000 };
    uint32_t hash[8], found = 0;
    for (uint32_t number = 2; found < 64; number++) {
        uint32_t divisor = 2;
        while (divisor * divisor <= number && number % divisor) divisor++;
        if (divisor * divisor <= number) continue;
        if (found < 8) hash[found] = root_bits(number, 0);
        round_keys[found++] = root_bits(number, 1);
    }
    uint8_t block[64];
    for (int i = 0; i < 64; i++) block[i] = (uint8_t)random_word();
    for (int i = 0; i < BLOCKS; i++) {
        digest(hash, block);
        block[i % 64] ^= (uint8_t)hash[i % 8];
    }
    uint64_t sum = 0;
    for (int i = 0; i < 8; i++) sum = mix(sum, hash[i]);
    return sum;
}

// A product of matrices of doubles, two at a time.
static uint64_t run_matrix(void) {
    enum { SIZE = 160, ROUNDS = 24 };
    double(*a)[SIZE] = reserve(sizeof(double[SIZE][SIZE])), (*b)[SIZE] = reserve(sizeof(double[SIZE][SIZE]));
    double(*c)[SIZE] = reserve(sizeof(double[SIZE][SIZE]));
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) a[i][j] = random_word() % 1000, b[i][j] = random_word() % 1000;
    uint64_t sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < SIZE; i++)
            for (int j = 0; j < SIZE; j += 4) {
                __m128d low = _mm_setzero_pd(), high = _mm_setzero_pd();
                for (int k = 0; k < SIZE; k++) {
                    __m128d factor = _mm_set1_pd(a[i][k]);
                    low = _mm_add_pd(low, _mm_mul_pd(factor, _mm_loadu_pd(&b[k][j])));
                    high = _mm_add_pd(high, _mm_mul_pd(factor, _mm_loadu_pd(&b[k][j + 2])));
                }
                _mm_storeu_pd(&c[i][j], low);
                _mm_storeu_pd(&c[i][j + 2], high);
            }
        for (int i = 0; i < SIZE; i++) sum = mix(sum, (uint64_t)c[i][(i + round) % SIZE]);
        a[round][round] += 1;
    }
    free(a); free(b); free(c);
    return sum;
}

// A machine with a stack, whose program counts primes.
enum code { PUSH, LOAD, STORE, ADD, MULTIPLY, REMAINDER, LESS, JUMP, JUMP_IF_ZERO, END };

static uint64_t interpret(const int32_t *program) {
    int64_t stack[32], variables[8] = {0}, *top = stack;
    uint64_t steps = 0;
    for (const int32_t *at = program;; steps++) {
        switch ((enum code)*at++) {
        case PUSH: *++top = *at++; break;
        case LOAD: *++top = variables[*at++]; break;
        case STORE: variables[*at++] = *top--; break;
        case ADD: top--; *top += top[1]; break;
        case MULTIPLY: top--; *top *= top[1]; break;
        case REMAINDER: top--; *top = (int32_t)*top % (int32_t)top[1]; break;
        case LESS: top--; *top = *top < top[1]; break;
        case JUMP: at = program + *at; break;
        case JUMP_IF_ZERO: at = *top-- ? at + 1 : program + *at; break;
        case END: return mix(steps, (uint64_t)variables[2]);
        }
    }
}

static uint64_t run_bytecode(void) {
    // Variable 0: a number, 1: a divisor, 2: primes so far.
    int32_t code[64];
    int n = 0, outer, inner, to_found, to_end, to_next;
    code[n++] = PUSH; code[n++] = 2; code[n++] = STORE; code[n++] = 0;
    outer = n;
    code[n++] = LOAD; code[n++] = 0; code[n++] = PUSH; code[n++] = 40000; code[n++] = LESS; code[n++] = JUMP_IF_ZERO; to_end = n++;
    code[n++] = PUSH; code[n++] = 2; code[n++] = STORE; code[n++] = 1;
    inner = n;
    code[n++] = LOAD; code[n++] = 1; code[n++] = LOAD; code[n++] = 1; code[n++] = MULTIPLY;
    code[n++] = LOAD; code[n++] = 0; code[n++] = PUSH; code[n++] = 1; code[n++] = ADD; code[n++] = LESS;
    code[n++] = JUMP_IF_ZERO; to_found = n++;
    code[n++] = LOAD; code[n++] = 0; code[n++] = LOAD; code[n++] = 1; code[n++] = REMAINDER; code[n++] = JUMP_IF_ZERO; to_next = n++;
    code[n++] = LOAD; code[n++] = 1; code[n++] = PUSH; code[n++] = 1; code[n++] = ADD; code[n++] = STORE; code[n++] = 1;
    code[n++] = JUMP; code[n++] = inner;
    code[to_found] = n;
    code[n++] = LOAD; code[n++] = 2; code[n++] = PUSH; code[n++] = 1; code[n++] = ADD; code[n++] = STORE; code[n++] = 2;
    code[to_next] = n;
    code[n++] = LOAD; code[n++] = 0; code[n++] = PUSH; code[n++] = 1; code[n++] = ADD; code[n++] = STORE; code[n++] = 0;
    code[n++] = JUMP; code[n++] = outer;
    code[to_end] = n;
    code[n++] = END;
    return interpret(code);
}

// A binary tree without balance, keys at random.
static uint64_t run_tree(void) {
    enum { NODES = 10000, ROUNDS = 8, LOOKUPS = 100000 };
    struct node { uint32_t key, value; struct node *child[2]; };
    uint64_t sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct node *root = NULL, *nodes = reserve(NODES * sizeof *nodes);
        for (uint32_t i = 0; i < NODES; i++) {
            struct node *node = &nodes[i], **at = &root;
            node->key = random_word();
            node->value = i;
            while (*at) at = &(*at)->child[node->key > (*at)->key];
            *at = node;
        }
        for (int i = 0; i < LOOKUPS; i++) {
            uint32_t key = i % 2 ? nodes[random_word() % NODES].key : random_word(), depth = 0;
            const struct node *node = root;
            while (node && node->key != key) node = node->child[key > node->key], depth++;
            sum += depth + (node ? node->value : 0);
        }
        free(nodes);
    }
    return sum;
}

static const struct job { const char *name; uint64_t (*run)(void); uint64_t instructions; } jobs[] = {
    {"loop", run_loop, (uint64_t)LOOP_TURNS * 18},
    {"sort", run_sort, 0},
    {"hash", run_hash, 0},
    {"lz", run_lz, 0},
    {"sha256", run_sha256, 0},
    {"matrix", run_matrix, 0},
    {"bytecode", run_bytecode, 0},
    {"tree", run_tree, 0},
};

int main(int count, char **names) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        int wanted = count < 2;
        for (int name = 1; name < count; name++) wanted |= !strcmp(names[name], jobs[i].name);
        if (!wanted) continue;
        state = 0x123456789abcdefu;
        printf("begin %s %llu\n", jobs[i].name, (unsigned long long)jobs[i].instructions);
        printf("end %s %016llx\n", jobs[i].name, (unsigned long long)jobs[i].run());
    }
    return 0;
}
