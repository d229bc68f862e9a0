// Products of matrices that fit into a core's own cache, in the arithmetic of the attention kernels.
//
// C[M][N] = A[M][K] B[K][N], or added to it, with C in float32. A lies row by row. B lies in panels of a register's columns, and
// in a panel one unit of 32 bits after the other: units hold one float32, or a pair of bf16 from neighbouring rows, which is
// what AVX512-BF16 and AMX multiply at once. M is a multiple of 16, N of 32, K of 32.

#pragma once

#include <vector>

#include "vectors.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

// How many numbers of a type stand in a unit.
template <class T>
constexpr int PER_UNIT = 4 / sizeof(T);

// What numbers that are stored as T are multiplied as: bf16 needs hardware for it.
template <class T>
struct Arithmetic {
  typedef T Type;
};
#ifndef __AVX512BF16__
template <>
struct Arithmetic<bf16> {
  typedef float Type;
};
#endif

INLINE Floats multiply_add(Floats sum, float a, Words b) { return sum + a * bits_of<Floats>(b); }

#ifdef __AVX512BF16__
INLINE Floats multiply_add(Floats sum, uint32_t pair, Words b) {
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(pair)), (__m512bh)b);
}
#endif

template <class T>
struct UnitOf {
  typedef float Type;
};
template <>
struct UnitOf<bf16> {
  typedef uint32_t Type;
};

template <class T>
void multiply(int M, int N, int K, const T *A, int row, const uint32_t *B, float *C, int ldc, bool add) {
#ifdef __AVX512F__
  constexpr int ROWS = 8;  // so that all sums stay in registers
#else
  constexpr int ROWS = 4;
#endif
  const int units = K / PER_UNIT<T>;
  for (int n = 0; n < N; n += 2 * LANES) {
    const uint32_t *left = B + n * units, *right = left + LANES * units;
    for (int m = 0; m < M; m += ROWS) {
      Floats sums[ROWS][2];
      for (int r = 0; r < ROWS; ++r)
        for (int side = 0; side < 2; ++side)
          sums[r][side] = add ? load(C + (m + r) * ldc + n + side * LANES) : Floats{};
      for (int k = 0; k < units; ++k) {
        Words b0 = read<Words>(left + k * LANES), b1 = read<Words>(right + k * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
          auto a = read<typename UnitOf<T>::Type>(A + (m + r) * row + k * PER_UNIT<T>);
          sums[r][0] = multiply_add(sums[r][0], a, b0);
          sums[r][1] = multiply_add(sums[r][1], a, b1);
        }
      }
      for (int r = 0; r < ROWS; ++r)
        for (int side = 0; side < 2; ++side) store(C + (m + r) * ldc + n + side * LANES, sums[r][side]);
    }
  }
}

#ifdef __AMX_BF16__

// Tiles 0 to 3 are sums, 4 and 5 rows of A, 6 and 7 panels of B; each of 16 rows of 64 bytes.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct Tiles {
  Tiles() {
    static const TileShapes shapes;
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }
};

// Linux gives the tiles' registers to a process that asks for them.
INLINE bool allowed() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0; }

// What else is done at each step of a sum, while the tiles multiply.
struct Nothing {
  INLINE void operator()(int) const {}
};

template <bool TWO, class Meanwhile = Nothing>
INLINE void multiply_tiles(int units, const bf16 *A, int row, const uint32_t *B, float *C, int ldc, bool add,
                           Meanwhile meanwhile = {}) {
  const int down = 16 * ldc, right = LANES;
  if (add) {
    _tile_loadd(0, C, 4 * ldc);
    _tile_loadd(1, C + right, 4 * ldc);
    if (TWO) _tile_loadd(2, C + down, 4 * ldc);
    if (TWO) _tile_loadd(3, C + down + right, 4 * ldc);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (TWO) _tile_zero(2);
    if (TWO) _tile_zero(3);
  }
  for (int k = 0; k < units; k += 16) {
    _tile_loadd(6, B + k * LANES, 64);  // each load right before what waits for it alone
    _tile_loadd(4, A + 2 * k, 2 * row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, B + (units + k) * LANES, 64);
    _tile_dpbf16ps(1, 4, 7);
    if (TWO) {
      _tile_loadd(5, A + 16 * row + 2 * k, 2 * row);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    meanwhile(k / 16);
  }
  _tile_stored(0, C, 4 * ldc);
  _tile_stored(1, C + right, 4 * ldc);
  if (TWO) _tile_stored(2, C + down, 4 * ldc);
  if (TWO) _tile_stored(3, C + down + right, 4 * ldc);
}

template <>
inline void multiply(int M, int N, int K, const bf16 *A, int row, const uint32_t *B, float *C, int ldc, bool add) {
  const int units = K / 2;
  for (int n = 0; n < N; n += 32) {
    int m = 0;
    for (; m + 32 <= M; m += 32)
      multiply_tiles<true>(units, A + m * row, row, B + n * units, C + m * ldc + n, ldc, add);
    if (m < M) multiply_tiles<false>(units, A + m * row, row, B + n * units, C + m * ldc + n, ldc, add);
  }
}

#else

struct Tiles {
  Tiles() {}
  ~Tiles() {}
};

INLINE bool allowed() { return true; }

#endif

// LANES x LANES units, row by row, to their transpose.
INLINE void transpose_units(const uint32_t *from, int from_row, uint32_t *to, int to_row) {
#ifdef __AVX512F__
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * from_row);
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(to + i * to_row, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
    _mm512_storeu_si512(to + (4 + i) * to_row, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88));
    _mm512_storeu_si512(to + (8 + i) * to_row, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
    _mm512_storeu_si512(to + (12 + i) * to_row, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd));
  }
#else
  __m256i r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = read<__m256i>(from + i * from_row);
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    write(to + i * to_row, _mm256_permute2x128_si256(r[i], r[4 + i], 0x20));
    write(to + (4 + i) * to_row, _mm256_permute2x128_si256(r[i], r[4 + i], 0x31));
  }
#endif
}

template <class A>
const uint32_t *units(const A *from) {
  return reinterpret_cast<const uint32_t *>(from);
}

INLINE Words pair(Halves low, Halves high) {
  return __builtin_convertvector(low, Words) | (__builtin_convertvector(high, Words) << 16);
}

// B whose columns are the rows of X, so that a product runs over the columns of X.
template <class A>
void panels_of_rows(const A *X, int rows, int columns, uint32_t *to) {
  const int across = columns / PER_UNIT<A>;
  for (int r = 0; r < rows; r += LANES)
    for (int u = 0; u < across; u += LANES)
      transpose_units(units(X) + r * across + u, across, to + (r * across + u * LANES), LANES);
}

// B whose columns are those of X, so that a product runs over `depth` rows, of which X has some.
inline void panels_of_columns(const float *X, int rows, int columns, uint32_t *to, int depth) {
  for (int c = 0; c < columns; c += LANES)
    for (int r = 0; r < rows; ++r) write(to + int64_t(c) * depth + r * LANES, load(X + r * columns + c));
}

inline void panels_of_columns(const bf16 *X, int rows, int columns, uint32_t *to, int depth) {
  for (int c = 0; c < columns; c += BLOCK)
    for (int r = 0; r < rows; r += 2)
      for (int e = c; e < c + BLOCK; e += LANES)
        write(to + int64_t(e) * (depth / 2) + r / 2 * LANES,
              pair(read<Halves>(X + r * columns + e), read<Halves>(X + (r + 1) * columns + e)));
}

INLINE int whole_blocks(int length) { return (length + BLOCK - 1) / BLOCK * BLOCK; }

// What this thread computes with; it grows to the most that was asked for, and stays.
class Space {
  std::vector<char> held;
  size_t used = 0;

 public:
  void begin(size_t bytes) {
    if (held.size() < bytes + 64) held.resize(bytes + 64);
    used = (64 - reinterpret_cast<uintptr_t>(held.data()) % 64) % 64;
  }
  template <class T>
  T *take(size_t count) {
    T *here = reinterpret_cast<T *>(held.data() + used);
    used += (count * sizeof(T) + 63) / 64 * 64;
    return here;
  }
};

inline thread_local Space space;
