/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of rows x (t, n) with a weight W (m, n) that is stored in fewer bits:
 *
 *     y[j][i] = (add ? y[j][i] : 0) + scale[i] * sum_k W[i][k] x[j][k]        y (t, m), scale (m) or none
 *
 * A few tokens at a time, a product is as fast as W comes from memory: each of its rows goes from memory into registers,
 * and is asked for some lines ahead. Many tokens share what is read: a few rows become float32 in the nearest cache, with
 * x beside them so that a vector holds a number of several tokens, and tiles of sums stay in registers.
 *
 * A vector is the compiler's own type (GCC, Clang); only int8 needs a word of each processor's. Sums may be added in any
 * order; -ffast-math must not be given, since it would change how the whole process treats small numbers.
 */
#include "rows.h"

#include <stdint.h>
#include <string.h>

#if defined __AVX2__
#include <immintrin.h>
#elif defined __ARM_NEON
#include <arm_neon.h>
#endif

#if defined __AVX512F__
#define WIDTH 16
#elif defined __AVX2__
#define WIDTH 8
#else
#define WIDTH 4
#endif

/* Sums of a row side by side, and bytes ahead; of a tile: rows of W, vectors of tokens. A block is so many of W's columns
 * for so many tokens. */
enum { SUMS = 4, AHEAD = 4096, ROWS = 6, VECTORS = 2, TILE = VECTORS * WIDTH, COLUMNS = 320, TOKENS = 64, FEW = 6 };
#define UNROLLED _Pragma("GCC unroll 8")

typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Words __attribute__((vector_size(4 * WIDTH)));
typedef int16_t Shorts __attribute__((vector_size(2 * WIDTH)));

static inline float sum_of(Vector v) {
    float sum = 0;
    for (int c = 0; c < WIDTH; c++) sum += v[c];
    return sum;
}

/* How a kind is stored, and what its numbers are: one, and as many as a vector holds. */

static inline float one_int8(const int8_t *p) { return *p; }
static inline Vector some_int8(const int8_t *p) {
#if defined __AVX512F__
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined __AVX2__
    return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#elif defined __ARM_NEON
    uint32_t stored;
    memcpy(&stored, p, sizeof stored);
    return (Vector)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(stored)))));
#else
    return (Vector){p[0], p[1], p[2], p[3]};
#endif
}

static inline float one_int16(const int16_t *p) { return *p; }
static inline Vector some_int16(const int16_t *p) {
    Shorts stored;
    memcpy(&stored, p, sizeof stored);
    return __builtin_convertvector(__builtin_convertvector(stored, Words), Vector);
}

static inline float one_bfloat16(const int16_t *p) {
    /* The upper half of a float32. */
    uint32_t bits = (uint32_t)(uint16_t)*p << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}
static inline Vector some_bfloat16(const int16_t *p) {
    Shorts stored;
    memcpy(&stored, p, sizeof stored);
    return (Vector)(__builtin_convertvector(stored, Words) << 16);
}

static inline float one_float16(const int16_t *p) {
    /* Exponent and digits where a float32 has them, its bias made good by a product: right for small numbers too. */
    uint32_t bits = (uint32_t)(*p & 0x7fff) << 13 | (uint32_t)(uint16_t)(*p & 0x8000) << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number * 0x1p112f;
}
static inline Vector some_float16(const int16_t *p) {
    Shorts stored;
    memcpy(&stored, p, sizeof stored);
    Words wide = __builtin_convertvector(stored, Words);
    return (Vector)((wide & 0x7fff) << 13 | (wide & (int32_t)0x80000000)) * 0x1p112f;
}

static inline float one_float32(const float *p) { return *p; }
static inline Vector some_float32(const float *p) {
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* For each kind: the product of a row of W with one x, and columns of a row times its scale in float32. */
#define KIND(name, type)                                                                                              \
    static float dot_##name(const void *stored, const float *x, ptrdiff_t n) {                                        \
        const type *w = stored;                                                                                       \
        Vector sums[SUMS] = {{0}};                                                                                    \
        ptrdiff_t k = 0;                                                                                              \
        for (; k + SUMS * WIDTH <= n; k += SUMS * WIDTH) {                                                            \
            __builtin_prefetch((const char *)(w + k) + AHEAD);                                                        \
            UNROLLED for (int c = 0; c < SUMS; c++)                                                                   \
                sums[c] += some_##name(w + k + c * WIDTH) * some_float32(x + k + c * WIDTH);                          \
        }                                                                                                             \
        float sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));                                                \
        for (; k < n; k++) sum += one_##name(w + k) * x[k];                                                           \
        return sum;                                                                                                   \
    }                                                                                                                 \
    static void copy_##name(const void *stored, float scale, float *restrict out, ptrdiff_t columns) {                \
        const type *restrict w = stored;                                                                              \
        for (ptrdiff_t k = 0; k < columns; k++) out[k] = one_##name(w + k) * scale;                                   \
    }

KIND(int8, int8_t)
KIND(int16, int16_t)
KIND(bfloat16, int16_t)
KIND(float16, int16_t)
KIND(float32, float)

static float (*const DOTS[])(const void *, const float *, ptrdiff_t) = {
    dot_int8, dot_int16, dot_bfloat16, dot_float16, dot_float32};
static void (*const COPIES[])(const void *, float, float *restrict, ptrdiff_t) = {
    copy_int8, copy_int16, copy_bfloat16, copy_float16, copy_float32};
static const ptrdiff_t BYTES[] = {1, 2, 2, 2, 4};

static void few(const Matrix *w, const float *x, float *y, ptrdiff_t t, int add, int threads) {
    ptrdiff_t m = w->m, n = w->n;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t j = 0; j < t; j++) {
            float *out = y + j * m + i;
            float sum = DOTS[w->kind]((const char *)w->weight + i * n * BYTES[w->kind], x + j * n, n);
            sum *= w->scale ? w->scale[i] : 1;
            *out = add ? *out + sum : sum;
        }
}

/* sums[i] = sum_k rows[i][k] x[k], of a tile in registers. */
static inline void tile(float rows[ROWS][COLUMNS], Vector (*x)[VECTORS], ptrdiff_t columns, Vector sums[ROWS][VECTORS]) {
    Vector own[ROWS][VECTORS] = {{{0}}};
    for (ptrdiff_t k = 0; k < columns; k++)
        UNROLLED for (int i = 0; i < ROWS; i++) UNROLLED for (int v = 0; v < VECTORS; v++) own[i][v] += rows[i][k] * x[k][v];
    memcpy(sums, own, sizeof own);
}

/* What some columns of a few rows of W add to y (t, m) for the tokens of a block. */
static void rows_of_block(const Matrix *w, ptrdiff_t row, ptrdiff_t start, ptrdiff_t columns,
                          Vector (*x)[COLUMNS][VECTORS], float *y, ptrdiff_t t, int add) {
    float rows[ROWS][COLUMNS];
    union {
        Vector vectors[ROWS][VECTORS];
        float of[ROWS][TILE];
    } sums;
    ptrdiff_t height = w->m - row < ROWS ? w->m - row : ROWS;
    for (ptrdiff_t i = 0; i < ROWS; i++) {
        /* Where there are fewer, the last one again. */
        ptrdiff_t own = row + (i < height ? i : height - 1);
        const char *stored = (const char *)w->weight + (own * w->n + start) * BYTES[w->kind];
        COPIES[w->kind](stored, w->scale ? w->scale[own] : 1, rows[i], columns);
    }
    for (ptrdiff_t first = 0; first < t; first += TILE) {
        tile(rows, x[first / TILE], columns, sums.vectors);
        for (ptrdiff_t j = 0; j < TILE && first + j < t; j++)
            for (ptrdiff_t i = 0; i < height; i++) {
                float *out = y + (first + j) * w->m + row + i;
                *out = add ? *out + sums.of[i][j] : sums.of[i][j];
            }
    }
}

void rows_product(const Matrix *w, const float *x, float *y, ptrdiff_t t, int add, int threads) {
    if (t <= FEW) {
        few(w, x, y, t, add, threads);
        return;
    }
    ptrdiff_t m = w->m, n = w->n, parts = (n + COLUMNS - 1) / COLUMNS, width = (n + parts - 1) / parts;
    union {
        Vector vectors[TOKENS / TILE][COLUMNS][VECTORS];
        float of[TOKENS / TILE][COLUMNS][TILE];
    } block;
    for (ptrdiff_t first = 0; first < t; first += TOKENS) {
        ptrdiff_t tokens = t - first < TOKENS ? t - first : TOKENS;
        for (ptrdiff_t start = 0; start < n; start += width) {
            ptrdiff_t columns = n - start < width ? n - start : width;
            /* Tokens that are not there are zeros. */
            memset(block.of[(tokens - 1) / TILE], 0, sizeof *block.of);
            for (ptrdiff_t j = 0; j < tokens; j++)
                for (ptrdiff_t k = 0; k < columns; k++)
                    block.of[j / TILE][k][j % TILE] = x[(first + j) * n + start + k];
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
            for (ptrdiff_t row = 0; row < m; row += ROWS)
                rows_of_block(w, row, start, columns, block.vectors, y + first * m, tokens, add || start);
        }
    }
}
