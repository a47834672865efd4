/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of a few rows x (t, n) with a weight W (m, n) that is stored in fewer bits:
 *
 *     y[j][i] = (add ? y[j][i] : 0) + scale[i] * sum_k W[i][k] x[j][k]        y (t, m), scale (m) or none
 *
 * One token at a time, a product is as fast as W comes from memory. torch has none that reads int8 and computes in
 * float32 without writing W out in float32 first, four times the bytes. A plain loop is enough: the compiler makes
 * vectors of it (AVX2, AVX-512, NEON), given leave to add in any order. It must not be given -ffast-math, which would
 * change how the whole process treats small numbers.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline float from_int8(int8_t stored) { return (float)stored; }
static inline float from_int16(int16_t stored) { return (float)stored; }
static inline float from_bfloat16(uint16_t stored) {
    /* The upper half of a float32. */
    uint32_t bits = (uint32_t)stored << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

#define ROWS(name, type)                                                                                              \
    void rows_##name(const void *weight, const float *scale, const float *x, float *y, ptrdiff_t m, ptrdiff_t n,      \
                     ptrdiff_t t, int add, int threads) {                                                             \
        _Pragma("omp parallel for num_threads(threads) if (threads > 1) schedule(static)")                            \
        for (ptrdiff_t i = 0; i < m; i++) {                                                                           \
            const type *restrict row = (const type *)weight + i * n;                                                  \
            for (ptrdiff_t j = 0; j < t; j++) {                                                                       \
                const float *restrict in = x + j * n;                                                                 \
                float *out = y + j * m + i, sum = 0;                                                                  \
                for (ptrdiff_t k = 0; k < n; k++) sum += from_##name(row[k]) * in[k];                                 \
                sum *= scale ? scale[i] : 1;                                                                          \
                *out = add ? *out + sum : sum;                                                                        \
            }                                                                                                         \
        }                                                                                                             \
    }

ROWS(int8, int8_t)
ROWS(int16, int16_t)
ROWS(bfloat16, uint16_t)
