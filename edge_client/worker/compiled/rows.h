/* SPDX-License-Identifier: Apache-2.0
 *
 * A matrix W (m, n) as it is stored, and its product with rows x (t, n). */
#include <stddef.h>

enum kind { INT8, INT16, BFLOAT16, FLOAT16, FLOAT32 };

typedef struct {
    const void *weight; /* (m, n), row after row; none where there is no matrix */
    const float *scale; /* (m), a factor for each row; none for ones */
    ptrdiff_t m, n;
    int kind;
} Matrix;

/* y (t, m) becomes x W^T, or that is added to it. */
void rows_product(const Matrix *w, const float *x, float *y, ptrdiff_t t, int add, int threads);
