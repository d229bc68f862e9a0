// A register at a time: numbers of two widths, functions of them, and random bits.
//
// GCC's vector types are a register of AVX-512 or of AVX2, so the same source serves both; what GCC cannot find by itself
// stands behind #ifdef.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

constexpr int BLOCK = 32;             // columns that are worked on together, and share random draws
constexpr int SIDES = BLOCK / LANES;  // registers of them

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

struct bf16 {
  uint16_t bits;
};

template <class To, class From>
INLINE To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class Vector>
INLINE Vector read(const void *from) {
  Vector values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

template <class Vector>
INLINE void write(void *to, Vector values) {
  std::memcpy(to, &values, sizeof values);
}

INLINE Floats all(float value) { return Floats{} + value; }

#ifdef __AVX512F__
constexpr Words LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
constexpr Words LANE = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

// Round to nearest, ties to even, as PyTorch does; a NaN stays one.
INLINE Words rounded_bits(Floats values) {
  Words bits = bits_of<Words>(values);
  Words even = bits + 0x7fff + ((bits >> 16) & 1);
  return (values == values) ? even : (bits | 0x400000);
}

INLINE Floats load(const float *from) { return read<Floats>(from); }
INLINE Floats load(const bf16 *from) {
  return bits_of<Floats>(__builtin_convertvector(read<Halves>(from), Words) << 16);
}
INLINE void store(float *to, Floats values) { write(to, values); }
INLINE void store(bf16 *to, Floats values) {
#ifdef __AVX512BF16__
  write(to, (__m256i)_mm512_cvtneps_pbh((__m512)values));
#else
  write(to, __builtin_convertvector(rounded_bits(values) >> 16, Halves));
#endif
}

#ifdef __AVX512BF16__
INLINE void store(bf16 *to, Floats first, Floats second) {
  write(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
}
#endif

INLINE Floats larger(Floats a, Floats b) {
#ifdef __AVX512F__
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#endif
}

INLINE float sum(Floats values) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)values);
#else
  float total = 0;
  for (int lane = 0; lane < LANES; ++lane) total += values[lane];
  return total;
#endif
}

// 1 / x to 2e-7 of it: the processor's estimate and a step of Newton's method.
INLINE Floats reciprocal(Floats x) {
#ifdef __AVX512F__
  Floats near = (Floats)_mm512_rcp14_ps((__m512)x);
#else
  Floats near = (Floats)_mm256_rcp_ps((__m256)x);
#endif
  return near * (2.0f - x * near);
}

// 2^x for x up to 127, to 2e-7 of its value; below -126 it stays 2^-126, and NaN a NaN. Polynomial of Cephes' exp2f.
INLINE Floats exp2(Floats x) {
  x = larger(all(-126.0f), x);  // of a NaN and a number, the second
#ifdef __AVX512F__
  Floats whole = (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  Floats whole = (Floats)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
  Floats f = x - whole;
  Floats y = all(1.535336188319500e-4f);
  y = y * f + 1.339887440266574e-3f;
  y = y * f + 9.618437357674640e-3f;
  y = y * f + 5.550332471162809e-2f;
  y = y * f + 2.402264791363012e-1f;
  y = y * f + 6.931472028550421e-1f;
  y = y * f + 1.0f;
#ifdef __AVX512F__
  return (Floats)_mm512_scalef_ps((__m512)y, (__m512)whole);
#else
  return bits_of<Floats>(bits_of<Ints>(y) + (__builtin_convertvector(whole, Ints) << 23));
#endif
}

// The normal distribution: P(X <= x) to 1e-7, and its density (Abramowitz and Stegun 1964, 26.2.17's kin 7.1.26).
INLINE void normal(Floats x, Floats &below, Floats &density) {
  Floats size = x < 0 ? -x : x;
  Floats bell = exp2(x * x * -0.72134752044f);  // e^(-x^2 / 2)
  Floats t = reciprocal(size * 0.23164189f + 1.0f);
  Floats y = all(1.061405429f);
  y = y * t - 1.453152027f;
  y = y * t + 1.421413741f;
  y = y * t - 0.284496736f;
  y = y * t + 0.254829592f;
  Floats beyond = y * t * bell * 0.5f;
  below = x < 0 ? beyond : 1.0f - beyond;
  density = bell * 0.3989422804f;
}

// Random bits as a function of key and place (a counter-based generator, Salmon et al. 2011): no state, so that the
// backward pass draws again what the forward pass drew. masks.py draws the same by PyTorch.
struct Key {
  uint32_t first, second;
};

// SplitMix64 (Steele et al. 2014).
INLINE Key key_of(uint64_t seed, uint64_t place) {
  uint64_t z = seed + 0x9e3779b97f4a7c15u * (place + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return {uint32_t(z), uint32_t(z >> 32)};
}

// Two independent draws of 16 bits in each lane. The mixer is a bijection of 32 bits with low bias (Wellons 2018).
INLINE Words draws(Key key, uint32_t place) {
  Words x = (LANE + place) ^ key.first;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ key.second ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Dropout with probability dropped / 2^16. Texts or rows have keys; a dropout has a place in the sequence of each.
struct Dropout {
  const uint64_t *keys;  // null where nothing is dropped
  uint64_t place;
  uint32_t dropped;
  float factor;  // one over the probability to stay
  Key key(int64_t row, int head = 0) const { return dropped ? key_of(keys[row], place + head) : Key{}; }
};

// What is kept of block number `place`: all bits of a lane or none. The same on every processor.
INLINE void kept(Key key, uint32_t place, Dropout dropout, Words *keep) {
  for (int side = 0; side < SIDES / 2; ++side) {
    Words bits = draws(key, place * (BLOCK / 2) + side * LANES);
    keep[side] = (Words)((bits & 0xffff) >= dropout.dropped);
    keep[side + SIDES / 2] = (Words)((bits >> 16) >= dropout.dropped);
  }
}

// The same as bytes, 1 or 0.
INLINE void kept_bytes(Key key, uint32_t place, Dropout dropout, int8_t *bytes) {
  Words sides[SIDES];
  kept(key, place, dropout, sides);
  for (int side = 0; side < SIDES; ++side) write(bytes + side * LANES, __builtin_convertvector(sides[side] & 1, Bytes));
}

INLINE Floats only(Words kept, Floats values) { return bits_of<Floats>(bits_of<Words>(values) & kept); }
