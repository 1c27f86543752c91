//! Weight matrices in the layout of the kernels.
//!
//! What goes where is here, the conversion from GGUF bytes in `pack.rs`. Q8_0 rows are interleaved 16 at a time, so that a vector lane is an
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
use crate::pack::Packing;
use crate::scalar::{LANES, Q8_BLOCK, SUPER_BLOCK};
use crate::storage::{Owner, Plain, Storage};
use crate::team::Team;

/// Rows per interleaved group.
pub(crate) const GROUP: usize = 16;

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
    /// Blocks of 32 times 4 bits with an f16 scale; kept as `Q8_0`.
    Q4_0,
    /// GGUF `Q4_K`: super-blocks of 256 with 4 bits a value.
    Q4K,
    /// GGUF `Q5_K`: super-blocks of 256 with 5 bits a value.
    Q5K,
    /// GGUF `Q6_K`: super-blocks of 256 with 6 bits a value.
    Q6K,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 8] =
        [Format::F32, Format::F16, Format::Bf16, Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q5K, Format::Q6K];
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

impl Data {
    /// The sections of a packed matrix; `None` if they are not aligned.
    fn new(packing: Packing, has_min: bool, owner: &Owner, start: usize) -> Option<Data> {
        let [first, second] = packing.sections();
        let n = packing.n_groups();
        let first = (start, first.group_bytes * n);
        let second = (start + second.start, second.group_bytes * n);
        fn part<T: Plain>(owner: &Owner, (start, len): (usize, usize)) -> Option<Storage<T>> {
            Storage::new(owner, start, len)
        }
        let (k, blocks) = (packing.k(), packing.k() / SUPER_BLOCK);
        Some(match packing.format() {
            Format::F32 => Data::F32(FloatWeights { k, slabs: part(owner, first)? }),
            Format::F16 => Data::F16(FloatWeights { k, slabs: part(owner, first)? }),
            Format::Bf16 => Data::Bf16(FloatWeights { k, slabs: part(owner, first)? }),
            Format::Q8_0 | Format::Q4_0 => {
                let (q, d) = (part(owner, first)?, part(owner, second)?);
                Data::Q8(Q8Weights { n_blocks: k / Q8_BLOCK, q, d, has_min })
            }
            Format::Q4K => Data::Q4K(Q4K::new(blocks, part(owner, first)?)),
            Format::Q5K => Data::Q5K(Q5K::new(blocks, part(owner, first)?)),
            Format::Q6K => Data::Q6K(Q6K::new(blocks, part(owner, first)?)),
        })
    }
}

/// Rows of float weights whose columns alternate in memory, so that a kernel working on them reads one stream.
pub(crate) const FLOAT_ROWS: usize = 8;

/// 8 rows x 16 columns of float weights.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Slab<T>(pub [[T; LANES]; FLOAT_ROWS]);

#[expect(unsafe_code, reason = "states a property of the type")]
// SAFETY: 512 or 256 bytes of plain values, multiples of its alignment: no padding.
unsafe impl<T: Plain> Plain for Slab<T> {}

/// Float weights; rows and columns beyond the last are zero.
#[derive(Debug, Clone)]
pub(crate) struct FloatWeights<T> {
    /// Columns.
    pub k: usize,
    /// `[groups of 8 rows, ceil(k / 16)]`
    slabs: Storage<Slab<T>>,
}

impl<T: Copy> FloatWeights<T> {
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
    pub q: Storage<WeightBlock>,
    /// `[groups, n_blocks]`: f16 scales of the 16 rows.
    pub d: Storage<[u16; GROUP]>,
    /// Some weight is -128. Quantizers do not produce it, but a file may contain it, and the fast AVX2
    /// kernel cannot negate it.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX2 asks"))]
    pub has_min: bool,
}

/// 16 rows x 32 columns, cache line j holding columns 4j..4j+3 of every row.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct WeightBlock(pub [[u8; 64]; 8]);

#[expect(unsafe_code, reason = "states a property of the type")]
// SAFETY: 512 bytes, a multiple of its alignment: no padding.
unsafe impl Plain for WeightBlock {}

impl WeightBlock {
    /// All weights 0.
    pub const ZERO: WeightBlock = WeightBlock([[0x80; 64]; 8]);

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
    /// Packed bytes that do not start at a multiple of 64.
    Unaligned,
}

impl fmt::Display for MatrixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { rows, k } => write!(f, "impossible matrix shape [{rows}, {k}]"),
            Self::Columns { k, block } => write!(f, "{k} columns are no multiple of the block length {block}"),
            Self::Unaligned => write!(f, "packed weights do not start at a multiple of 64 bytes"),
            Self::Length { expected, got } => write!(f, "matrix data has {got} bytes, its shape needs {expected}"),
        }
    }
}

impl std::error::Error for MatrixError {}

impl Matrix {
    /// From little-endian f32, row-major. All of these work on one thread; [`Matrix::pack`] works on several.
    pub fn from_f32(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        Matrix::from_bytes(Format::F32, rows, k, bytes)
    }

    /// From little-endian f16, row-major.
    pub fn from_f16(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        Matrix::from_bytes(Format::F16, rows, k, bytes)
    }

    /// From little-endian bfloat16, row-major.
    pub fn from_bf16(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        Matrix::from_bytes(Format::Bf16, rows, k, bytes)
    }

    /// From GGUF `Q4_0` blocks, row-major; `k` must be a multiple of 32. A block is an f16 scale and 16 bytes, of which
    /// number i holds column i in its low and column i + 16 in its high four bits, as value + 8. The matrix is kept as
    /// `Q8_0` with the same values: the product is defined alike, so these are its bits, from 17/9 of the memory.
    pub fn from_q4_0(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        Matrix::from_bytes(Format::Q4_0, rows, k, bytes)
    }

    /// From GGUF `Q8_0` blocks, row-major; `k` must be a multiple of 32.
    pub fn from_q8_0(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        Matrix::from_bytes(Format::Q8_0, rows, k, bytes)
    }

    /// From GGUF `Q4_K` super-blocks, row-major; `k` must be a multiple of 256.
    pub fn from_q4_k(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        Matrix::from_bytes(Format::Q4K, rows, k, bytes)
    }

    /// From GGUF `Q5_K` super-blocks, row-major; `k` must be a multiple of 256.
    pub fn from_q5_k(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        Matrix::from_bytes(Format::Q5K, rows, k, bytes)
    }

    /// From GGUF `Q6_K` super-blocks, row-major; `k` must be a multiple of 256.
    pub fn from_q6_k(rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        Matrix::from_bytes(Format::Q6K, rows, k, bytes)
    }

    fn from_bytes(format: Format, rows: usize, k: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        Matrix::pack(&Team::new(1), Packing::new(format, rows, k)?, &[bytes])
    }

    /// What [`Packing::pack`] made, in `owner`'s bytes from `start` on, which must be a multiple of 64 in memory; the
    /// matrix keeps `owner` alive. Any bytes are a matrix, so the caller has to know that they are the right ones.
    ///
    /// # Errors
    /// [`MatrixError::Length`] and [`MatrixError::Unaligned`].
    pub fn from_packed(packing: Packing, has_min: bool, owner: &Owner, start: usize) -> Result<Matrix, MatrixError> {
        let (rows, k, expected) = (packing.rows(), packing.k(), packing.bytes());
        let bytes = (**owner).as_ref();
        let got = bytes.len().saturating_sub(start);
        if got < expected {
            return Err(MatrixError::Length { expected, got });
        }
        let data = Data::new(packing, has_min, owner, start).ok_or(MatrixError::Unaligned)?;
        Ok(Matrix { rows, k, data })
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
    /// `Q5_K` round once, see [`crate::scalar::SuperBlock::to_f32`].
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
