// The products of linear layers, forward and backward, in AMX tiles.
//
// A weight is laid out in bf16 once a step, as both directions find it. The product forward and that for the gradient of
// the input are one: rows times a matrix in panels, 32 rows by 32 columns at a time, which stay in the core's own cache
// while panel after panel passes by. In the gradient of the weight both operands lie across: they are turned block by block.
// Every sum is taken in one order, whatever the number of threads.
//
// Letters: T rows (tokens), I inputs, O outputs; I and O are multiples of 32.

#include <algorithm>

#include "products.h"

#ifdef __AMX_BF16__

namespace {

constexpr int CACHE = 1 << 20;                       // bytes of a weight that stay in a core's own cache beside the rest
constexpr int DEPTH = 256, ACROSS = 192, DOWN = 768;  // rows, outputs and inputs of a weight's gradient at a time
constexpr int ROW = DEPTH + BLOCK;                    // of the turned gradient: no power of two, for the cache's sake

// `rows` rows of X; where they are no multiple of 32, a copy of them with rows of zeros behind.
INLINE const bf16 *padded(const bf16 *X, int rows, int width, bf16 *copy) {
  if (rows % BLOCK == 0) return X;
  std::memcpy(static_cast<void *>(copy), X, sizeof(bf16) * rows * width);
  std::memset(static_cast<void *>(copy + rows * width), 0, sizeof(bf16) * (whole_blocks(rows) - rows) * width);
  return copy;
}

// 32 rows of 32 columns, to their transpose.
INLINE void turn(const bf16 *from, int64_t from_row, bf16 *to, int to_row) {
  alignas(64) uint32_t pairs[SIDES][LANES * LANES];
  for (int r = 0; r < BLOCK; r += 2)
    for (int side = 0; side < SIDES; ++side) {
      const bf16 *here = from + r * from_row + side * LANES;
      write(pairs[side] + r / 2 * LANES, pair(read<Halves>(here), read<Halves>(here + from_row)));
    }
  for (int side = 0; side < SIDES; ++side)
    transpose_units(pairs[side], LANES, reinterpret_cast<uint32_t *>(to + side * LANES * to_row), to_row / 2);
}

// Lines of Y lie too far apart for the processor to foresee them: they are fetched while the tiles that they wait for are
// multiplied, a few a step.
void multiply_rows(const bf16 *X, int T, int I, const uint32_t *B, int O, const float *bias, bf16 *Y, int threads) {
  const int stay = std::max(BLOCK, CACHE / (2 * I) / BLOCK * BLOCK);
  const int steps = I / BLOCK, lines = (BLOCK + steps - 1) / steps;
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    space.begin(4 * BLOCK * BLOCK + 2 * BLOCK * I + 64 * 2);
    float *C = space.take<float>(BLOCK * BLOCK);
    bf16 *copy = space.take<bf16>(BLOCK * I);
    for (int first = 0; first < O; first += stay)
#pragma omp for schedule(static) nowait
      for (int t = 0; t < T; t += BLOCK) {
        const int rows = std::min(BLOCK, T - t);
        const bf16 *A = padded(X + int64_t(t) * I, rows, I, copy);
        for (int o = first; o < std::min(O, first + stay); o += BLOCK) {
          bf16 *to = Y + int64_t(t) * O + o;
          auto fetch = [&](int step) __attribute__((always_inline)) {  // or GCC takes it for something without effect
            const int last = std::min(BLOCK, (step + 1) * lines);
            for (int r = step * lines; r < last; ++r) __builtin_prefetch(to + int64_t(r) * O, 1);
          };
          multiply_tiles<true>(I / 2, A, I, B + int64_t(o) * (I / 2), C, BLOCK, false, fetch);
          Floats more[SIDES] = {};
          for (int side = 0; bias && side < SIDES; ++side) more[side] = load(bias + o + side * LANES);
          for (int r = 0; r < rows; ++r)
            store(to + int64_t(r) * O, load(C + r * BLOCK) + more[0], load(C + r * BLOCK + LANES) + more[1]);
        }
      }
  }
}

// G^T X, with G: [T][O] and X: [T][I]; panels: space for X, [whole_blocks(T)][I].
void multiply_across(const bf16 *G, const bf16 *X, int T, int O, int I, uint32_t *panels, float *out, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    space.begin(4 * ACROSS * DOWN + 2 * ACROSS * ROW + 2 * DEPTH * std::max(O, I) + 64 * 3);
    float *C = space.take<float>(ACROSS * DOWN);
    bf16 *A = space.take<bf16>(ACROSS * ROW), *copy = space.take<bf16>(DEPTH * std::max(O, I));
#pragma omp for schedule(static)
    for (int t = 0; t < T; t += DEPTH) {
      const int rows = std::min(DEPTH, T - t);
      panels_of_columns(padded(X + int64_t(t) * I, rows, I, copy), whole_blocks(rows), I, panels + int64_t(t) * (I / 2),
                        whole_blocks(rows));
    }
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int o = 0; o < O; o += ACROSS)
      for (int i = 0; i < I; i += DOWN) {
        const int across = std::min(ACROSS, O - o), down = std::min(DOWN, I - i);
        for (int t = 0; t < T; t += DEPTH) {
          const int rows = whole_blocks(std::min(DEPTH, T - t));
          const bf16 *from = padded(G + int64_t(t) * O, std::min(DEPTH, T - t), O, copy);
          for (int r = 0; r < rows; r += BLOCK)
            for (int y = 0; y < across; y += BLOCK)
              turn(from + int64_t(r) * O + o + y, O, A + y * ROW + r, ROW);
          const uint32_t *B = panels + int64_t(t) * (I / 2) + int64_t(i) * (rows / 2);
          for (int y = 0; y < across; y += BLOCK)
            for (int x = 0; x < down; x += BLOCK)
              multiply_tiles<true>(rows / 2, A + y * ROW, ROW, B + x * (rows / 2), C + y * down + x * BLOCK, BLOCK, t > 0);
        }
        for (int y = 0; y < across; ++y)
          for (int x = 0; x < down; x += BLOCK) {
            const float *from = C + y / BLOCK * BLOCK * down + x * BLOCK + y % BLOCK * BLOCK;
            std::memcpy(out + int64_t(o + y) * I + i + x, from, sizeof(float) * BLOCK);
          }
      }
  }
}

// Rows `first` and on of a weight of `O` outputs, out of float32.
void lay_out(const float *weight, int rows, int I, int first, int O, uint32_t *forward, uint32_t *backward, int threads) {
#pragma omp parallel num_threads(threads)
  {
    space.begin(2 * BLOCK * I + 64);
    bf16 *here = space.take<bf16>(BLOCK * I);
#pragma omp for schedule(static)
    for (int r = 0; r < rows; r += BLOCK) {
      for (int64_t at = 0; at < BLOCK * I; at += LANES) store(here + at, load(weight + int64_t(r) * I + at));
      panels_of_rows(here, BLOCK, I, forward + int64_t(first + r) * (I / 2));
      if (backward) panels_of_columns(here, BLOCK, I, backward + (first + r) / 2 * LANES, O);
    }
  }
}

}  // namespace

#endif

extern "C" {

// Whether the products of linear layers are here too.
int has_linear() {
#ifdef __AMX_BF16__
  return 1;
#else
  return 0;
#endif
}

#ifdef __AMX_BF16__

// weight: [rows][I] float32, rows `first` and on of [O][I]. forward, backward: bf16 as many as the weight has; the second
// may be null.
void linear_layout(const float *weight, int rows, int I, int first, int O, void *forward, void *backward, int threads) {
  lay_out(weight, rows, I, first, O, static_cast<uint32_t *>(forward), static_cast<uint32_t *>(backward), threads);
}

// y = x W^T + bias, with x: [T][I] bf16, bias: [O] float32 or null, y: [T][O] bf16. The gradient of the input is the same
// with the other layout.
void linear_product(const void *x, int T, int I, const void *layout, int O, const float *bias, void *y, int threads) {
  multiply_rows(static_cast<const bf16 *>(x), T, I, static_cast<const uint32_t *>(layout), O, bias,
                static_cast<bf16 *>(y), threads);
}

// out: [O][I] float32; panels: space for bf16, T up to a multiple of 32 times I.
void linear_weight_gradient(const void *gradient, const void *x, int T, int O, int I, void *panels, float *out,
                            int threads) {
  multiply_across(static_cast<const bf16 *>(gradient), static_cast<const bf16 *>(x), T, O, I,
                  static_cast<uint32_t *>(panels), out, threads);
}

#endif
}
