/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokens through the layers of a model of Llama's shape, in one call: norms, rotation, attention over the cache and
 * gated MLP, with products of weights as they are stored. For each layer
 *
 *     x += out(attention(query(norm x), key(norm x), value(norm x)));   x += down(silu(gate(norm x)) up(norm x))
 *
 * Legend: t tokens, n features, h heads, g key-value heads, d features a head, i features inside the MLP, s tokens seen
 * before, and `room`, tokens that the cache has room for. */
#include <math.h>
#include <string.h>

#include "rows.h"

typedef struct {
    const float *weight; /* none where there is no norm */
    float epsilon;
} Norm;

/* W x + bias + up(down x); the side path of what was learned, and the bias, where there are some. */
typedef struct {
    Matrix weight, down, up;
    const float *bias;
} Linear;

typedef struct {
    Norm before_attention, query_norm, key_norm, before_mlp;
    Linear query, key, value, out, gate, up, down;
} Layer;

typedef struct {
    ptrdiff_t layers, n, h, g, d, i;
    float scaling;
    const Layer *layer;
    Norm norm;
} Model;

/* For up to `tokens` tokens. */
typedef struct {
    ptrdiff_t tokens;
    float *inner;                      /* (t, n) */
    float *query, *key, *value, *seen; /* (t, h d), (t, g d), (t, g d), (t, h d) */
    float *gate, *up;                  /* (t, i) */
    float *side;                       /* (t, numbers between the factors of the widest side path) */
    float *scores;                     /* (h, room) */
} Buffers;

typedef struct {
    ptrdiff_t room;
    float *keys, *values; /* (layers, g, room, d) */
} Cache;

static void normed(const Norm *norm, const float *x, float *out, ptrdiff_t t, ptrdiff_t n) {
    for (; t--; x += n, out += n) {
        float squares = 0;
        for (ptrdiff_t k = 0; k < n; k++) squares += x[k] * x[k];
        float scale = 1 / sqrtf(squares / (float)n + norm->epsilon);
        for (ptrdiff_t k = 0; k < n; k++) out[k] = norm->weight[k] * (x[k] * scale);
    }
}

static void linear(const Linear *own, const float *x, float *y, float *side, ptrdiff_t t, int add, int threads) {
    ptrdiff_t m = own->weight.m;
    if (own->bias) {
        for (ptrdiff_t k = 0; k < t * m; k++) y[k] = (add ? y[k] : 0) + own->bias[k % m];
        add = 1;
    }
    rows_product(&own->weight, x, y, t, add, threads);
    if (own->down.weight) {
        rows_product(&own->down, x, side, t, 0, threads);
        rows_product(&own->up, side, y, t, 1, threads);
    }
}

/* Turn each head's features by the token's angles: the first half goes with the second. */
static void rotated(float *x, const float *cosine, const float *sine, ptrdiff_t heads, ptrdiff_t d) {
    ptrdiff_t half = d / 2;
    for (; heads--; x += d)
        for (ptrdiff_t k = 0; k < half; k++) {
            float first = x[k], second = x[k + half];
            x[k] = first * cosine[k] - second * sine[k];
            x[k + half] = second * cosine[k + half] + first * sine[k + half];
        }
}

/* A head's mean of values (s, d), weighted by the softmax of scaling * keys query. */
static void attention(const float *query, const float *keys, const float *values, float *scores, float *out,
                      ptrdiff_t s, ptrdiff_t d, float scaling) {
    Matrix seen = {keys, NULL, s, d, FLOAT32};
    rows_product(&seen, query, scores, 1, 0, 1);
    float most = scores[0], sum = 0;
    for (ptrdiff_t p = 1; p < s; p++) most = scores[p] > most ? scores[p] : most;
    for (ptrdiff_t p = 0; p < s; p++) sum += scores[p] = expf(scaling * (scores[p] - most));
    memset(out, 0, (size_t)d * sizeof *out);
    for (ptrdiff_t p = 0; p < s; p++) {
        float share = scores[p] / sum;
        for (ptrdiff_t k = 0; k < d; k++) out[k] += share * values[p * d + k];
    }
}

static void attend(const Model *model, const Layer *l, const Buffers *b, const Cache *cache, float *x,
                   const float *cosine, const float *sine, ptrdiff_t t, ptrdiff_t s, int threads) {
    ptrdiff_t n = model->n, h = model->h, g = model->g, d = model->d, room = cache->room;
    float *keys = cache->keys + (l - model->layer) * g * room * d;
    float *values = cache->values + (l - model->layer) * g * room * d;
    normed(&l->before_attention, x, b->inner, t, n);
    linear(&l->query, b->inner, b->query, b->side, t, 0, threads);
    linear(&l->key, b->inner, b->key, b->side, t, 0, threads);
    linear(&l->value, b->inner, b->value, b->side, t, 0, threads);
    if (l->query_norm.weight) normed(&l->query_norm, b->query, b->query, t * h, d);
    if (l->key_norm.weight) normed(&l->key_norm, b->key, b->key, t * g, d);
    for (ptrdiff_t j = 0; j < t; j++) {
        rotated(b->query + j * h * d, cosine + j * d, sine + j * d, h, d);
        rotated(b->key + j * g * d, cosine + j * d, sine + j * d, g, d);
        for (ptrdiff_t k = 0; k < g; k++) {
            ptrdiff_t from = (j * g + k) * d, to = (k * room + s + j) * d;
            memcpy(keys + to, b->key + from, (size_t)d * sizeof(float));
            memcpy(values + to, b->value + from, (size_t)d * sizeof(float));
        }
    }
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (ptrdiff_t head = 0; head < h; head++)
        for (ptrdiff_t j = 0; j < t; j++) {
            ptrdiff_t own = (j * h + head) * d, group = head / (h / g) * room * d;
            attention(b->query + own, keys + group, values + group, b->scores + head * room, b->seen + own,
                      s + j + 1, d, model->scaling);
        }
    linear(&l->out, b->seen, x, b->side, t, 1, threads);
}

/* x (t, n), the tokens' embeddings, become what the layers make of them, and `last` (n) is the last of them after the
 * final norm. Keys and values go into the cache behind the s that are there. The cosines and sines (t, d) are those of
 * the tokens' positions. 0, or 1 where there is no room, and then nothing is done. */
int llama_pass(const Model *model, const Buffers *b, const Cache *cache, float *x, const float *cosine,
               const float *sine, float *last, ptrdiff_t t, ptrdiff_t s, int threads) {
    if (t < 1 || s < 0 || t > b->tokens || s + t > cache->room) return 1;
    for (const Layer *l = model->layer; l < model->layer + model->layers; l++) {
        attend(model, l, b, cache, x, cosine, sine, t, s, threads);
        normed(&l->before_mlp, x, b->inner, t, model->n);
        linear(&l->gate, b->inner, b->gate, b->side, t, 0, threads);
        linear(&l->up, b->inner, b->up, b->side, t, 0, threads);
        for (ptrdiff_t k = 0; k < t * model->i; k++) b->gate[k] *= b->up[k] / (1 + expf(-b->gate[k]));
        linear(&l->down, b->gate, x, b->side, t, 1, threads);
    }
    normed(&model->norm, x + (t - 1) * model->n, last, 1, model->n);
    return 0;
}
