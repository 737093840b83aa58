// The CPU kernels, for bf16 and float32. No dependency but the C++ runtime and OpenMP; vectors of 16
// floats by the extension that GCC and clang share, so that one source serves every processor.
// The Python files beside this one say what each function computes and how far it is from its floor.
//
// Two bf16 lie in each 32-bit word. Taking the even ones of 32 values by a shift and the odd ones by a
// mask costs one instruction per 16 values, where widening them in order costs four. So 32 values are
// read as a Pair, and the float32 vectors that meet them are put into the same order before ("paired").

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

using std::ptrdiff_t;
using Floats = float __attribute__((vector_size(64), aligned(4)));
using Words = uint32_t __attribute__((vector_size(64), aligned(4)));
using Integers = int32_t __attribute__((vector_size(64), aligned(4)));

constexpr int LANES = 16;
constexpr int PAIR = 2 * LANES;
constexpr uint32_t ODD = 0xffff0000u;

struct bf16 {
    uint16_t bits;
};

struct Pair {
    Floats a, b;
};

inline Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

inline Pair load_pair(const float* p) { return {load(p), load(p + LANES)}; }

inline Pair load_pair(const bf16* p) {
    Words w;
    std::memcpy(&w, p, sizeof w);
    return {(Floats)(w << 16), (Floats)(w & ODD)};
}

inline void store_pair(float* p, Pair v) {
    store(p, v.a);
    store(p + LANES, v.b);
}

inline void store_pair(bf16* p, Pair v) {
    Words w = ((Words)v.a >> 16) | ((Words)v.b & ODD);
    std::memcpy(p, &w, sizeof w);
}

// To what T holds: the nearest, ties to even. The values are finite.
inline Floats rounded(const float*, Floats v) { return v; }

inline Floats rounded(const bf16*, Floats v) {
    Words w = (Words)v;
    return (Floats)((w + 0x7fffu + ((w >> 16) & 1u)) & ODD);
}

// Where value i of 32 stands in a Pair of T.
inline int place(const float*, int i) { return i; }
inline int place(const bf16*, int i) { return i / 2 + i % 2 * LANES; }

inline ptrdiff_t padded(ptrdiff_t size) { return (size + PAIR - 1) / PAIR * PAIR; }

// `to` has room for padded(size) values.
template <class T>
void into_pairs(const float* from, ptrdiff_t size, float* to) {
    for (ptrdiff_t v = 0; v < size; v += PAIR)
        for (int i = 0; i < PAIR; ++i)
            to[v + place((const T*)nullptr, i)] = v + i < size ? from[v + i] : 0.0f;
}

// Fewer than 32 values, the missing ones 0.
template <class T>
inline Pair load_rest(const T* p, ptrdiff_t count) {
    T buffer[PAIR] = {};
    std::memcpy(buffer, p, sizeof(T) * count);
    return load_pair(buffer);
}

template <class T>
inline Pair load_up_to(const T* p, ptrdiff_t left) {
    return left >= PAIR ? load_pair(p) : load_rest(p, left);
}

// Into the second level of cache: in the first it would push out the rows in use.
template <class T>
inline void prefetch_pair(const T* p) {
    for (size_t byte = 0; byte < PAIR * sizeof(T); byte += 64)
        __builtin_prefetch((const char*)p + byte, 0, 2);
}

inline float sum(Floats v) {
    float s = 0;
    for (int i = 0; i < LANES; ++i) s += v[i];
    return s;
}

// Sums of many numbers of unlike size: in float32 a likely token would swallow the others' mass. Some
// are added in float32, then in float64.
using Doubles = double __attribute__((vector_size(128), aligned(8)));
constexpr ptrdiff_t SUMMED = 16 * PAIR;

inline double sum(Doubles v) {
    double s = 0;
    for (int i = 0; i < LANES; ++i) s += v[i];
    return s;
}

inline Doubles widened(Floats v) { return __builtin_convertvector(v, Doubles); }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// exp(x) for x <= 0, and 0 below -87: no denormal number arises. Relative error 2e-7. NaN stays.
inline Floats exponential(Floats x) {
    Integers small = x < -87.0f;
    x = small ? Floats{} - 87.0f : x;
    Floats t = x * 1.44269504088896341f + 12582912.0f;
    Floats n = t - 12582912.0f;
    Floats r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    y = (Floats)((Integers)y + ((Integers)t << 23));
    return x == x ? (Floats)((Integers)y & ~small) : x;
}

inline int team() {
#if defined(_OPENMP)
    return omp_get_num_threads();
#else
    return 1;
#endif
}

inline int member() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// This thread's part of [0, size), in multiples of `grain`.
inline void share(ptrdiff_t size, ptrdiff_t grain, ptrdiff_t& begin, ptrdiff_t& end) {
    ptrdiff_t grains = (size + grain - 1) / grain;
    begin = std::min(size, grains * member() / team() * grain);
    end = std::min(size, grains * (member() + 1) / team() * grain);
}

template <class T>
struct Matrix {
    const T* data;
    ptrdiff_t stride, rows, columns;
    const T* row(ptrdiff_t v) const { return data + v * stride; }
};

// ---- W delta

// total[r][j] += w[r][k..] . deltas[j][k..] for R rows and B paired deltas.
template <class T, int R, int B, class Load>
inline void dot_step(const T* w, ptrdiff_t stride, const float* deltas, ptrdiff_t delta_stride,
                     Floats (&total)[R][B], Load read) {
    Pair x[B];
    for (int j = 0; j < B; ++j) x[j] = load_pair(deltas + j * delta_stride);
    for (int r = 0; r < R; ++r) {
        Pair q = read(w + r * stride);
        for (int j = 0; j < B; ++j) total[r][j] += q.a * x[j].a;
        for (int j = 0; j < B; ++j) total[r][j] += q.b * x[j].b;
    }
}

// out[j][r] = w[r] . deltas[j]. AHEAD: fetch the R rows that follow.
template <class T, int R, int B, bool AHEAD>
inline void dot_block(const T* w, ptrdiff_t stride, ptrdiff_t d, const float* deltas, float* out,
                      ptrdiff_t out_stride) {
    const ptrdiff_t delta_stride = padded(d);
    Floats total[R][B] = {};
    const T* ahead = w + R * stride;
    ptrdiff_t k = 0;
    for (; k + PAIR <= d; k += PAIR) {
        if (AHEAD)
            for (int r = 0; r < R; ++r) prefetch_pair(ahead + k * R + r * PAIR);
        dot_step<T, R, B>(w + k, stride, deltas + k, delta_stride, total,
                          [](const T* p) { return load_pair(p); });
    }
    if (k < d)
        dot_step<T, R, B>(w + k, stride, deltas + k, delta_stride, total,
                          [=](const T* p) { return load_rest(p, d - k); });
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < B; ++j) out[j * out_stride + r] = sum(total[r][j]);
}

template <class T, int R>
inline void dot_rows(const Matrix<T>& w, ptrdiff_t v, const float* deltas, ptrdiff_t requests,
                     float* out, ptrdiff_t out_stride) {
    const ptrdiff_t d = w.columns, delta_stride = padded(d);
    const T* row = w.row(v);
    out += v;
    ptrdiff_t j = 0;
    if (requests >= 4) {
        dot_block<T, R, 4, true>(row, w.stride, d, deltas, out, out_stride);
        j = 4;
    }
    for (; j + 4 <= requests; j += 4)
        dot_block<T, R, 4, false>(row, w.stride, d, deltas + j * delta_stride,
                                  out + j * out_stride, out_stride);
    for (; j < requests; ++j)
        dot_block<T, R, 1, false>(row, w.stride, d, deltas + j * delta_stride,
                                  out + j * out_stride, out_stride);
}

template <class T>
void shift(const Matrix<T>& w, const float* deltas, ptrdiff_t requests, float* out,
           ptrdiff_t out_stride, int threads) {
    const ptrdiff_t d = w.columns;
    std::vector<float> paired(requests * padded(d));
    for (ptrdiff_t j = 0; j < requests; ++j)
        into_pairs<T>(deltas + j * d, d, paired.data() + j * padded(d));
#pragma omp parallel num_threads(threads)
    {
        ptrdiff_t v, end;
        share(w.rows, 16, v, end);
        // For few requests one row after the other, so that W is one stream for the prefetcher.
        if (requests >= 4)
            for (; v + 4 <= end; v += 4)
                dot_rows<T, 4>(w, v, paired.data(), requests, out, out_stride);
        for (; v < end; ++v) dot_rows<T, 1>(w, v, paired.data(), requests, out, out_stride);
    }
}

// ---- W^T s

constexpr int PULL_ROWS = 8;

// out[j] += sum_r factors[j][r] w[r] for B requests, columns in blocks of K pairs. out is paired.
// AHEAD: fetch the rows that follow.
template <class T, int B, int K, bool AHEAD>
inline void axpy_block(const T* w, ptrdiff_t stride, ptrdiff_t d, ptrdiff_t rows,
                       const float* factors, ptrdiff_t factor_stride, float* out) {
    const ptrdiff_t out_stride = padded(d);
    const T* ahead = w + rows * stride;
    ptrdiff_t k = 0;
    for (; k + K * PAIR <= d; k += K * PAIR) {
        Pair total[B][K];
        for (int j = 0; j < B; ++j)
            for (int i = 0; i < K; ++i)
                total[j][i] = load_pair(out + j * out_stride + k + i * PAIR);
        for (ptrdiff_t r = 0; r < rows; ++r)
            for (int i = 0; i < K; ++i) {
                if (AHEAD) {
                    prefetch_pair(ahead);
                    ahead += PAIR;
                }
                Pair q = load_pair(w + r * stride + k + i * PAIR);
                for (int j = 0; j < B; ++j) {
                    Floats f = Floats{} + factors[j * factor_stride + r];
                    total[j][i].a += q.a * f;
                    total[j][i].b += q.b * f;
                }
            }
        for (int j = 0; j < B; ++j)
            for (int i = 0; i < K; ++i)
                store_pair(out + j * out_stride + k + i * PAIR, total[j][i]);
    }
    for (; k < d; k += PAIR)
        for (ptrdiff_t r = 0; r < rows; ++r) {
            Pair q = load_up_to(w + r * stride + k, d - k);
            for (int j = 0; j < B; ++j) {
                float* o = out + j * out_stride + k;
                Pair total = load_pair(o);
                total.a += q.a * factors[j * factor_stride + r];
                total.b += q.b * factors[j * factor_stride + r];
                store_pair(o, total);
            }
        }
}

template <class T>
inline void axpy_rows(const Matrix<T>& w, ptrdiff_t v, ptrdiff_t rows, const float* sums,
                      ptrdiff_t sums_stride, ptrdiff_t requests, float* out) {
    const ptrdiff_t d = w.columns, out_stride = padded(d);
    const T* row = w.row(v);
    sums += v;
    ptrdiff_t j = 0;
    if (requests >= 4) {
        axpy_block<T, 4, 2, true>(row, w.stride, d, rows, sums, sums_stride, out);
        j = 4;
    } else {
        axpy_block<T, 1, 4, true>(row, w.stride, d, rows, sums, sums_stride, out);
        j = 1;
    }
    for (; j + 4 <= requests; j += 4)
        axpy_block<T, 4, 2, false>(row, w.stride, d, rows, sums + j * sums_stride, sums_stride,
                                   out + j * out_stride);
    for (; j < requests; ++j)
        axpy_block<T, 1, 4, false>(row, w.stride, d, rows, sums + j * sums_stride, sums_stride,
                                   out + j * out_stride);
}

// A float32 sum over a whole vocabulary loses digits: parts of it are added in float64, in order, so
// that the same input gives the same bits.
constexpr ptrdiff_t PARTS = 32;
// So many requests at a time, which bounds the memory of the parts.
constexpr ptrdiff_t PULL_REQUESTS = 8;

template <class T>
void pull_back_group(const Matrix<T>& w, const float* sums, ptrdiff_t sums_stride,
                     ptrdiff_t requests, float* out, int threads) {
    const ptrdiff_t d = w.columns, size = requests * padded(d);
    const ptrdiff_t part_rows = padded((w.rows + PARTS - 1) / PARTS);
    std::vector<float> parts(PARTS * size);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (ptrdiff_t part = 0; part < PARTS; ++part) {
            ptrdiff_t end = std::min(w.rows, (part + 1) * part_rows);
            for (ptrdiff_t v = part * part_rows; v < end; v += PULL_ROWS)
                axpy_rows(w, v, std::min<ptrdiff_t>(PULL_ROWS, end - v), sums, sums_stride,
                          requests, parts.data() + part * size);
        }
#pragma omp for schedule(static)
        for (ptrdiff_t k = 0; k < d; ++k)
            for (ptrdiff_t j = 0; j < requests; ++j) {
                double total = 0;
                const ptrdiff_t block = k / PAIR * PAIR;
                const float* at = parts.data() + j * padded(d) + block +
                                  place((const T*)nullptr, (int)(k - block));
                for (ptrdiff_t part = 0; part < PARTS; ++part) total += at[part * size];
                out[j * d + k] = (float)total;
            }
    }
}

template <class T>
void pull_back(const Matrix<T>& w, const float* sums, ptrdiff_t sums_stride, ptrdiff_t requests,
               float* out, int threads) {
    for (ptrdiff_t j = 0; j < requests; j += PULL_REQUESTS)
        pull_back_group(w, sums + j * sums_stride, sums_stride,
                        std::min(PULL_REQUESTS, requests - j), out + j * w.columns, threads);
}

// ---- exponentials of logits, and their column sums

// y = scale (z + bias); bias is paired.
template <bool BIASED>
inline Pair activated(Pair z, const float* bias, float scale) {
    if (BIASED) {
        Pair x = load_pair(bias);
        z.a += x.a;
        z.b += x.b;
    }
    return {z.a * scale, z.b * scale};
}

// One row in place: z -> e^(y - max y), rounded to T. The total is of the rounded values.
template <class T, bool BIASED>
inline void exponential_row(T* row, ptrdiff_t size, const float* bias, float scale, float& maximum,
                            float& total) {
    Floats m0 = Floats{} - INFINITY, m1 = m0;
    ptrdiff_t v = 0;
    for (; v + PAIR <= size; v += PAIR) {
        Pair y = activated<BIASED>(load_pair(row + v), bias + v, scale);
        m0 = larger(y.a, m0);
        m1 = larger(y.b, m1);
    }
    float m = -INFINITY;
    for (int i = 0; i < LANES; ++i) m = std::max({m, m0[i], m1[i]});
    const int rest = (int)(size - v);
    float tail[PAIR];
    if (rest) {
        store_pair(tail, activated<BIASED>(load_rest(row + v, rest), bias + v, scale));
        for (int i = 0; i < rest; ++i) m = std::max(m, tail[place(row, i)]);
    }
    Doubles s = {};
    for (v = 0; v + PAIR <= size;) {
        Floats s0 = {}, s1 = {};
        for (const ptrdiff_t end = std::min(size, v + SUMMED); v + PAIR <= end; v += PAIR) {
            Pair y = activated<BIASED>(load_pair(row + v), bias + v, scale);
            y.a = rounded(row, exponential(y.a - m));
            y.b = rounded(row, exponential(y.b - m));
            store_pair(row + v, y);
            s0 += y.a;
            s1 += y.b;
        }
        s += widened(s0 + s1);
    }
    if (rest) {
        for (int i = rest; i < PAIR; ++i) tail[place(row, i)] = -INFINITY;
        Pair y = load_pair(tail);
        y.a = rounded(row, exponential(y.a - m));
        y.b = rounded(row, exponential(y.b - m));
        T buffer[PAIR];
        store_pair(buffer, y);
        std::memcpy(row + v, buffer, sizeof(T) * rest);
        s += widened(y.a + y.b);
    }
    maximum = m;
    total = (float)sum(s);
}

// What the logits were made of, to make some of them again in float32. offset: their bias, or null.
template <class T>
struct Product {
    Matrix<T> weight;
    const T* hidden;
    ptrdiff_t hidden_stride;
    const float* offset;
};

template <class T>
inline float exact_logit(const Product<T>& from, ptrdiff_t row, ptrdiff_t v) {
    const T* h = from.hidden + row * from.hidden_stride;
    const T* w = from.weight.row(v);
    const ptrdiff_t d = from.weight.columns;
    Floats total = {};
    for (ptrdiff_t k = 0; k < d; k += PAIR) {
        Pair x = load_up_to(h + k, d - k), y = load_up_to(w + k, d - k);
        total += x.a * y.a;
        total += x.b * y.b;
    }
    return sum(total) + (from.offset ? from.offset[v] : 0.0f);
}

inline float to_float(const float* p) { return *p; }
inline float to_float(const bf16* p) {
    uint32_t bits = (uint32_t)p->bits << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline void from_float(float* p, float value) { *p = value; }
inline void from_float(bf16* p, float value) {
    Words w = (Words)rounded(p, Floats{} + value);
    p->bits = (uint16_t)(w[0] >> 16);
}

// Exponentials above `part` of the row's total once more, from logits that were not rounded.
template <class T>
inline void sharpen_row(T* row, ptrdiff_t size, const Product<T>& from, ptrdiff_t index,
                        float scale, float maximum, float part, float& total) {
    const float least = part * total;
    for (ptrdiff_t v = 0; v < size; v += PAIR) {
        Pair e = load_up_to(row + v, size - v);
        Integers hot = (e.a > least) | (e.b > least);
        int any = 0;
        for (int i = 0; i < LANES; ++i) any |= hot[i];
        if (!any) continue;
        const ptrdiff_t end = std::min(size, v + PAIR);
        for (ptrdiff_t u = v; u < end; ++u) {
            const float old = to_float(row + u);
            if (!(old > least)) continue;
            from_float(row + u, std::exp(exact_logit(from, index, u) * scale - maximum));
            total += to_float(row + u) - old;
        }
    }
}

constexpr ptrdiff_t COLUMNS = 1024;

// part += sum_j weights[j] rows[j] for R rows. part is paired.
template <class T, int R>
inline void add_rows(const T* rows, ptrdiff_t stride, ptrdiff_t width, const float* weights,
                     float* part) {
    ptrdiff_t k = 0;
    for (; k + PAIR <= width; k += PAIR) {
        Pair p = load_pair(part + k);
        for (int j = 0; j < R; ++j) {
            Pair e = load_pair(rows + j * stride + k);
            p.a += e.a * weights[j];
            p.b += e.b * weights[j];
        }
        store_pair(part + k, p);
    }
    if (k < width) {
        Pair p = load_pair(part + k);
        for (int j = 0; j < R; ++j) {
            Pair e = load_rest(rows + j * stride + k, width - k);
            p.a += e.a * weights[j];
            p.b += e.b * weights[j];
        }
        store_pair(part + k, p);
    }
}

// sums[v] += factors[v] * sum_i weights[i] rows[i][v] for columns [v, end). factors: null for 1.
template <class T>
inline void add_columns(const T* rows, ptrdiff_t stride, ptrdiff_t count, const float* weights,
                        const float* factors, ptrdiff_t v, ptrdiff_t end, float* sums) {
    float part[COLUMNS];
    for (; v < end; v += COLUMNS) {
        const ptrdiff_t width = std::min(COLUMNS, end - v);
        std::memset(part, 0, sizeof part);
        ptrdiff_t i = 0;
        for (; i + 4 <= count; i += 4)
            add_rows<T, 4>(rows + i * stride + v, stride, width, weights + i, part);
        for (; i < count; ++i)
            add_rows<T, 1>(rows + i * stride + v, stride, width, weights + i, part);
        for (ptrdiff_t k = 0; k < width; k += PAIR)
            for (int j = 0; j < PAIR && k + j < width; ++j) {
                float s = part[k + place(rows, j)];
                sums[v + k + j] += factors ? factors[v + k + j] * s : s;
            }
    }
}

// So many bytes of rows stay in the last level of cache from their totals to their column sums.
constexpr ptrdiff_t BLOCK_BYTES = 8 << 20;

inline ptrdiff_t block_rows(ptrdiff_t row_bytes) {
    return std::max<ptrdiff_t>(4, BLOCK_BYTES / row_bytes / 4 * 4);
}

template <class T>
void exponentials(T* rows, ptrdiff_t count, ptrdiff_t vocabulary, const float* bias, float scale,
                  const Product<T>& from, float part, float* sums, float* maxima, float* totals,
                  int threads) {
    const ptrdiff_t block = block_rows(vocabulary * (ptrdiff_t)sizeof(T));
    std::vector<float> weights(count), paired(bias ? padded(vocabulary) : 0);
    if (bias) into_pairs<T>(bias, vocabulary, paired.data());
#pragma omp parallel num_threads(threads)
    for (ptrdiff_t first = 0; first < count; first += block) {
        const ptrdiff_t size = std::min(block, count - first);
        T* here = rows + first * vocabulary;
#pragma omp for schedule(dynamic, 1)
        for (ptrdiff_t i = 0; i < size; ++i) {
            T* row = here + i * vocabulary;
            float m, t;
            if (bias)
                exponential_row<T, true>(row, vocabulary, paired.data(), scale, m, t);
            else
                exponential_row<T, false>(row, vocabulary, nullptr, scale, m, t);
            if (from.hidden) sharpen_row(row, vocabulary, from, first + i, scale, m, part, t);
            maxima[first + i] = m;
            totals[first + i] = t;
            weights[first + i] = scale / t;
        }
        ptrdiff_t v, end;
        share(vocabulary, COLUMNS, v, end);
        add_columns(here, vocabulary, size, weights.data() + first, nullptr, v, end, sums);
    }
}

// totals[i] = rows[i] . factors for up to four rows, which share a read of the paired factors.
template <class T>
inline void weighted_totals(const T* rows, ptrdiff_t size, int count, const float* factors,
                            float* totals) {
    const T* row[4];
    for (int i = 0; i < 4; ++i) row[i] = rows + (i < count ? i : 0) * size;
    Doubles s[4] = {};
    ptrdiff_t v = 0;
    while (v < size) {
        Floats a[4] = {}, b[4] = {};
        const ptrdiff_t end = std::min(size, v + SUMMED);
        for (; v + PAIR <= end; v += PAIR) {
            Pair f = load_pair(factors + v);
            for (int i = 0; i < 4; ++i) {
                Pair e = load_pair(row[i] + v);
                a[i] += e.a * f.a;
                b[i] += e.b * f.b;
            }
        }
        if (v < end) {
            Pair f = load_pair(factors + v);
            for (int i = 0; i < 4; ++i) {
                Pair e = load_rest(row[i] + v, end - v);
                a[i] += e.a * f.a;
                b[i] += e.b * f.b;
            }
            v = end;
        }
        for (int i = 0; i < 4; ++i) s[i] += widened(a[i] + b[i]);
    }
    for (int i = 0; i < count; ++i) totals[i] = (float)sum(s[i]);
}

template <class T>
void exponential_sums(const T* rows, ptrdiff_t count, ptrdiff_t vocabulary, const float* factors,
                      float scale, float* sums, float* totals, int threads) {
    const ptrdiff_t block = block_rows(vocabulary * (ptrdiff_t)sizeof(T));
    std::vector<float> weights(count), paired(padded(vocabulary));
    into_pairs<T>(factors, vocabulary, paired.data());
#pragma omp parallel num_threads(threads)
    for (ptrdiff_t first = 0; first < count; first += block) {
        const ptrdiff_t size = std::min(block, count - first);
        const T* here = rows + first * vocabulary;
#pragma omp for schedule(dynamic, 1)
        for (ptrdiff_t i = 0; i < size; i += 4) {
            const int some = (int)std::min<ptrdiff_t>(4, size - i);
            weighted_totals(here + i * vocabulary, vocabulary, some, paired.data(),
                            totals + first + i);
            for (int j = 0; j < some; ++j) weights[first + i + j] = scale / totals[first + i + j];
        }
        ptrdiff_t v, end;
        share(vocabulary, COLUMNS, v, end);
        add_columns(here, vocabulary, size, weights.data() + first, factors, v, end, sums);
    }
}

}  // namespace

// `brief`: whether the matrix is bf16; float32 otherwise. Strides count elements.
extern "C" {

void slot_shift(const void* w, int brief, int64_t stride, int64_t vocabulary, int64_t d,
                const float* deltas, int64_t requests, float* out, int64_t out_stride,
                int threads) {
    if (brief)
        shift<bf16>({(const bf16*)w, stride, vocabulary, d}, deltas, requests, out, out_stride,
                    threads);
    else
        shift<float>({(const float*)w, stride, vocabulary, d}, deltas, requests, out, out_stride,
                     threads);
}

void slot_pull_back(const void* w, int brief, int64_t stride, int64_t vocabulary, int64_t d,
                    const float* sums, int64_t sums_stride, int64_t requests, float* out,
                    int threads) {
    if (brief)
        pull_back<bf16>({(const bf16*)w, stride, vocabulary, d}, sums, sums_stride, requests, out,
                        threads);
    else
        pull_back<float>({(const float*)w, stride, vocabulary, d}, sums, sums_stride, requests,
                         out, threads);
}

// hidden: null to leave all exponentials as the given logits make them.
void slot_exponentials(void* rows, int brief, int64_t count, int64_t vocabulary, const float* bias,
                       float scale, const void* hidden, int64_t hidden_stride, const void* w,
                       int64_t stride, int64_t d, const float* offset, float part, float* sums,
                       float* maxima, float* totals, int threads) {
    if (brief)
        exponentials<bf16>((bf16*)rows, count, vocabulary, bias, scale,
                           {{(const bf16*)w, stride, vocabulary, d}, (const bf16*)hidden,
                            hidden_stride, offset},
                           part, sums, maxima, totals, threads);
    else
        exponentials<float>((float*)rows, count, vocabulary, bias, scale,
                            {{(const float*)w, stride, vocabulary, d}, (const float*)hidden,
                             hidden_stride, offset},
                            part, sums, maxima, totals, threads);
}

void slot_exponential_sums(const void* rows, int brief, int64_t count, int64_t vocabulary,
                           const float* factors, float scale, float* sums, float* totals,
                           int threads) {
    if (brief)
        exponential_sums((const bf16*)rows, count, vocabulary, factors, scale, sums, totals,
                         threads);
    else
        exponential_sums((const float*)rows, count, vocabulary, factors, scale, sums, totals,
                         threads);
}
}
