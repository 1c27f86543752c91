//! Weight matrices in the layout of the kernels.
//!
//! Owns the conversion from GGUF bytes. Q8_0 rows are interleaved 16 at a time, so that a vector lane is an
//! output row: no horizontal sums, and the order of operations is the same for one token and for many.
//!
//! Float rows alternate 8 at a time in pieces of 16 columns; there a lane is a column modulo 16.
//!
//! ```text
//! group g = rows 16g..16g+15; block b = columns 32b..32b+31; byte of row 16g+i, column 32b+4j+e:
//! q[g * n_blocks + b][j][4 * i + e] = value ^ 0x80     (value + 128 as u8, the operand `vpdpbusd` wants)
//! ```

use std::fmt;

use crate::acts::ActKind;
use crate::f16;
use crate::k_matrix::{Q4K, Q5K, Q6K};
use crate::scalar::{LANES, Q4_K_BYTES, Q5_K_BYTES, Q6_K_BYTES, Q8_BLOCK, SUPER_BLOCK, SuperBlock};

/// Rows per interleaved group.
pub(crate) const GROUP: usize = 16;

/// Bytes of one GGUF `Q8_0` block: an f16 scale, then 32 i8.
const Q8_BLOCK_BYTES: usize = 2 + Q8_BLOCK;

/// Bytes of one GGUF `Q4_0` block: an f16 scale, then 32 times 4 bits.
const Q4_0_BLOCK_BYTES: usize = 2 + Q8_BLOCK / 2;

/// Number format of a matrix, as in the GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// Blocks of 32 i8 with an f16 scale.
    Q8_0,
    /// GGUF `Q4_K`: super-blocks of 256 with 4 bits a value.
    Q4K,
    /// GGUF `Q5_K`: super-blocks of 256 with 5 bits a value.
    Q5K,
    /// GGUF `Q6_K`: super-blocks of 256 with 6 bits a value.
    Q6K,
}

/// A weight matrix `[rows, k]`: `matmul` computes `y[row] = dot(row, x)`.
#[derive(Debug, Clone)]
pub struct Matrix {
    rows: usize,
    k: usize,
    pub(crate) data: Data,
}

#[derive(Debug, Clone)]
pub(crate) enum Data {
    F32(FloatWeights<f32>),
    F16(FloatWeights<u16>),
    Bf16(FloatWeights<u16>),
    Q8(Q8Weights),
    Q4K(Q4K),
    Q5K(Q5K),
    Q6K(Q6K),
}

/// Rows of float weights whose columns alternate in memory, so that a kernel working on them reads one stream.
pub(crate) const FLOAT_ROWS: usize = 8;

/// 8 rows x 16 columns of float weights.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Slab<T>(pub [[T; LANES]; FLOAT_ROWS]);

/// Float weights; rows and columns beyond the last are zero.
#[derive(Debug, Clone)]
pub(crate) struct FloatWeights<T> {
    /// Columns.
    pub k: usize,
    /// `[groups of 8 rows, ceil(k / 16)]`
    slabs: Vec<Slab<T>>,
}

impl<T: Copy + Default> FloatWeights<T> {
    /// From `[rows, k]` values of N bytes each.
    fn new<const N: usize>(rows: usize, k: usize, bytes: &[[u8; N]], read: impl Fn([u8; N]) -> T) -> Self {
        let n_slabs = k.div_ceil(LANES);
        let mut slabs = vec![Slab([[T::default(); LANES]; FLOAT_ROWS]); rows.div_ceil(FLOAT_ROWS) * n_slabs];
        for (row, bytes) in bytes.chunks_exact(k).enumerate() {
            let group = &mut slabs[row / FLOAT_ROWS * n_slabs..][..n_slabs];
            for (slab, bytes) in group.iter_mut().zip(bytes.chunks(LANES)) {
                for (value, bytes) in slab.0[row % FLOAT_ROWS].iter_mut().zip(bytes) {
                    *value = read(*bytes);
                }
            }
        }
        FloatWeights { k, slabs }
    }

    /// The slabs of rows `8g..8g + 8`: `ceil(k / 16)`.
    #[inline]
    pub fn group(&self, g: usize) -> &[Slab<T>] {
        let n_slabs = self.k.div_ceil(LANES);
        &self.slabs[g * n_slabs..(g + 1) * n_slabs]
    }

    /// Groups of 8 rows.
    #[inline]
    pub fn n_groups(&self) -> usize {
        self.slabs.len() / self.k.div_ceil(LANES)
    }

    /// The values of one row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = T> {
        self.group(row / FLOAT_ROWS).iter().flat_map(move |slab| slab.0[row % FLOAT_ROWS]).take(self.k)
    }
}

/// Interleaved `Q8_0` weights; rows beyond the last are zero.
#[derive(Debug, Clone)]
pub(crate) struct Q8Weights {
    pub n_blocks: usize,
    /// `[groups, n_blocks]`
    pub q: Vec<WeightBlock>,
    /// `[groups, n_blocks]`: f16 scales of the 16 rows.
    pub d: Vec<[u16; GROUP]>,
    /// Some weight is -128. Quantizers do not produce it, but a file may contain it, and the fast AVX2
    /// kernel cannot negate it.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX2 asks"))]
    pub has_min: bool,
}

/// 16 rows x 32 columns, cache line j holding columns 4j..4j+3 of every row.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct WeightBlock(pub [[u8; 64]; 8]);

impl WeightBlock {
    /// All weights 0.
    const ZERO: WeightBlock = WeightBlock([[0x80; 64]; 8]);

    /// The weight of row `i` of the group and column `column` of the block.
    #[inline]
    pub fn weight(&self, i: usize, column: usize) -> i8 {
        (self.0[column / 4][4 * i + column % 4] ^ 0x80) as i8
    }
}

impl Q8Weights {
    /// Blocks and scales of group `g`, `n_blocks` each.
    #[inline]
    pub fn group(&self, g: usize) -> (&[WeightBlock], &[[u16; GROUP]]) {
        let range = g * self.n_blocks..(g + 1) * self.n_blocks;
        (&self.q[range.clone()], &self.d[range])
    }
}

/// Bytes that are no matrix of the given shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MatrixError {
    /// A dimension is 0 or the product overflows.
    Shape {
        /// Output rows.
        rows: usize,
        /// Columns.
        k: usize,
    },
    /// `k` is no multiple of the format's block length.
    Columns {
        /// Columns.
        k: usize,
        /// Block length.
        block: usize,
    },
    /// The number of bytes does not match the shape.
    Length {
        /// Bytes the shape needs.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
}

impl fmt::Display for MatrixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { rows, k } => write!(f, "impossible matrix shape [{rows}, {k}]"),
            Self::Columns { k, block } => write!(f, "{k} columns are no multiple of the block length {block}"),
            Self::Length { expected, got } => write!(f, "matrix data has {got} bytes, its shape needs {expected}"),
        }
    }
}

impl std::error::Error for MatrixError {}

impl Matrix {
    /// From little-endian f32, row-major.
    pub fn from_f32(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        check_len(rows, k, 4, 1, bytes)?;
        let (values, _) = bytes.as_chunks::<4>();
        Ok(Matrix { rows, k, data: Data::F32(FloatWeights::new(rows, k, values, f32::from_le_bytes)) })
    }

    /// From little-endian f16, row-major.
    pub fn from_f16(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        check_len(rows, k, 2, 1, bytes)?;
        let (values, _) = bytes.as_chunks::<2>();
        Ok(Matrix { rows, k, data: Data::F16(FloatWeights::new(rows, k, values, u16::from_le_bytes)) })
    }

    /// From little-endian bfloat16, row-major.
    pub fn from_bf16(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        check_len(rows, k, 2, 1, bytes)?;
        let (values, _) = bytes.as_chunks::<2>();
        Ok(Matrix { rows, k, data: Data::Bf16(FloatWeights::new(rows, k, values, u16::from_le_bytes)) })
    }

    /// From GGUF `Q4_0` blocks, row-major; `k` must be a multiple of 32. A block is an f16 scale and 16 bytes, of which
    /// number i holds column i in its low and column i + 16 in its high four bits, as value + 8. The matrix is kept as
    /// `Q8_0` with the same values: the product is defined alike, so these are its bits, from 17/9 of the memory.
    pub fn from_q4_0(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        check_len(rows, k, Q4_0_BLOCK_BYTES, Q8_BLOCK, bytes)?;
        let mut wide = Vec::with_capacity(rows * k / Q8_BLOCK * Q8_BLOCK_BYTES);
        for [d0, d1, q @ ..] in bytes.as_chunks::<Q4_0_BLOCK_BYTES>().0 {
            wide.extend([*d0, *d1]);
            wide.extend(q.iter().map(|q| (q & 15).wrapping_sub(8)));
            wide.extend(q.iter().map(|q| (q >> 4).wrapping_sub(8)));
        }
        Matrix::from_q8_0(rows, k, &wide)
    }

    /// From GGUF `Q8_0` blocks, row-major; `k` must be a multiple of 32.
    pub fn from_q8_0(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        check_len(rows, k, Q8_BLOCK_BYTES, Q8_BLOCK, bytes)?;
        Ok(Matrix { rows, k, data: Data::Q8(interleave(rows, k / Q8_BLOCK, bytes)) })
    }

    /// From GGUF `Q4_K` super-blocks, row-major; `k` must be a multiple of 256.
    pub fn from_q4_k(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        check_len(rows, k, Q4_K_BYTES, SUPER_BLOCK, bytes)?;
        Ok(Matrix { rows, k, data: Data::Q4K(Q4K::new(rows, k / SUPER_BLOCK, bytes, SuperBlock::from_q4_k)) })
    }

    /// From GGUF `Q5_K` super-blocks, row-major; `k` must be a multiple of 256.
    pub fn from_q5_k(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        check_len(rows, k, Q5_K_BYTES, SUPER_BLOCK, bytes)?;
        Ok(Matrix { rows, k, data: Data::Q5K(Q5K::new(rows, k / SUPER_BLOCK, bytes, SuperBlock::from_q5_k)) })
    }

    /// From GGUF `Q6_K` super-blocks, row-major; `k` must be a multiple of 256.
    pub fn from_q6_k(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        check_len(rows, k, Q6_K_BYTES, SUPER_BLOCK, bytes)?;
        Ok(Matrix { rows, k, data: Data::Q6K(Q6K::new(rows, k / SUPER_BLOCK, bytes, SuperBlock::from_q6_k)) })
    }

    /// Output rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the length of an input.
    #[inline]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes in memory, all of which one matrix-vector product reads.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(w) => size_of_val(&w.slabs[..]),
            Data::F16(w) | Data::Bf16(w) => size_of_val(&w.slabs[..]),
            Data::Q8(w) => size_of_val(&w.q[..]) + size_of_val(&w.d[..]),
            Data::Q4K(w) => w.bytes(),
            Data::Q5K(w) => w.bytes(),
            Data::Q6K(w) => w.bytes(),
        }
    }

    /// Number format of the weights; [`Format::Q8_0`] also for a matrix that was loaded from `Q4_0`.
    pub fn format(&self) -> Format {
        match &self.data {
            Data::F32(_) => Format::F32,
            Data::F16(_) => Format::F16,
            Data::Bf16(_) => Format::Bf16,
            Data::Q8(_) => Format::Q8_0,
            Data::Q4K(_) => Format::Q4K,
            Data::Q5K(_) => Format::Q5K,
            Data::Q6K(_) => Format::Q6K,
        }
    }

    /// The form of activations the product with this matrix is defined on.
    pub fn act_kind(&self) -> ActKind {
        match &self.data {
            Data::F32(_) | Data::F16(_) | Data::Bf16(_) => ActKind::F32,
            Data::Q8(_) => ActKind::Q8,
            Data::Q4K(_) | Data::Q5K(_) | Data::Q6K(_) => ActKind::Q8K,
        }
    }

    /// Writes row `row` as f32: exact in floats, `Q8_0` (q * d has at most 19 significant bits) and `Q6_K`; `Q4_K` and
    /// `Q5_K` round once, see [`SuperBlock::to_f32`].
    ///
    /// # Panics
    /// If `row` is not below `rows` or `out` is not `[k]`.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.k);
        match &self.data {
            Data::F32(w) => out.iter_mut().zip(w.row(row)).for_each(|(out, w)| *out = w),
            Data::F16(w) => out.iter_mut().zip(w.row(row)).for_each(|(out, w)| *out = f16::to_f32(w)),
            Data::Bf16(w) => out.iter_mut().zip(w.row(row)).for_each(|(out, w)| *out = f16::bf16_to_f32(w)),
            Data::Q8(w) => {
                let (q, d) = w.group(row / GROUP);
                let i = row % GROUP;
                let (blocks, _) = out.as_chunks_mut::<Q8_BLOCK>();
                for ((out, q), d) in blocks.iter_mut().zip(q).zip(d) {
                    let d = f16::to_f32(d[i]);
                    for (column, out) in out.iter_mut().enumerate() {
                        *out = f32::from(q.weight(i, column)) * d;
                    }
                }
            }
            Data::Q4K(w) => w.row_f32(row, out),
            Data::Q5K(w) => w.row_f32(row, out),
            Data::Q6K(w) => w.row_f32(row, out),
        }
    }
}

fn check_len(rows: usize, k: usize, unit_bytes: usize, unit: usize, bytes: &[u8]) -> Result<(), MatrixError> {
    if !k.is_multiple_of(unit) {
        return Err(MatrixError::Columns { k, block: unit });
    }
    let expected = rows.checked_mul(k).filter(|&n| n > 0).and_then(|n| (n / unit).checked_mul(unit_bytes));
    let Some(expected) = expected else {
        return Err(MatrixError::Shape { rows, k });
    };
    if bytes.len() != expected {
        return Err(MatrixError::Length { expected, got: bytes.len() });
    }
    Ok(())
}

fn interleave(rows: usize, n_blocks: usize, bytes: &[u8]) -> Q8Weights {
    let n_groups = rows.div_ceil(GROUP);
    let mut q = vec![WeightBlock::ZERO; n_groups * n_blocks];
    let mut d = vec![[0u16; GROUP]; n_groups * n_blocks];
    let mut has_min = false;
    let (blocks, _) = bytes.as_chunks::<Q8_BLOCK_BYTES>();
    for (row, blocks) in blocks.chunks_exact(n_blocks).enumerate() {
        let (g, i) = (row / GROUP, row % GROUP);
        let range = g * n_blocks..(g + 1) * n_blocks;
        for ((q, d), block) in q[range.clone()].iter_mut().zip(&mut d[range]).zip(blocks) {
            d[i] = u16::from_le_bytes([block[0], block[1]]);
            let (fours, _) = block[2..].as_chunks::<4>();
            for (line, four) in q.0.iter_mut().zip(fours) {
                has_min |= four.contains(&0x80);
                line[4 * i..4 * i + 4].copy_from_slice(&four.map(|w| w ^ 0x80));
            }
        }
    }
    Q8Weights { n_blocks, q, d, has_min }
}
