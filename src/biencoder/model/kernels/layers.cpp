// What stands between the products of a transformer layer, each in one pass over memory.
//
// Rows are dealt out in blocks of a fixed size, and sums over rows are taken block by block, so that results do not depend
// on the number of threads.

#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int ROWS = 64;

INLINE int blocks_of(int rows) { return (rows + ROWS - 1) / ROWS; }

// Sums over rows: a partial one a block, added up in order.
class Sums {
  std::vector<float> parts;
  const int columns, blocks;

 public:
  Sums(int rows, int columns) : parts(size_t(blocks_of(rows)) * columns), columns(columns), blocks(blocks_of(rows)) {}
  float *of(int block) { return parts.data() + size_t(block) * columns; }
  void write(float *to) {
    for (int c = 0; c < columns; ++c) {
      double total = 0;
      for (int block = 0; block < blocks; ++block) total += of(block)[c];
      to[c] = float(total);
    }
  }
};

INLINE void add(float *to, Floats values) { store(to, load(to) + values); }

// y <- dropout(y) + residual of one row; returns its sum.
template <bool DROPS, class T>
INLINE Floats residual_sum(const T *y, const float *residual, float *x, int D, Key key, Dropout dropout) {
  Floats total = Floats{};
  for (int d = 0; d < D; d += BLOCK) {
    Words keep[SIDES] = {};
    if (DROPS) kept(key, uint32_t(d / BLOCK), dropout, keep);
    for (int side = 0; side < SIDES; ++side) {
      const int at = d + side * LANES;
      Floats value = load(y + at);
      if (DROPS) value = only(keep[side], value) * dropout.factor;
      value += load(residual + at);
      store(x + at, value);
      total += value;
    }
  }
  return total;
}

template <class T>
void residual_norm(const T *y, const float *residual, const float *gain, const float *bias, float epsilon,
                   Dropout dropout, int rows, int D, float *out, T *narrow, T *normal, float *deviation, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int block = 0; block < blocks_of(rows); ++block) {
    std::vector<float> x(D);
    for (int r = block * ROWS; r < rows && r < (block + 1) * ROWS; ++r) {
      const int64_t at = int64_t(r) * D;
      const Key key = dropout.key(r);
      Floats total = dropout.dropped ? residual_sum<true>(y + at, residual + at, x.data(), D, key, dropout)
                                     : residual_sum<false>(y + at, residual + at, x.data(), D, key, dropout);
      const float mean = sum(total) / float(D);
      Floats squares = Floats{};
      for (int d = 0; d < D; d += LANES) {
        Floats centred = load(&x[d]) - mean;
        squares += centred * centred;
      }
      const float one_over = 1.0f / std::sqrt(sum(squares) / float(D) + epsilon);
      if (deviation) deviation[r] = one_over;
      for (int d = 0; d < D; d += LANES) {
        Floats unit = (load(&x[d]) - mean) * one_over;
        Floats value = unit * load(gain + d) + load(bias + d);
        store(out + at + d, value);
        if (narrow) store(narrow + at + d, value);
        if (normal) store(normal + at + d, unit);
      }
    }
  }
}

// The gradient of layer normalisation (Ba et al. 2016): (g - mean(g) - n mean(g n)) / deviation, with g that of n.
template <class T>
void residual_norm_backward(const float *gradient, const T *more, const T *normal, const float *deviation,
                            const float *gain, Dropout dropout, int rows, int D, float *to_residual, T *to_y,
                            float *to_gain, float *to_bias, float *to_y_bias, int threads) {
  Sums gains(rows, D), biases(rows, D), y_biases(rows, D);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int block = 0; block < blocks_of(rows); ++block) {
    std::vector<float> g(D);
    for (int r = block * ROWS; r < rows && r < (block + 1) * ROWS; ++r) {
      const int64_t at = int64_t(r) * D;
      Floats total = Floats{}, products = Floats{};
      for (int d = 0; d < D; d += LANES) {
        Floats from = load(gradient + at + d), unit = load(normal + at + d);
        if (more) from += load(more + at + d);
        add(biases.of(block) + d, from);
        add(gains.of(block) + d, from * unit);
        from *= load(gain + d);
        store(&g[d], from);
        total += from;
        products += from * unit;
      }
      const float mean = sum(total) / float(D), product = sum(products) / float(D);
      const Key key = dropout.key(r);
      for (int d = 0; d < D; d += BLOCK) {
        Words keep[SIDES] = {};
        if (dropout.dropped) kept(key, uint32_t(d / BLOCK), dropout, keep);
        for (int side = 0; side < SIDES; ++side) {
          const int c = d + side * LANES;
          Floats value = (load(&g[c]) - mean - load(normal + at + c) * product) * deviation[r];
          store(to_residual + at + c, value);
          if (dropout.dropped) value = only(keep[side], value) * dropout.factor;
          store(to_y + at + c, value);
          add(y_biases.of(block) + c, value);
        }
      }
    }
  }
  gains.write(to_gain);
  biases.write(to_bias);
  y_biases.write(to_y_bias);
}

// x P(X <= x) for a normal X (Hendrycks and Gimpel 2016).
template <class T>
void gelu(const T *x, T *out, int64_t count, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; i += LANES) {
    Floats value = load(x + i), below, density;
    normal(value, below, density);
    store(out + i, value * below);
  }
}

// gradient: of the output, becomes that of x; out: the output again; to_bias: the gradient's sum over rows.
template <class T>
void gelu_backward(const T *x, T *gradient, T *out, int rows, int D, float *to_bias, int threads) {
  Sums biases(rows, D);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int block = 0; block < blocks_of(rows); ++block)
    for (int r = block * ROWS; r < rows && r < (block + 1) * ROWS; ++r)
      for (int d = 0; d < D; d += LANES) {
        const int64_t at = int64_t(r) * D + d;
        Floats value = load(x + at), below, density;
        normal(value, below, density);
        Floats to = load(gradient + at) * (below + value * density);
        store(gradient + at, to);
        store(out + at, value * below);
        add(biases.of(block) + d, to);
      }
  biases.write(to_bias);
}

template <class T>
void column_sums(const T *x, int rows, int D, float *to, int threads) {
  Sums sums(rows, D);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int block = 0; block < blocks_of(rows); ++block)
    for (int r = block * ROWS; r < rows && r < (block + 1) * ROWS; ++r)
      for (int d = 0; d < D; d += LANES) add(sums.of(block) + d, load(x + int64_t(r) * D + d));
  sums.write(to);
}

}  // namespace

extern "C" {

// y, residual: [rows][D]; out in float32, narrow as y is typed or null; normal and deviation are what the gradient needs.
void residual_norm_forward(int is_narrow, const void *y, const float *residual, const float *gain, const float *bias,
                           float epsilon, const uint64_t *keys, uint64_t place, uint32_t dropped, float factor, int rows,
                           int D, float *out, void *narrow, void *normal, float *deviation, int threads) {
  const Dropout dropout = {keys, place, dropped, factor};
  if (is_narrow)
    residual_norm(static_cast<const bf16 *>(y), residual, gain, bias, epsilon, dropout, rows, D, out,
                  static_cast<bf16 *>(narrow), static_cast<bf16 *>(normal), deviation, threads);
  else
    residual_norm(static_cast<const float *>(y), residual, gain, bias, epsilon, dropout, rows, D, out,
                  static_cast<float *>(narrow), static_cast<float *>(normal), deviation, threads);
}

// gradient and more add up to that of the output.
void residual_norm_gradient(int is_narrow, const float *gradient, const void *more, const void *normal,
                            const float *deviation, const float *gain, const uint64_t *keys, uint64_t place,
                            uint32_t dropped, float factor, int rows, int D, float *to_residual, void *to_y,
                            float *to_gain, float *to_bias, float *to_y_bias, int threads) {
  const Dropout dropout = {keys, place, dropped, factor};
  if (is_narrow)
    residual_norm_backward(gradient, static_cast<const bf16 *>(more), static_cast<const bf16 *>(normal), deviation, gain,
                           dropout, rows, D, to_residual, static_cast<bf16 *>(to_y), to_gain, to_bias, to_y_bias,
                           threads);
  else
    residual_norm_backward(gradient, static_cast<const float *>(more), static_cast<const float *>(normal), deviation,
                           gain, dropout, rows, D, to_residual, static_cast<float *>(to_y), to_gain, to_bias,
                           to_y_bias, threads);
}

void gelu_forward(int is_narrow, const void *x, void *out, int64_t count, int threads) {
  if (is_narrow)
    gelu(static_cast<const bf16 *>(x), static_cast<bf16 *>(out), count, threads);
  else
    gelu(static_cast<const float *>(x), static_cast<float *>(out), count, threads);
}

void gelu_gradient(int is_narrow, const void *x, void *gradient, void *out, int rows, int D, float *to_bias,
                   int threads) {
  if (is_narrow)
    gelu_backward(static_cast<const bf16 *>(x), static_cast<bf16 *>(gradient), static_cast<bf16 *>(out), rows, D, to_bias,
                  threads);
  else
    gelu_backward(static_cast<const float *>(x), static_cast<float *>(gradient), static_cast<float *>(out), rows, D,
                  to_bias, threads);
}

void sum_rows(int is_narrow, const void *x, int rows, int D, float *to, int threads) {
  if (is_narrow)
    column_sums(static_cast<const bf16 *>(x), rows, D, to, threads);
  else
    column_sums(static_cast<const float *>(x), rows, D, to, threads);
}

// keep: [rows][columns] bytes, the masks of rows: those that a residual norm draws, for dropout elsewhere.
void row_masks(int8_t *keep, const uint64_t *keys, uint64_t place, uint32_t dropped, int rows, int columns, int threads) {
  const Dropout dropout = {keys, place, dropped, 1.0f};
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int r = 0; r < rows; ++r) {
    const Key key = dropout.key(r);
    for (int c = 0; c < columns; c += BLOCK) {
      int8_t bytes[BLOCK];
      kept_bytes(key, uint32_t(c / BLOCK), dropout, bytes);
      std::memcpy(keep + int64_t(r) * columns + c, bytes, columns - c < BLOCK ? columns - c : BLOCK);
    }
  }
}
}
