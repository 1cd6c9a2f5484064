/* What an instruction set may set before it includes the loops of this folder, with what they do if it does not. */
#ifndef QK_TARGET_H
#define QK_TARGET_H

/* Of the loops here a file takes those of the families that it has. */
#pragma GCC diagnostic ignored "-Wunused-function"

/* Rows (at most) and columns of a tile of products, and codes of k in a step of a panel; bytes of a code of a in gemm8.
 */
#ifndef MR
#define MR 4
#define NR 16
#define KR 4
#endif
#ifndef A_BYTES
#define A_BYTES 1
#endif

/* Rows of the tiles of each family. */
#ifndef GEMM8_MR
#define GEMM8_MR MR
#endif
#ifndef GEMM4_MR
#define GEMM4_MR 4
#endif
#ifndef GEMM4_CODES_ROWS
#define GEMM4_CODES_ROWS 0
#endif
#ifndef BLOCKS8_MR
#define BLOCKS8_MR MR
#endif
#ifndef GEMM16_MR
#define GEMM16_MR MR
#endif
#ifndef GEMMF16_MR
#define GEMMF16_MR MR
#endif

#ifndef FOLDED_PAIRS
#define FOLDED_PAIRS 0
#endif
#ifndef FOLDED_MR
#define FOLDED_MR 4
#endif
#ifndef UNFOLD_ROWS
#define UNFOLD_ROWS 0
#define UNFOLD_PANEL NULL
#endif

/* What panels of gemm8 hold b' flipped by: -128 where tiles multiply unsigned codes. */
#ifndef PANEL_FLIP
#define PANEL_FLIP 0
#endif

/* What the tile of blocks8 finds codes of a flipped by. */
#ifndef BLOCKS8_FLIP
#define BLOCKS8_FLIP 0
#endif

/* Bytes of rows that a task of gemm8 takes; 0: as usual. */
#ifndef GEMM8_BLOCK_BYTES
#define GEMM8_BLOCK_BYTES 0
#endif

/* Rows of a kernel that a step of a depthwise convolution takes. */
#ifndef DEPTHWISE_TAPS
#define DEPTHWISE_TAPS 2
#endif

/* peak.h, which comes last, has defaults of its own: PEAK_VECTOR, PEAK_PRODUCTS and PEAK_IN_TWO tell the step whose
 * peak it is; QK_KEEP comes from the target.h of x86 or ARM. */

/* Operations that may be absent (kernels/families). */
#ifndef DEPTHWISE_CODES
#define DEPTHWISE_CODES NULL
#endif
#ifndef DEPTHWISE_PASS
#define DEPTHWISE_PASS NULL
#endif
#ifndef GEMM8_ASK_ROWS
#define GEMM8_ASK_ROWS MR
#endif
#ifndef GEMM8_BEGIN
#define GEMM8_BEGIN NULL
#define GEMM8_END NULL
#endif
#ifndef BLOCKS8_BEGIN
#define BLOCKS8_BEGIN NULL
#define BLOCKS8_END NULL
#endif
#ifndef GEMM8_WHOLE_TILE
#define GEMM8_WHOLE_TILE NULL
#endif
#ifndef GEMM8_WINDOW_TILE
#define GEMM8_WINDOW_TILE NULL
#endif
#ifndef GEMM8_HALF_TILE
#define GEMM8_HALF_TILE NULL
#endif
#ifndef GEMM8_HALF_CODES
#define GEMM8_HALF_CODES NULL
#endif
#ifndef GEMM8_FAR_TILE
#define GEMM8_FAR_TILE NULL
#endif
#ifndef GEMM8_WIDE_TILE
#define GEMM8_WIDE_TILE NULL
#define GEMM8_WIDEN_PANEL NULL
#endif
#ifndef GEMM4_LEVELS_ROWS
#define GEMM4_LEVELS_ROWS 0
#define GEMM4_TO_BYTES NULL
#define COLUMN_LEVELS_TO_BYTES NULL
#endif
#ifndef LOW_TILE
#define LOW_TILE NULL
#define LOW_LEVELS_ROWS 0
#endif
#ifndef LOW_CODES_ROWS
#define LOW_CODES_ROWS 0
#endif
#ifndef BLOCKS8_PREPARE_ROW
#define BLOCKS8_PREPARE_ROW NULL
#endif
#ifndef PQ_TURN
#define PQ_TURN NULL
#define PQ_SPLIT NULL
#define PQ_PASS NULL
#define PQ_PASS_PACKED NULL
#endif
#ifndef PQ_PASS_ROWS
#define PQ_PASS_ROWS NULL
#define PQ_PASSES_ROWS NULL
#endif

/* Whether a fused multiply-add is one instruction; else float results avoid it where another way has the same bits. */
#ifndef HAVE_FMA
#define HAVE_FMA 0
#endif

/* Bytes of a vector: so many points of k-means, or queries, are seen at a time. */
#ifndef VECTOR
#define VECTOR 16
#endif

/* These are set or not set:
 *
 *     GROUP               elements that quantize_group and quantize_halves see at a time (elementwise.h)
 *     HAVE_BRACKETED_CODES  bracketed_codes (elementwise.h)
 *     HAVE_COPY_PAST_CACHES  copy_past_caches: by stores that the caches do not see (elementwise.h)
 *     HAVE_FINITE_BOUNDS  finite_bounds: the same as minmax_f32, or 0 if a value may not be finite (elementwise.h)
 *     GRAD_VECTOR         columns of a vector, for grad_lanes and grad_whole_columns: by reciprocals (fake_grad.h)
 *     HAVE_RANDOM_VECTORS random_vectors: stochastic rounding of whole vectors, to 8 bits or floats (stochastic.h)
 *     HAVE_RANDOM_LINES   random_lines: random numbers of RANDOM_LINE elements at a time (stochastic.h)
 *     HAVE_WIDEN          widen_span: SPAN 8-bit codes to int32 (elementwise.h)
 *     HAVE_LEVELS16       tables of 16 levels in registers: nodes16, load_nodes16, encode16, decode16, ... (codebook.h)
 *     GROUP16             elements that these see at a time
 *     HAVE_NONZERO_GROUP  nonzero_group: GROUP16 values, of which those that are not 0 are stored; room for all of them
 *                         (histogram.h)
 *     ROWS_OF_BLOCKS      ROWS_4 or ROWS_6: for so many rows there is blocks_of (blocks.h)
 *     HAVE_GELU_RUN       gelu_run (gemm8.h)
 *     HAVE_COLUMN_SUMS    column_sums (gemm8.h)
 *     HAVE_TAP_STARTS     tap_starts: what sums of four taps start from, where multiply_add lacks something
 *                         (depthwise.h)
 *     HAVE_LOW_TO_BYTES   low_to_bytes (low_bits.h)
 *     HAVE_ABSMAX         absmax_f32 (layers.h)
 *     HAVE_SYMMETRIC_CODES  symmetric_codes_f32 (layers.h)
 *     HAVE_WEIGHT_CODES   weight_codes: softmax weights of scores (layers.h)
 *     HAVE_FLOAT_TILE     float_tile: sums to floats, but for SiLU (gemm8.h)
 *     HAVE_PLAIN_TILE     plain_tile: sums to codes where a tile is plain (gemm8.h)
 *     HAVE_GELU_CODES     gelu_codes: sums to codes after GELU, half to even, by a reciprocal, if it can
 *                         (gemm8.h)
 *     HAVE_MULTIPLY_TILE  multiply_tile: sums to codes by multipliers (gemm8.h)
 *     HAVE_CODE_GROUPS    table_groups, pair_groups, ...: groups of codes (integer_layers.h)
 *     HAVE_TABLE_GROUPS   table_groups and weight_groups other than those of x86/integer_layers.h
 *     HAVE_LANES          the operations of k-means on a vector, for which lanes.h has plain C
 *
 * Each function has the arguments of the loop that it replaces or serves, handles what it can and gives equal bits. */

#endif
