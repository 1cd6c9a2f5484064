/* SIMDe's <immintrin.h> with AVX-512, tiles of AMX in plain C, and what SIMDe's portable code does not do as the
 * instructions do: its multiply-adds round twice, its conversion leaves NaN and what is beyond int32 to the compiler;
 * and what is missing.
 */
#ifndef EMULATED_IMMINTRIN_H
#define EMULATED_IMMINTRIN_H

#define QK_TARGET_BEGIN(...)
#define QK_TARGET_END
#define QK_ASM 0

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <simde/x86/avx512.h>
#include <stdlib.h>
#include <string.h>

#define _MM_FROUND_TO_NEAREST_INT SIMDE_MM_FROUND_TO_NEAREST_INT
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#define _mm512_stream_si512(place, a) _mm512_store_si512(place, a)

static inline __m512 fused(__m512 a, __m512 b, __m512 c, float sign)
{
    simde__m512_private a_ = simde__m512_to_private(a), b_ = simde__m512_to_private(b), c_ = simde__m512_to_private(c);
    for (int i = 0; i < 16; i++) c_.f32[i] = fmaf(sign * a_.f32[i], b_.f32[i], c_.f32[i]);
    return simde__m512_from_private(c_);
}

static inline __m512i rounded(__m512 a)
{
    simde__m512_private a_ = simde__m512_to_private(a);
    simde__m512i_private n;
    for (int i = 0; i < 16; i++) {
        const float v = nearbyintf(a_.f32[i]);
        n.i32[i] = v >= -0x1p31f && v < 0x1p31f ? (int32_t)v : INT32_MIN;
    }
    return simde__m512i_from_private(n);
}

static inline uint32_t equal_words(__m512i a, __m512i b)
{
    simde__m512i_private a_ = simde__m512i_to_private(a), b_ = simde__m512i_to_private(b);
    uint32_t mask = 0;
    for (int i = 0; i < 32; i++) mask |= (uint32_t)(a_.i16[i] == b_.i16[i]) << i;
    return mask;
}

static inline __mmask16 without_common(__m512i a, __m512i b)
{
    const simde__m512i_private a_ = simde__m512i_to_private(a), b_ = simde__m512i_to_private(b);
    __mmask16 mask = 0;
    for (int i = 0; i < 16; i++) mask |= (__mmask16)(!(a_.u32[i] & b_.u32[i])) << i;
    return mask;
}

static inline __m512i widened(__m128i a)
{
    simde__m128i_private a_ = simde__m128i_to_private(a);
    simde__m512i_private n;
    for (int i = 0; i < 16; i++) n.i32[i] = a_.u8[i];
    return simde__m512i_from_private(n);
}

static inline __m512i sign_widened(__m128i a)
{
    simde__m128i_private a_ = simde__m128i_to_private(a);
    simde__m512i_private n;
    for (int i = 0; i < 16; i++) n.i32[i] = a_.i8[i];
    return simde__m512i_from_private(n);
}

static inline __m128i emulated_low_bytes(__m512i a)
{
    simde__m512i_private a_ = simde__m512i_to_private(a);
    simde__m128i_private n;
    for (int i = 0; i < 16; i++) n.u8[i] = (uint8_t)a_.i32[i];
    return simde__m128i_from_private(n);
}

static inline __m512i shifted_right(__m512i a, __m512i by)
{
    simde__m512i_private a_ = simde__m512i_to_private(a), by_ = simde__m512i_to_private(by);
    for (int i = 0; i < 16; i++) a_.i32[i] >>= by_.i32[i];
    return simde__m512i_from_private(a_);
}

/* Finite float16: the exponent moves from a bias of 15 to one of 127. */
static inline float of_half(uint16_t h)
{
    const int fraction = h & 0x3ff, exponent = h >> 10 & 31;
    return ldexpf((float)(exponent ? fraction + 1024 : fraction), (exponent ? exponent : 1) - 25) * (h >> 15 ? -1 : 1);
}

static inline __m512 of_halves(__m256i a)
{
    simde__m256i_private a_ = simde__m256i_to_private(a);
    simde__m512_private v;
    for (int i = 0; i < 16; i++) v.f32[i] = of_half(a_.u16[i]);
    return simde__m512_from_private(v);
}

static inline __m512d widened_floats(__m256 a)
{
    simde__m256_private a_ = simde__m256_to_private(a);
    simde__m512d_private v;
    for (int i = 0; i < 8; i++) v.f64[i] = a_.f32[i];
    return simde__m512d_from_private(v);
}

static inline __m512d fused_doubles(__m512d a, __m512d b, __m512d c)
{
    simde__m512d_private a_ = simde__m512d_to_private(a), b_ = simde__m512d_to_private(b),
                         c_ = simde__m512d_to_private(c);
    for (int i = 0; i < 8; i++) c_.f64[i] = fma(a_.f64[i], b_.f64[i], c_.f64[i]);
    return simde__m512d_from_private(c_);
}

typedef simde__mmask8 __mmask8;

static inline __m256 of_halves8(__m128i a)
{
    simde__m128i_private a_ = simde__m128i_to_private(a);
    simde__m256_private v;
    for (int i = 0; i < 8; i++) v.f32[i] = of_half(a_.u16[i]);
    return simde__m256_from_private(v);
}

static inline __m256i rounded8(__m256 a)
{
    simde__m256_private a_ = simde__m256_to_private(a);
    simde__m256i_private n;
    for (int i = 0; i < 8; i++) {
        const float v = nearbyintf(a_.f32[i]);
        n.i32[i] = v >= -0x1p31f && v < 0x1p31f ? (int32_t)v : INT32_MIN;
    }
    return simde__m256i_from_private(n);
}

static inline __m256 fused8(__m256 a, __m256 b, __m256 c, float sign)
{
    simde__m256_private a_ = simde__m256_to_private(a), b_ = simde__m256_to_private(b), c_ = simde__m256_to_private(c);
    for (int i = 0; i < 8; i++) c_.f32[i] = fmaf(sign * a_.f32[i], b_.f32[i], c_.f32[i]);
    return simde__m256_from_private(c_);
}

static inline __m512i some_bytes(uint64_t some, const void *p)
{
    simde__m512i_private n = simde__m512i_to_private(simde_mm512_setzero_si512());
    for (int i = 0; i < 64; i++)
        if (some >> i & 1) n.u8[i] = ((const uint8_t *)p)[i];
    return simde__m512i_from_private(n);
}

static inline void store_bytes(void *p, uint64_t some, __m512i a)
{
    const simde__m512i_private n = simde__m512i_to_private(a);
    for (int i = 0; i < 64; i++)
        if (some >> i & 1) ((uint8_t *)p)[i] = n.u8[i];
}

static inline void store_lanes(void *p, __mmask8 some, __m256i a)
{
    const simde__m256i_private n = simde__m256i_to_private(a);
    for (int i = 0; i < 8; i++)
        if (some >> i & 1) ((int32_t *)p)[i] = n.i32[i];
}

/* Tiles of AMX, as the configuration in use lays them out. What a palette or a size forbids ends the program. */
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;
static _Thread_local tile_shapes tile_shape;
static _Thread_local uint8_t tiles[8][16][64];

static inline void load_shapes(const void *p)
{
    memcpy(&tile_shape, p, sizeof tile_shape);
    memset(tiles, 0, sizeof tiles);
    if (tile_shape.palette != 1) abort();
    for (int i = 0; i < 16; i++)
        if (tile_shape.rows[i] > (i < 8 ? 16 : 0) || tile_shape.bytes[i] > (i < 8 ? 64 : 0) ||
            !tile_shape.rows[i] != !tile_shape.bytes[i])
            abort();
}

static inline void clear_tile(int tile)
{
    if (!tile_shape.rows[tile]) abort();
    memset(tiles[tile], 0, sizeof *tiles);
}

static inline void load_tile(int tile, const void *from, ptrdiff_t stride)
{
    clear_tile(tile);
    for (int row = 0; row < tile_shape.rows[tile]; row++)
        memcpy(tiles[tile][row], (const char *)from + row * stride, tile_shape.bytes[tile]);
}

static inline void store_tile(int tile, void *to, ptrdiff_t stride)
{
    if (!tile_shape.rows[tile]) abort();
    for (int row = 0; row < tile_shape.rows[tile]; row++)
        memcpy((char *)to + row * stride, tiles[tile][row], tile_shape.bytes[tile]);
}

static inline void multiply_tiles(int sums, int a, int b)
{
    const tile_shapes *s = &tile_shape;
    if (s->rows[sums] != s->rows[a] || s->bytes[sums] != s->bytes[b] || s->bytes[a] != 4 * s->rows[b] || !s->rows[a])
        abort();
    for (int row = 0; row < s->rows[sums]; row++)
        for (int col = 0; col < s->bytes[sums]; col += 4) {
            uint32_t sum;
            memcpy(&sum, &tiles[sums][row][col], 4);
            for (int i = 0; i < s->bytes[a]; i++)
                sum += (uint32_t)(tiles[a][row][i] * (int8_t)tiles[b][i / 4][col + i % 4]);
            memcpy(&tiles[sums][row][col], &sum, 4);
        }
}

#define _tile_loadconfig(p) load_shapes(p)
#define _tile_release() memset(&tile_shape, 0, sizeof tile_shape)
#define _tile_zero(tile) clear_tile(tile)
#define _tile_loadd(tile, from, stride) load_tile(tile, from, (ptrdiff_t)(stride))
#define _tile_stored(tile, to, stride) store_tile(tile, to, (ptrdiff_t)(stride))
#define _tile_dpbusd(sums, a, b) multiply_tiles(sums, a, b)

#undef _mm512_fmadd_ps
#undef _mm512_fmadd_pd
#undef _mm512_fnmadd_ps
#undef _mm512_cvtps_epi32
#undef _mm512_cmpeq_epi16_mask
#define _mm512_maskz_loadu_epi8(some, p) some_bytes(some, p)
#define _mm256_maskz_loadu_epi8(some, p) simde_mm512_castsi512_si256(some_bytes((uint32_t)(some), p))
#define _mm_maskz_loadu_epi8(some, p) simde_mm512_castsi512_si128(some_bytes((uint16_t)(some), p))
#define _mm512_mask_storeu_epi8(p, some, a) store_bytes(p, some, a)
#define _mm256_mask_storeu_epi8(p, some, a) store_bytes(p, (uint32_t)(some), simde_mm512_castsi256_si512(a))
#define _mm_mask_storeu_epi8(p, some, a) store_bytes(p, (uint16_t)(some), simde_mm512_castsi128_si512(a))
#define _mm256_mask_storeu_epi32(p, some, a) store_lanes(p, some, a)
#define _mm512_fmadd_ps(a, b, c) fused(a, b, c, 1.0f)
#define _mm512_fmadd_pd(a, b, c) fused_doubles(a, b, c)
#define _mm512_fnmadd_ps(a, b, c) fused(a, b, c, -1.0f)
#define _mm512_cvtps_epi32(a) rounded(a)
#define _mm512_cmpeq_epi16_mask(a, b) equal_words(a, b)
#define _mm512_testn_epi32_mask(a, b) without_common(a, b)
#undef _mm512_srav_epi32
#define _mm512_srav_epi32(a, by) shifted_right(a, by)
#undef _mm512_reduce_ps
#define _mm512_reduce_ps(a, mode) _mm512_sub_ps(a, _mm512_roundscale_ps(a, mode))
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtph_ps
#define _mm512_cvtepu8_epi32(a) widened(a)
#define _mm512_cvtepi8_epi32(a) sign_widened(a)
#define _mm512_cvtepi32_epi8(a) emulated_low_bytes(a)
#define _mm512_cvtph_ps(a) of_halves(a)
#define _mm512_cvtps_pd(a) widened_floats(a)
#undef _mm256_fmadd_ps
#undef _mm256_cvtph_ps
#undef _mm256_fnmadd_ps
#undef _mm256_cvtps_epi32
#define _mm256_dpbusd_avx_epi32(c, a, b) _mm256_dpbusd_epi32(c, a, b)
#define _mm256_fmadd_ps(a, b, c) fused8(a, b, c, 1.0f)
#define _mm256_fnmadd_ps(a, b, c) fused8(a, b, c, -1.0f)
#define _mm256_cvtps_epi32(a) rounded8(a)
#define _mm256_cvtph_ps(a) of_halves8(a)

#endif
