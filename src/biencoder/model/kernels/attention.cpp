// Attention within the texts of a packed row, forward and backward, with dropout (Vaswani et al. 2017, eq. 1).
//
// A text and a head at a time, whose scores stay in the core's own cache and are computed again in the backward pass
// (Dao et al. 2022, algorithm 4). All matrices of scores are transposed, keys down and queries across: a softmax then runs
// down the lanes without any sum across them, and each product finds its operands as the one before has left them.
//
// Letters: L tokens of the text, S of it rounded up to whole blocks, E size of a head, P probabilities, O output, D a
// gradient. What is beyond L is zero.

#include "products.h"

namespace {

// One tensor of the row: where token t and head h begin.
template <class T>
struct Row {
  T *data;
  int64_t token, head;
  T *at(int64_t t, int64_t h) const { return data + t * token + h * head; }
};

struct Shape {
  int size;     // E
  float scale;  // on the scores
  bool causal;  // a token sees itself and what precedes it
  int window;   // and what is nearer than this; 0 for everything
  Dropout dropout;
};

// The number of the block of queries that begins with this one, for a key: the same in a text of any length.
INLINE uint32_t block_of(int key, int query) { return (uint32_t(key) << 12) | uint32_t(query / BLOCK); }

// Rows of a head, end to end, in the arithmetic of the products.
template <class T, class A>
void stage(Row<const T> row, int start, int head, int L, int S, int E, A *to) {
  for (int t = 0; t < L; ++t) {
    const T *from = row.at(start + t, head);
    if constexpr (sizeof(T) == sizeof(A))
      std::memcpy(to + t * E, from, E * sizeof(A));
    else
      for (int e = 0; e < E; e += LANES) store(to + t * E + e, load(from + e));
  }
  std::memset(static_cast<void *>(to + L * E), 0, sizeof(A) * (S - L) * E);
}

// X^T, row by row.
void transpose(const float *X, int S, int E, float *to) {
  for (int t = 0; t < S; t += LANES)
    for (int e = 0; e < E; e += LANES)
      transpose_units(units(X + t * E + e), E, reinterpret_cast<uint32_t *>(to + e * S + t), S);
}

[[maybe_unused]] void transpose(const bf16 *X, int S, int E, bf16 *to) {
  uint32_t turned[LANES * LANES];
  for (int t = 0; t < S; t += LANES)
    for (int e = 0; e < E; e += 2 * LANES) {
      transpose_units(units(X + t * E + e), E / 2, turned, LANES);
      for (int u = 0; u < LANES; ++u) {
        Words both = read<Words>(turned + u * LANES);
        write(to + (e + 2 * u) * S + t, __builtin_convertvector(both & 0xffff, Halves));
        write(to + (e + 2 * u + 1) * S + t, __builtin_convertvector(both >> 16, Halves));
      }
    }
}

// Two neighbouring rows of 16 columns to where a product over rows finds them: in bf16 they share units.
INLINE void write_units(Floats even, Floats odd, float *, uint32_t *to) {
  write(to, even);
  write(to + LANES, odd);
}

[[maybe_unused]] INLINE void write_units(Floats even, Floats odd, bf16 *, uint32_t *to) {
#ifdef __AVX512BF16__
  const Words turns = LANE | ((LANE + LANES) << 16);  // one number of the first half, one of the second
  write(to, _mm512_permutexvar_epi16((__m512i)turns, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even)));
#else
  bf16 rows[2 * LANES];
  store(rows, even);
  store(rows + LANES, odd);
  write(to, pair(read<Halves>(rows), read<Halves>(rows + LANES)));
#endif
}

// Columns of X^T as rows of the tensor.
template <class T>
void write_transposed(const float *XT, int row, int E, Row<T> to, int start, int head, int L) {
  float turned[LANES * LANES];
  for (int t = 0; t < L; t += LANES)
    for (int e = 0; e < E; e += LANES) {
      transpose_units(units(XT + e * row + t), row, reinterpret_cast<uint32_t *>(turned), LANES);
      for (int i = 0; i < LANES && t + i < L; ++i) store(to.at(start + t + i, head) + e, load(turned + i * LANES));
    }
}

template <class T>
void write_rows(const float *X, int E, Row<T> to, int start, int head, int rows) {
  for (int t = 0; t < rows; ++t)
    for (int e = 0; e < E; e += LANES) store(to.at(start + t, head) + e, load(X + t * E + e));
}

// Which of the queries from `query` on see the key.
INLINE Words seen(const Shape &shape, int key, int query) {
  Ints distance = (Ints)LANE + (query - key);
  Words near = Words{} - 1;
  if (shape.causal) near &= (Words)(distance >= 0);
  if (shape.window) near &= (Words)(distance < shape.window) & (Words)(distance > -shape.window);
  return near;
}

// Of each query of a block, 2^-(the largest score) and one over the sum, which the backward pass needs again.
struct Softmax {
  float *largest, *share;
};

template <bool MASKED, bool DROPS, class A>
void softmax_block(const Shape &shape, Key key, const float *ST, int query, int L, int S, A *, uint32_t *P, Softmax to) {
  const float factor = shape.scale * 1.44269504089f;  // powers of 2 instead of e
  Floats top[SIDES], total[SIDES] = {};
  for (int side = 0; side < SIDES; ++side) top[side] = all(-3e38f);
  for (int j = 0; j < L; ++j)
    for (int side = 0; side < SIDES; ++side) {
      Floats score = load(ST + j * BLOCK + side * LANES) * factor;
      if (MASKED) score = seen(shape, j, query + side * LANES) ? score : all(-3e38f);
      top[side] = larger(top[side], score);
    }
  for (int j = 0; j < S; j += 2) {
    Floats p[2][SIDES];
    for (int odd = 0; odd < 2; ++odd) {
      Words keep[SIDES] = {};
      if (DROPS) kept(key, block_of(j + odd, query), shape.dropout, keep);
      for (int side = 0; side < SIDES; ++side) {
        Floats value = Floats{};
        if (j + odd < L) value = exp2(load(ST + (j + odd) * BLOCK + side * LANES) * factor - top[side]);
        if (MASKED) value = only(seen(shape, j + odd, query + side * LANES), value);
        total[side] += value;
        p[odd][side] = DROPS ? only(keep[side], value) : value;
      }
    }
    for (int side = 0; side < SIDES; ++side)
      write_units(p[0][side], p[1][side], (A *)nullptr, P + side * (S / PER_UNIT<A>)*LANES + j / PER_UNIT<A> * LANES);
  }
  for (int side = 0; side < SIDES; ++side) {
    store(to.largest + side * LANES, top[side]);
    store(to.share + side * LANES, 1.0f / total[side]);
  }
}

template <class T>
void forward(const Shape &shape, Row<const T> query, Row<const T> key, Row<const T> value, Row<T> out, Softmax kept,
             int start, int L, int head, Key random) {
  typedef typename Arithmetic<T>::Type A;
  const int E = shape.size, S = whole_blocks(L);
  space.begin(sizeof(A) * (3 * S + BLOCK) * E + 4 * BLOCK * (2 * S + 2 * E + 2) + 64 * 10);
  A *K = space.take<A>(S * E), *V = space.take<A>(S * E), *VT = space.take<A>(S * E), *Q = space.take<A>(BLOCK * E);
  uint32_t *Qs = space.take<uint32_t>(BLOCK * E / PER_UNIT<A>), *P = space.take<uint32_t>(BLOCK * S / PER_UNIT<A>);
  float *ST = space.take<float>(S * BLOCK), *OT = space.take<float>(E * BLOCK);
  float *top = space.take<float>(BLOCK), *share = space.take<float>(BLOCK);
  stage(value, start, head, L, S, E, V);
  transpose(V, S, E, VT);
  stage(key, start, head, L, S, E, K);
  const bool masked = shape.causal || (shape.window && shape.window < L), drops = shape.dropout.dropped;
  for (int q = 0; q < L; q += BLOCK) {
    const int queries = L - q < BLOCK ? L - q : BLOCK;
    stage(query, start + q, head, queries, BLOCK, E, Q);
    panels_of_rows(Q, BLOCK, E, Qs);
    multiply(S, BLOCK, E, K, E, Qs, ST, BLOCK, false);
    auto run = masked ? (drops ? softmax_block<true, true, A> : softmax_block<true, false, A>)
                      : (drops ? softmax_block<false, true, A> : softmax_block<false, false, A>);
    run(shape, random, ST, q, L, S, (A *)nullptr, P, {top, share});
    multiply(E, BLOCK, S, VT, S, P, OT, BLOCK, false);
    for (int side = 0; side < BLOCK; side += LANES) {
      Floats factor = load(share + side) * shape.dropout.factor;
      for (int e = 0; e < E; ++e) store(OT + e * BLOCK + side, load(OT + e * BLOCK + side) * factor);
    }
    write_transposed(OT, BLOCK, E, out, start + q, head, queries);
    if (kept.largest) {
      std::memcpy(kept.largest + start + q, top, 4 * queries);
      std::memcpy(kept.share + start + q, share, 4 * queries);
    }
  }
}

// From scores and the gradients of their probabilities, keys `key` to `key + 32`: what the three products need.
template <bool MASKED, bool DROPS, class A>
void gradient_block(const Shape &shape, Key random, const float *ST, const float *DT, int key, int L, int S,
                    const float *top, const float *share, const float *delta, A *P, A *D, uint32_t *Ds) {
  const float factor = shape.scale * 1.44269504089f;
  for (int j = 0; j < BLOCK; j += 2)
    for (int q = 0; q < S; q += BLOCK) {
      Words keep[2][SIDES] = {};
      if (DROPS)
        for (int odd = 0; odd < 2; ++odd) kept(random, block_of(key + j + odd, q), shape.dropout, keep[odd]);
      for (int side = 0; side < SIDES; ++side) {
        const int i = q + side * LANES;
        Floats tops = load(top + i), shares = load(share + i), deltas = load(delta + i), d[2];
        for (int odd = 0; odd < 2; ++odd) {
          const int at = (j + odd) * S + i;
          Floats p = Floats{}, dropped = Floats{};
          d[odd] = Floats{};
          if (key + j + odd < L) {
            p = exp2(load(ST + at) * factor - tops) * shares;
            if (MASKED) p = only(seen(shape, key + j + odd, i), p);
            dropped = p * shape.dropout.factor;
            if (DROPS) dropped = only(keep[odd][side], dropped);
            d[odd] = (dropped * load(DT + at) - p * deltas) * shape.scale;
          }
          store(P + at, dropped);
          store(D + at, d[odd]);
        }
        write_units(d[0], d[1], (A *)nullptr, Ds + (i * BLOCK + j * LANES) / PER_UNIT<A>);
      }
    }
}

template <class T>
struct Gradients {
  Row<T> query, key, value;
};

template <class T>
void backward(const Shape &shape, Row<const T> query, Row<const T> key, Row<const T> value, Row<const T> out,
              Row<const T> gradient, Softmax kept, Gradients<T> to, int start, int L, int head, Key random) {
  typedef typename Arithmetic<T>::Type A;
  const int E = shape.size, S = whole_blocks(L);
  space.begin(sizeof(A) * (9 * S * E + 3 * BLOCK * S) + 4 * (2 * BLOCK * S + S * E + BLOCK * E + 3 * S) + 64 * 20);
  A *Q = space.take<A>(S * E), *K = space.take<A>(S * E), *V = space.take<A>(S * E), *D = space.take<A>(S * E);
  A *KT = space.take<A>(S * E), *P = space.take<A>(BLOCK * S), *DS = space.take<A>(BLOCK * S);
  const int per = PER_UNIT<A>;
  uint32_t *Qe = space.take<uint32_t>(S * E / per), *De = space.take<uint32_t>(S * E / per);
  uint32_t *Qt = space.take<uint32_t>(S * E / per), *Dt = space.take<uint32_t>(S * E / per);
  uint32_t *DSs = space.take<uint32_t>(BLOCK * S / per);
  float *ST = space.take<float>(BLOCK * S), *DT = space.take<float>(BLOCK * S), *DQT = space.take<float>(E * S);
  float *rows = space.take<float>(BLOCK * E);
  float *top = space.take<float>(S), *share = space.take<float>(S), *delta = space.take<float>(S);

  stage(query, start, head, L, S, E, Q);
  stage(key, start, head, L, S, E, K);
  stage(value, start, head, L, S, E, V);
  stage(gradient, start, head, L, S, E, D);
  panels_of_rows(Q, S, E, Qe);
  panels_of_rows(D, S, E, De);
  panels_of_columns(Q, S, E, Qt, S);
  panels_of_columns(D, S, E, Dt, S);
  transpose(K, S, E, KT);
  std::memset(DQT, 0, sizeof(float) * E * S);
  std::memset(top, 0, sizeof(float) * S);
  std::memset(share, 0, sizeof(float) * S);  // so that queries beyond the text have no probabilities
  std::memset(delta, 0, sizeof(float) * S);
  std::memcpy(top, kept.largest + start, sizeof(float) * L);
  std::memcpy(share, kept.share + start, sizeof(float) * L);
  for (int t = 0; t < L; ++t) {
    Floats product = Floats{};
    for (int e = 0; e < E; e += LANES)
      product += load(out.at(start + t, head) + e) * load(gradient.at(start + t, head) + e);
    delta[t] = sum(product);
  }
  const bool masked = shape.causal || (shape.window && shape.window < L), drops = shape.dropout.dropped;
  auto run = masked ? (drops ? gradient_block<true, true, A> : gradient_block<true, false, A>)
                    : (drops ? gradient_block<false, true, A> : gradient_block<false, false, A>);
  for (int k = 0; k < L; k += BLOCK) {
    const int keys = L - k < BLOCK ? L - k : BLOCK;
    multiply(BLOCK, S, E, K + k * E, E, Qe, ST, S, false);
    multiply(BLOCK, S, E, V + k * E, E, De, DT, S, false);
    run(shape, random, ST, DT, k, L, S, top, share, delta, P, DS, DSs);
    multiply(BLOCK, E, S, P, S, Dt, rows, E, false);
    write_rows(rows, E, to.value, start + k, head, keys);
    multiply(BLOCK, E, S, DS, S, Qt, rows, E, false);
    write_rows(rows, E, to.key, start + k, head, keys);
    multiply(E, S, BLOCK, KT + k, S, DSs, DQT, S, true);
  }
  write_transposed(DQT, S, E, to.query, start, head, L);
}

template <class Work>
void each_head(int texts, int heads, const int32_t *starts, Dropout dropout, int threads, Work work) {
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (int text = 0; text < texts; ++text)
      for (int head = 0; head < heads; ++head)
        work(starts[text], starts[text + 1] - starts[text], head, dropout.key(text, head));
  }
}

template <class T>
struct Tensors {
  const void *const *at;
  const int64_t *strides;
  Row<const T> in(int i) const { return {static_cast<const T *>(at[i]), strides[2 * i], strides[2 * i + 1]}; }
  Row<T> out(int i) const { return {static_cast<T *>(const_cast<void *>(at[i])), strides[2 * i], strides[2 * i + 1]}; }
};

template <class T>
void attend(Tensors<T> rows, Softmax kept, const int32_t *starts, int texts, int heads, const Shape &shape, int threads) {
  const int64_t tokens = starts[texts];
  each_head(texts, heads, starts, shape.dropout, threads, [&](int start, int L, int head, Key random) {
    Softmax own = kept.largest ? Softmax{kept.largest + head * tokens, kept.share + head * tokens} : Softmax{};
    forward<T>(shape, rows.in(0), rows.in(1), rows.in(2), rows.out(3), own, start, L, head, random);
  });
}

template <class T>
void attend_back(Tensors<T> rows, Softmax kept, const int32_t *starts, int texts, int heads, const Shape &shape,
                 int threads) {
  const int64_t tokens = starts[texts];
  each_head(texts, heads, starts, shape.dropout, threads, [&](int start, int L, int head, Key random) {
    Softmax own = {kept.largest + head * tokens, kept.share + head * tokens};
    Gradients<T> to = {rows.out(5), rows.out(6), rows.out(7)};
    backward<T>(shape, rows.in(0), rows.in(1), rows.in(2), rows.in(3), rows.in(4), own, to, start, L, head, random);
  });
}

}  // namespace

extern "C" {

// Whether this process may use what this library was compiled for, and calls it as it is to be called.
int prepare(int interface) { return interface == 4 && allowed(); }

// rows: query, key, value, output; strides: of token and head, of each. softmax: [2][heads][tokens], or null.
void attention(int narrow, const void *const *rows, const int64_t *strides, float *softmax, const int32_t *starts,
               int texts, int heads, int size, float scale, int causal, int window, const uint64_t *keys, uint64_t place,
               uint32_t dropped, float factor, int threads) {
  const Shape shape = {size, scale, bool(causal), window, {keys, place, dropped, factor}};
  const Softmax kept = {softmax, softmax ? softmax + int64_t(heads) * starts[texts] : nullptr};
  if (narrow)
    attend<bf16>({rows, strides}, kept, starts, texts, heads, shape, threads);
  else
    attend<float>({rows, strides}, kept, starts, texts, heads, shape, threads);
}

// rows: query, key, value, output, its gradient, and the gradients of query, key and value.
void attention_backward(int narrow, const void *const *rows, const int64_t *strides, float *softmax,
                        const int32_t *starts, int texts, int heads, int size, float scale, int causal, int window,
                        const uint64_t *keys, uint64_t place, uint32_t dropped, float factor, int threads) {
  const Shape shape = {size, scale, bool(causal), window, {keys, place, dropped, factor}};
  const Softmax kept = {softmax, softmax + int64_t(heads) * starts[texts]};
  if (narrow)
    attend_back<bf16>({rows, strides}, kept, starts, texts, heads, shape, threads);
  else
    attend_back<float>({rows, strides}, kept, starts, texts, heads, shape, threads);
}

// keep: [texts][heads][length][length] bytes, query by key: the masks that both of them draw, for attention elsewhere.
void weight_masks(int8_t *keep, const uint64_t *keys, uint64_t place, uint32_t dropped, int texts, int heads, int length,
                  int threads) {
  const Dropout dropout = {keys, place, dropped, 1.0f};
#pragma omp parallel for schedule(static) collapse(2) num_threads(threads)
  for (int text = 0; text < texts; ++text)
    for (int head = 0; head < heads; ++head) {
      const Key random = dropout.key(text, head);
      int8_t *here = keep + (int64_t(text) * heads + head) * length * length;
      for (int q = 0; q < length; q += BLOCK)
        for (int j = 0; j < length; ++j) {
          int8_t bytes[BLOCK];
          kept_bytes(random, block_of(j, q), dropout, bytes);
          for (int i = q; i < length && i < q + BLOCK; ++i) here[int64_t(i) * length + j] = bytes[i - q];
        }
    }
}
}
