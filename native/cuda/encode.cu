/*
 * Encoding f16 tiles on the GPU: the float32 steps of the codecs in native/src/kv, in their order, so that the codes and
 * scales are the same bits (this file is compiled without contraction of a * b + c). One block per (job, KV head, side); a
 * column, token or channel that the reference walks through in order is walked by one thread.
 *
 * Cost: a tile is encoded once in its life, 64 tokens apart; 10 to 20 us a launch against 64 steps.
 */
#include "device.cuh"
#include "key_bias.cuh"
#include "pack.cuh"

namespace {

constexpr int N_THREADS = 256, N = TILE_TOKENS;
constexpr float F16_MAX = 65504.0f;

__device__ __forceinline__ float clamp(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}

__device__ __forceinline__ float round_even(float x) {
    return __fadd_rn(__fadd_rn(x, 0x1.8p23f), -0x1.8p23f);
}

__device__ __forceinline__ float reciprocal(float x) {
    return x > 0x1p-126f || x < -0x1p-126f ? __fdiv_rn(1.0f, x) : 0.0f;
}

__device__ __forceinline__ __half saturated(float x) {
    return __float2half_rn(clamp(x, -F16_MAX, F16_MAX));
}

__device__ __forceinline__ float as_f16(float x) {
    return __half2float(saturated(x));
}

/* What a block works on, in shared memory. */
struct work {
    int head_dim, ld;
    float *y; /* (64, ld) the tile, rotated if the codec is */
    float *u; /* (64, ld) scratch of codecs that normalize or split */
    uint32_t *words;
    uint8_t *codes;         /* (64, head_dim) */
    float *token, *channel; /* factors: (64), (head_dim) */
};

/* ---- kv/affine.c: one column of n elements ---- */

struct column {
    float scale, zero, q, qq, y, yy, yq;
};

__device__ void round_codes(const float *x, int n, int stride, float n_steps, column &c, uint8_t *codes, int code_stride) {
    float inverse = reciprocal(c.scale);
    c.q = c.qq = c.y = c.yy = c.yq = 0.0f;
    for (int i = 0; i < n; i++) {
        float y = x[i * stride] - c.zero;
        float q = round_even(clamp(y * inverse, 0.0f, n_steps));
        codes[i * code_stride] = (uint8_t)q;
        c.q += q;
        c.qq += q * q;
        c.y += y;
        c.yy += y * y;
        c.yq += y * q;
    }
}

enum rule { LEAST_SQUARES, KEEP_NORM, UNBIASED };

__device__ void refit(int n_rows, rule how, column &c) {
    float n = (float)n_rows;
    float var_q = c.qq - c.q * c.q / n, var_y = c.yy - c.y * c.y / n, cov = c.yq - c.y * c.q / n;
    if (!(var_q > 0.0f && var_y > 0.0f && cov > 0.0f))
        return;
    float scale = how == LEAST_SQUARES ? cov / var_q : how == KEEP_NORM ? __fsqrt_rn(var_y / var_q) : var_y / cov;
    c.scale = as_f16(scale);
    c.zero = as_f16(c.zero + (c.y - c.scale * c.q) / n);
}

__device__ column affine_encode(const float *x, int n, int stride, int bits, rule last, uint8_t *codes, int code_stride) {
    float n_steps = (float)((1 << bits) - 1), low = x[0], high = x[0];
    for (int i = 1; i < n; i++) {
        float value = x[i * stride];
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    column c;
    c.scale = as_f16((high - low) / n_steps);
    c.zero = as_f16(low);
    round_codes(x, n, stride, n_steps, c, codes, code_stride);
    for (int i = 0; i < 3; i++) {
        refit(n, LEAST_SQUARES, c);
        round_codes(x, n, stride, n_steps, c, codes, code_stride);
    }
    refit(n, last, c);
    return c;
}

/* Half i after the codes of the canonical tile. */
__device__ __forceinline__ void put_meta(const work &w, const tile_format &f, __half *meta, int i, __half value) {
    meta[meta_place(f.family, f.is_k, f.group, w.head_dim, i)] = value;
}

/* ---- kivi ---- */

__device__ void encode_kivi(const work &w, const tile_format &f, __half *meta) {
    int group = f.group, n_cols = f.is_k ? w.head_dim : N, n_rows = f.is_k ? N : w.head_dim;
    int n_groups = (n_rows + group - 1) / group;
    for (int i = threadIdx.x; i < n_groups * n_cols; i += blockDim.x) {
        int g = i / n_cols, col = i % n_cols, n = min(group, n_rows - g * group);
        column c;
        if (f.is_k) {
            c = affine_encode(w.y + g * group * w.ld + col, n, w.ld, f.bits, KEEP_NORM,
                              w.codes + g * group * w.head_dim + col, w.head_dim);
        } else {
            c = affine_encode(w.y + col * w.ld + g * group, n, 1, f.bits, UNBIASED, w.codes + col * w.head_dim + g * group,
                              1);
        }
        put_meta(w, f, meta, i, __float2half_rn(c.scale));
        put_meta(w, f, meta, n_groups * n_cols + i, __float2half_rn(c.zero));
    }
}

/* ---- q8_0, q4_0 ---- */

__device__ float extreme(const float *x, int n) {
    float found = x[0];
    for (int i = 1; i < n; i++)
        found = fabsf(x[i]) > fabsf(found) ? x[i] : found;
    return found;
}

__device__ __half encode_8(const float *x, int n, uint8_t *codes) {
    __half scale = saturated(fabsf(extreme(x, n)) / 127.0f);
    float inverse = reciprocal(__half2float(scale));
    for (int i = 0; i < n; i++)
        codes[i] = (uint8_t)(round_even(clamp(x[i] * inverse, -127.0f, 127.0f)) + 128.0f);
    return scale;
}

__device__ float round_4(const float *x, int n, float scale, uint8_t *codes) {
    float inverse = reciprocal(scale), error = 0.0f;
    for (int i = 0; i < n; i++) {
        float q = round_even(clamp(x[i] * inverse, -8.0f, 7.0f));
        float difference = scale * q - x[i];
        codes[i] = (uint8_t)(q + 8.0f);
        error += difference * difference;
    }
    return error;
}

__device__ __half encode_4(bool is_k, const float *x, int n, uint8_t *codes) {
    const float stretch[4] = {1.0f, 0.9375f, 0.875f, 1.0625f};
    float top = extreme(x, n) / -8.0f, least = INFINITY;
    __half best = __float2half_rn(0.0f);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __half scale = saturated(top * stretch[i]);
        float error = round_4(x, n, __half2float(scale), codes);
        best = error < least ? scale : best;
        least = error < least ? error : least;
    }
    round_4(x, n, __half2float(best), codes);
    if (is_k)
        return best;
    float xx = 0.0f, xq = 0.0f;
    for (int i = 0; i < n; i++) {
        xx += x[i] * x[i];
        xq += x[i] * ((float)codes[i] - 8.0f);
    }
    return xq == 0.0f ? best : saturated(xx / xq);
}

__device__ void encode_blocks(const work &w, const tile_format &f, __half *meta) {
    int n_groups = (w.head_dim + f.group - 1) / f.group;
    for (int i = threadIdx.x; i < n_groups * N; i += blockDim.x) {
        int t = i / n_groups, g = i % n_groups, first = g * f.group, n = min((int)f.group, w.head_dim - first);
        const float *x = w.y + t * w.ld + first;
        uint8_t *codes = w.codes + t * w.head_dim + first;
        __half scale = f.bits == 8 ? encode_8(x, n, codes) : encode_4(f.is_k, x, n, codes);
        put_meta(w, f, meta, g * N + t, scale);
    }
}

/* ---- kvarn ---- */

__device__ void normalize_line(float *u, int n, int stride, float *factor) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++)
        sum += u[i * stride] * u[i * stride];
    float rms = __fsqrt_rn(sum / (float)n), inverse = reciprocal(rms);
    if (inverse == 0.0f)
        return;
    for (int i = 0; i < n; i++)
        u[i * stride] *= inverse;
    *factor *= rms;
}

__device__ void normal_factors(const work &w) {
    for (int i = threadIdx.x; i < N * w.ld; i += blockDim.x)
        w.u[i] = w.y[i];
    for (int i = threadIdx.x; i < N; i += blockDim.x)
        w.token[i] = 1.0f;
    for (int i = threadIdx.x; i < w.head_dim; i += blockDim.x)
        w.channel[i] = 1.0f;
    __syncthreads();
    for (int round = 0; round < 2; round++) {
        for (int d = threadIdx.x; d < w.head_dim; d += blockDim.x)
            normalize_line(w.u + d, N, w.ld, &w.channel[d]);
        __syncthreads();
        for (int t = threadIdx.x; t < N; t += blockDim.x)
            normalize_line(w.u + t * w.ld, w.head_dim, 1, &w.token[t]);
        __syncthreads();
    }
}

/* u = y with its tokens divided by their factors */
__device__ void divide_tokens(const work &w) {
    for (int i = threadIdx.x; i < N * w.head_dim; i += blockDim.x) {
        int t = i / w.head_dim, d = i % w.head_dim;
        w.u[t * w.ld + d] = w.y[t * w.ld + d] * reciprocal(as_f16(w.token[t]));
    }
    __syncthreads();
}

/* The tokens' factors once more, now that u is what the codes say. */
__device__ void refit_tokens(const work &w, const tile_format &f, __half *meta) {
    for (int t = threadIdx.x; t < N; t += blockDim.x) {
        float cross = 0.0f, square = 0.0f;
        for (int d = 0; d < w.head_dim; d++) {
            float fitted = w.u[t * w.ld + d];
            cross += fitted * w.y[t * w.ld + d];
            square += fitted * fitted;
        }
        bool fits = cross > 0.0f && square > 0.0f;
        put_meta(w, f, meta, 2 * w.head_dim + t, saturated(fits ? cross / square : w.token[t]));
    }
}

__device__ void encode_kvarn(const work &w, const tile_format &f, __half *meta) {
    normal_factors(w);
    if (f.is_k) {
        divide_tokens(w);
        for (int d = threadIdx.x; d < w.head_dim; d += blockDim.x) {
            column c = affine_encode(w.u + d, N, w.ld, f.bits, UNBIASED, w.codes + d, w.head_dim);
            put_meta(w, f, meta, d, __float2half_rn(c.scale));
            put_meta(w, f, meta, w.head_dim + d, __float2half_rn(c.zero));
            for (int t = 0; t < N; t++)
                w.u[t * w.ld + d] = c.scale * (float)w.codes[t * w.head_dim + d] + c.zero;
        }
        __syncthreads();
        refit_tokens(w, f, meta);
        return;
    }
    for (int i = threadIdx.x; i < N * w.head_dim; i += blockDim.x) {
        int t = i / w.head_dim, d = i % w.head_dim;
        w.u[t * w.ld + d] = w.y[t * w.ld + d] * reciprocal(as_f16(w.channel[d]));
    }
    __syncthreads();
    for (int t = threadIdx.x; t < N; t += blockDim.x) {
        column c = affine_encode(w.u + t * w.ld, w.head_dim, 1, f.bits, UNBIASED, w.codes + t * w.head_dim, 1);
        put_meta(w, f, meta, t, __float2half_rn(c.scale));
        put_meta(w, f, meta, N + t, __float2half_rn(c.zero));
    }
    for (int d = threadIdx.x; d < w.head_dim; d += blockDim.x)
        put_meta(w, f, meta, 2 * N + d, saturated(w.channel[d]));
}

/* ---- tier ---- */

/* How many channels have more variance than channel d, which is its place. variance: (head_dim) */
__device__ int place_of(const float *variance, int head_dim, int d) {
    int place = 0;
    for (int other = 0; other < head_dim; other++)
        place += variance[other] > variance[d] || (variance[other] == variance[d] && other < d);
    return place;
}

/* Codes go to (token, place). */
__device__ void encode_tier(const work &w, const tile_format &f, __half *meta) {
    normal_factors(w);
    divide_tokens(w);
    float *variance = w.channel;
    for (int d = threadIdx.x; d < w.head_dim; d += blockDim.x) {
        float mean = 0.0f, sum = 0.0f;
        for (int t = 0; t < N; t++)
            mean += w.u[t * w.ld + d];
        mean /= (float)N;
        for (int t = 0; t < N; t++)
            sum += (w.u[t * w.ld + d] - mean) * (w.u[t * w.ld + d] - mean);
        variance[d] = sum;
    }
    __syncthreads();
    uint8_t *order = reinterpret_cast<uint8_t *>(meta + 2 * w.head_dim + N);
    for (int d = threadIdx.x; d < w.head_dim; d += blockDim.x) {
        int place = place_of(variance, w.head_dim, d), bits = tier_bits(f.family, f.bits, w.head_dim, place);
        column c = affine_encode(w.u + d, N, w.ld, bits, KEEP_NORM, w.codes + place, w.head_dim);
        put_meta(w, f, meta, place, __float2half_rn(c.scale));
        put_meta(w, f, meta, w.head_dim + place, __float2half_rn(c.zero));
        order[col_order(place)] = (uint8_t)col_order(d);
        for (int t = 0; t < N; t++)
            w.u[t * w.ld + d] = c.scale * (float)w.codes[t * w.head_dim + place] + c.zero;
    }
    __syncthreads();
    refit_tokens(w, f, meta);
}

/* ---- turbo ---- */

/* kv/turbo.c's, by bits: 4, 8 and 16 of them */
__constant__ const float centroids[28] = {
    -1.510418f, -0.452780f, 0.452780f,  1.510418f,  -2.151946f, -1.343909f, -0.756005f, -0.245094f, 0.245094f,  0.756005f,
    1.343909f,  2.151946f,  -2.732590f, -2.069017f, -1.618046f, -1.256231f, -0.942340f, -0.656759f, -0.388048f, -0.128395f,
    0.128395f,  0.388048f,  0.656759f,  0.942340f,  1.256231f,  1.618046f,  2.069017f,  2.732590f};

__device__ const float *centroids_of(int bits) {
    return centroids + (bits == 2 ? 0 : bits == 3 ? 4 : 12);
}

__device__ void round_token(const float *y, int n, int bits, float size, uint8_t *codes, float *yc, float *cc) {
    const float *c = centroids_of(bits);
    float inverse = reciprocal(size);
    *yc = *cc = 0.0f;
    for (int d = 0; d < n; d++) {
        float x = y[d] * inverse;
        int code = 0;
        for (int i = 1; i < 1 << bits; i++)
            code += x > (c[i - 1] + c[i]) * 0.5f;
        codes[d] = (uint8_t)code;
        *yc += y[d] * c[code];
        *cc += c[code] * c[code];
    }
}

__device__ __half encode_token(bool is_k, const float *y, int n, int bits, uint8_t *codes) {
    const float stretch[3] = {1.0f, 0.90625f, 1.09375f};
    float yy = 0.0f, yc, cc, most = -1.0f, best = 1.0f;
    for (int d = 0; d < n; d++)
        yy += y[d] * y[d];
    float rms = __fsqrt_rn(yy / (float)n);
#pragma unroll
    for (int i = 0; i < 3; i++) {
        round_token(y, n, bits, rms * stretch[i], codes, &yc, &cc);
        float explained = yc * yc / cc;
        best = explained > most ? stretch[i] : best;
        most = explained > most ? explained : most;
    }
    round_token(y, n, bits, rms * best, codes, &yc, &cc);
    return saturated(yc <= 0.0f ? 0.0f : is_k ? yc / cc : yy / yc);
}

__device__ void encode_turbo(const work &w, const tile_format &f, __half *meta) {
    for (int t = threadIdx.x; t < N; t += blockDim.x)
        put_meta(w, f, meta, t, encode_token(f.is_k, w.y + t * w.ld, w.head_dim, f.bits, w.codes + t * w.head_dim));
}

/* is_wide: (HD), of the half of the channels with most energy in the tile; at most N_THREADS channels */
template <int HD> __device__ void choose_wide(const work &w, int n_wide, uint32_t *is_wide) {
    float *energy = w.channel;
    int d = threadIdx.x;
    if (d < HD) {
        energy[d] = 0.0f;
        for (int t = 0; t < N; t++)
            energy[d] += w.y[t * w.ld + d] * w.y[t * w.ld + d];
    }
    __syncthreads();
    if (d < HD)
        is_wide[d] = place_of(energy, HD, d) < n_wide;
    __syncthreads();
}

/* Codes go to (token, place): wide channels, then narrow ones, both ascending. */
template <int HD> __device__ void encode_split(const work &w, const tile_format &f, __half *meta) {
    constexpr int N_WIDE = HD / 32 * 16, N_NARROW = HD - N_WIDE;
    uint32_t *is_wide = w.words;
    choose_wide<HD>(w, N_WIDE, is_wide);
    uint8_t *mask = reinterpret_cast<uint8_t *>(meta + 2 * N);
    int d = threadIdx.x;
    if (d < HD) {
        int n_wide = 0;
        for (int other = 0; other < d; other++)
            n_wide += is_wide[other];
        int place = is_wide[d] ? n_wide : N_WIDE + d - n_wide;
        bool negative = rotate_negative(is_wide[d] ? place : place - N_WIDE);
        for (int t = 0; t < N; t++)
            w.u[t * w.ld + place] = negative ? -w.y[t * w.ld + d] : w.y[t * w.ld + d];
        if (d % 8 == 0) {
            mask[d / 8] = 0;
            for (int i = 0; i < 8; i++)
                mask[d / 8] |= is_wide[d + i] << i;
        }
    }
    __syncthreads();
    hadamard<N_WIDE>(w.u, N, w.ld);
    hadamard<N_NARROW>(w.u + N_WIDE, N, w.ld);
    for (int i = threadIdx.x; i < 2 * N; i += blockDim.x) {
        bool narrow = i >= N;
        int t = i % N, first = narrow ? N_WIDE : 0, n = narrow ? N_NARROW : N_WIDE;
        float *u = w.u + t * w.ld + first, factor = narrow ? hadamard_factor<N_NARROW>() : hadamard_factor<N_WIDE>();
        for (int k = 0; k < n; k++)
            u[k] *= factor;
        put_meta(w, f, meta, i, encode_token(f.is_k, u, n, f.bits + !narrow, w.codes + t * HD + first));
    }
}

/* ---- fp8, nvfp4: kv/float8.h ---- */

__device__ float e4m3_to_f32(int code) { /* code >= 0 */
    return code < 8 ? (float)code * 0x1p-9f : __uint_as_float(((uint32_t)code << 20) + (120u << 23));
}

__device__ int f32_to_e4m3(float x) {
    uint32_t bits = __float_as_uint(x) & 0x7fffffff, code;
    if (bits < __float_as_uint(0x1p-6f))
        code = __float_as_uint(__uint_as_float(bits) + 0x1p14f) - __float_as_uint(0x1p14f);
    else
        code = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120u << 3);
    code = code > 0x7e ? 0x7e : code;
    return code | (x < 0.0f && code ? 0x80 : 0);
}

__device__ int f32_to_e2m1(float x) {
    float a = fabsf(x);
    int code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
    return code | (x < 0.0f && code ? 8 : 0);
}

__device__ float e2m1_to_f32(int code) {
    int magnitude = code & 7;
    float x = magnitude < 4 ? 0.5f * magnitude : magnitude < 6 ? magnitude - 2.0f : 2.0f * magnitude - 8.0f;
    return code & 8 ? -x : x;
}

/* The largest magnitude of the tile, to all threads. */
__device__ float largest_of_tile(const work &w) {
    float found = 0.0f;
    for (int i = threadIdx.x; i < N * w.head_dim; i += blockDim.x)
        found = fmaxf(found, fabsf(w.y[i / w.head_dim * w.ld + i % w.head_dim]));
    for (int k = 16; k > 0; k /= 2)
        found = fmaxf(found, __shfl_xor_sync(~0u, found, k));
    if (threadIdx.x % 32 == 0)
        w.token[threadIdx.x / 32] = found;
    __syncthreads();
    for (int i = 0; i < N_THREADS / 32; i++)
        found = fmaxf(found, w.token[i]);
    return found;
}

__device__ void encode_fp8(const work &w, float *meta) {
    float largest = largest_of_tile(w);
    int exponent;
    float fraction = frexpf(largest, &exponent); /* 448 = 0.875 * 2^9 */
    exponent -= fraction > 0.875f ? 8 : 9;
    float scale = ldexpf(1.0f, exponent < -100 || largest == 0.0f ? -100 : exponent), inverse = __fdiv_rn(1.0f, scale);
    for (int i = threadIdx.x; i < N * w.head_dim; i += blockDim.x)
        w.codes[i] = (uint8_t)f32_to_e4m3(w.y[i / w.head_dim * w.ld + i % w.head_dim] * inverse);
    if (threadIdx.x == 0)
        *meta = scale;
}

__device__ float round_group(const float *x, float scale, uint8_t *codes) {
    float inverse = reciprocal(scale), error = 0.0f;
    for (int i = 0; i < 16; i++) {
        codes[i] = (uint8_t)f32_to_e2m1(x[i] * inverse);
        float difference = scale * e2m1_to_f32(codes[i]) - x[i];
        error += difference * difference;
    }
    return error;
}

__device__ int encode_group(const float *x, float tile_scale, uint8_t *codes) {
    float least = INFINITY, inverse = reciprocal(tile_scale);
    int start = f32_to_e4m3(fabsf(extreme(x, 16)) * inverse / 6.0f), best = 0;
    for (int code = start - 1; code <= start + 6; code++) {
        if (code < 0 || code > 0x7e)
            continue;
        float error = round_group(x, tile_scale * e4m3_to_f32(code), codes);
        best = error < least ? code : best;
        least = error < least ? error : least;
    }
    round_group(x, tile_scale * e4m3_to_f32(best), codes);
    return best;
}

__device__ void encode_nvfp4(const work &w, const tile_format &f, uint8_t *meta) {
    float tile_scale = largest_of_tile(w) / (4.0f * 448.0f);
    for (int i = threadIdx.x; i < w.head_dim / 16 * N; i += blockDim.x) {
        int t = i % N, first = i / N * 16;
        meta[nvfp4_scale_place(f.is_k, i)] = (uint8_t)encode_group(w.y + t * w.ld + first, tile_scale,
                                                                   w.codes + t * w.head_dim + first);
    }
    if (threadIdx.x == 0)
        *reinterpret_cast<float *>(meta + w.head_dim / 16 * N) = tile_scale;
}

/* ---- a tile ---- */

/* y = the f16 tile, minus the key bias, what is not finite as 0, rotated if the codec is */
template <int HD>
__device__ void load_tile(const work &w, const tile_format &f, const __half *raw, const bias_tables &bias, uint32_t head,
                          uint32_t tile) {
    for (int i = threadIdx.x; i < N * HD; i += blockDim.x)
        w.y[i / HD * w.ld + i % HD] = __half2float(raw[place_half(f.is_k, HD, i / HD, i % HD)]);
    __syncthreads();
    if (f.is_k && bias.n_pairs > 0)
        add_key_bias<-1>(bias, head, tile, w.y, w.ld);
    for (int i = threadIdx.x; i < N * HD; i += blockDim.x) {
        float *y = &w.y[i / HD * w.ld + i % HD], x = fabsf(*y) <= F16_MAX ? *y : 0.0f;
        *y = f.rotated && rotate_negative(i % HD) ? -x : x;
    }
    __syncthreads();
    if (!f.rotated)
        return;
    hadamard<HD>(w.y, N, w.ld);
    for (int i = threadIdx.x; i < N * HD; i += blockDim.x)
        w.y[i / HD * w.ld + i % HD] *= hadamard_factor<HD>();
    __syncthreads();
}

__host__ __device__ inline bool takes_scratch(const tile_format &f) {
    return f.family == FAMILY_KVARN || f.family == FAMILY_TIER || f.family == FAMILY_SPLIT;
}

template <int HD> __global__ void __launch_bounds__(N_THREADS) encode_kernel(const __grid_constant__ encode_args a) {
    uint8_t *memory = shared_memory();
    constexpr int LD = HD + 1;
    bool is_k = blockIdx.z == 0;
    tile_format f = is_k ? a.k : a.v;
    encode_job job = a.jobs[blockIdx.x];
    int head = blockIdx.y;
    int n_words = code_words(f.family, f.bits, HD);
    work w;
    w.head_dim = HD;
    w.ld = LD;
    w.y = reinterpret_cast<float *>(memory);
    w.u = w.y + N * LD;
    w.token = w.u + (takes_scratch(f) ? N * LD : 0);
    w.channel = w.token + N;
    w.words = reinterpret_cast<uint32_t *>(w.channel + HD);
    w.codes = reinterpret_cast<uint8_t *>(w.words + n_words);
    const __half *raw = a.raw + ((size_t)job.raw * a.n_head_kv + head) * 2 * N * HD + (is_k ? 0 : N * HD);
    uint8_t *tile = a.coded + ((size_t)(job.coded & 0x7fffffffu) * a.n_head_kv + head) * (a.k_tile_bytes + a.v_tile_bytes) +
                    (is_k ? 0 : a.k_tile_bytes);
    if (f.family == FAMILY_F16 && is_k && a.bias.n_pairs > 0) {
        load_tile<HD>(w, f, raw, a.bias, head, job.tile);
        for (int i = threadIdx.x; i < N * HD; i += blockDim.x)
            reinterpret_cast<__half *>(tile)[place_half(true, HD, i / HD, i % HD)] = __float2half_rn(
                w.y[i / HD * LD + i % HD]);
        return;
    }
    if (f.family == FAMILY_F16) { /* the f16 side of a mixed pair: what is not finite becomes 0 */
        for (int i = threadIdx.x; i < N * HD; i += blockDim.x)
            reinterpret_cast<__half *>(tile)[i] = __hisnan(raw[i]) || __hisinf(raw[i]) ? __float2half_rn(0.0f) : raw[i];
        return;
    }
    load_tile<HD>(w, f, raw, a.bias, head, job.tile);
    __half *meta = reinterpret_cast<__half *>(tile + 4 * n_words);
    if (f.family == FAMILY_KIVI)
        encode_kivi(w, f, meta);
    else if (f.family == FAMILY_BLOCKS)
        encode_blocks(w, f, meta);
    else if (f.family == FAMILY_KVARN)
        encode_kvarn(w, f, meta);
    else if (f.family == FAMILY_TURBO)
        encode_turbo(w, f, meta);
    else if (f.family == FAMILY_TIER)
        encode_tier(w, f, meta);
    else if (f.family == FAMILY_SPLIT && HD >= 32)
        encode_split<HD>(w, f, meta);
    else if (f.family == FAMILY_FP8)
        encode_fp8(w, reinterpret_cast<float *>(meta));
    else
        encode_nvfp4(w, f, reinterpret_cast<uint8_t *>(meta));
    for (int i = threadIdx.x; i < n_words; i += blockDim.x)
        w.words[i] = 0;
    __syncthreads();
    pack_codes(f, HD, w.codes, w.words);
    __syncthreads();
    for (int i = threadIdx.x; i < n_words; i += blockDim.x)
        reinterpret_cast<uint32_t *>(tile)[i] = w.words[i];
}

template <int HD> cudaError_t launch_for(const encode_args &a, uint32_t n_jobs, cudaStream_t stream) {
    size_t shared = encode_shared_bytes(a.k, a.v, HD);
    static_assert(2 * N * 257 * 4 + (N + 256) * 4 + 2 * N * 256 <= 227 * 1024, "fits one block");
    cudaError_t error = cudaFuncSetAttribute(encode_kernel<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess)
        return error;
    return launch_after(encode_kernel<HD>, dim3(n_jobs, a.n_head_kv, 2), N_THREADS, shared, stream, a);
}

} // namespace

size_t encode_shared_bytes(const tile_format &k, const tile_format &v, uint32_t head_dim) {
    size_t n_copies = takes_scratch(k) || takes_scratch(v) ? 2 : 1;
    return n_copies * N * (head_dim + 1) * 4 + (N + head_dim) * 4 + 2 * N * head_dim;
}

cudaError_t launch_encode(const encode_args &a, uint32_t n_jobs, cudaStream_t stream) {
    switch (a.head_dim) {
#define CASE(hd)                                                                                                           \
    case hd:                                                                                                               \
        return launch_for<hd>(a, n_jobs, stream);
        EACH_HEAD_DIM(CASE)
#undef CASE
    }
    return cudaErrorInvalidValue;
}
