//! From the bytes of a GGUF tensor to the layout of the kernels.
//!
//! Owns where each value goes ([`crate::matrix`] and [`crate::k_matrix`] say what the layouts are) and nothing about
//! where the result is kept. A packed matrix is one piece of bytes, group of rows after group of rows, in one or two
//! sections; any range of groups can be packed on its own, so a matrix of gigabytes passes through a small buffer.

use std::ops::Range;
use std::sync::OnceLock;

use crate::checksum::checksum;
use crate::k_matrix::KBlock;
use crate::matrix::{FLOAT_ROWS, Format, GROUP, Matrix, MatrixError, Slab, WeightBlock};
use crate::scalar::{LANES, Q4_K_BYTES, Q5_K_BYTES, Q6_K_BYTES, Q8_BLOCK, SUPER_BLOCK};
use crate::storage::{AlignedBytes, Plain, cast_mut};
use crate::team::Team;

/// Bytes of one GGUF `Q8_0` block: an f16 scale, then 32 i8.
const Q8_0_BYTES: usize = 2 + Q8_BLOCK;
/// Bytes of one GGUF `Q4_0` block: an f16 scale, then 32 times 4 bits.
const Q4_0_BYTES: usize = 2 + Q8_BLOCK / 2;

/// Packed bytes that a thread makes at a time.
const JOB_BYTES: usize = 256 << 10;

/// How a matrix of a format is packed. Its sizes do not overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    format: Format,
    rows: usize,
    k: usize,
}

/// A part of the packed bytes: each group of rows has `group_bytes` of it, one group after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// From the start of the matrix.
    pub start: usize,
    /// Of one group.
    pub group_bytes: usize,
}

/// The rows of a matrix in their file format: of one tensor, or of several below each other.
#[derive(Debug, Clone)]
pub struct SourceRows<'a> {
    row_bytes: usize,
    parts: Vec<&'a [u8]>,
}

impl<'a> SourceRows<'a> {
    /// `parts` hold whole rows of `packing`, all of them in all.
    ///
    /// # Errors
    /// [`MatrixError::Length`] if they do not.
    pub fn new(packing: &Packing, parts: &[&'a [u8]]) -> Result<Self, MatrixError> {
        let row_bytes = packing.row_bytes();
        let (expected, got) = (packing.rows * row_bytes, parts.iter().map(|part| part.len()).sum());
        if expected != got || parts.iter().any(|part| part.len() % row_bytes != 0) {
            return Err(MatrixError::Length { expected, got });
        }
        Ok(SourceRows { row_bytes, parts: parts.to_vec() })
    }

    /// The bytes of rows `rows`, part by part.
    pub fn slices(&self, rows: Range<usize>) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (mut from, mut len) = (rows.start * self.row_bytes, rows.len() * self.row_bytes);
        self.parts.clone().into_iter().filter_map(move |part| {
            let start = from.min(part.len());
            let slice = &part[start..(start + len).min(part.len())];
            from -= start;
            len -= slice.len();
            (!slice.is_empty()).then_some(slice)
        })
    }

    fn row(&self, row: usize) -> &'a [u8] {
        let mut at = row * self.row_bytes;
        for part in &self.parts {
            if at < part.len() {
                return &part[at..at + self.row_bytes];
            }
            at -= part.len();
        }
        unreachable!("the parts have all rows")
    }
}

impl Packing {
    /// Of a matrix `[rows, k]` whose file format is `format`.
    ///
    /// # Errors
    /// A shape that cannot be, or `k` no multiple of the format's block length.
    pub fn new(format: Format, rows: usize, k: usize) -> Result<Packing, MatrixError> {
        let block = block(format).0;
        if !k.is_multiple_of(block) {
            return Err(MatrixError::Columns { k, block });
        }
        // Neither form has more than 8 bytes a value, rows padded to 16 and columns to 16.
        let values = rows.checked_next_multiple_of(GROUP).zip(k.checked_next_multiple_of(LANES));
        match values.and_then(|(rows, k)| rows.checked_mul(k)).and_then(|n| n.checked_mul(8)) {
            Some(1..) if rows > 0 && k > 0 => Ok(Packing { format, rows, k }),
            _ => Err(MatrixError::Shape { rows, k }),
        }
    }

    /// Format in the file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Output rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes of one row in the file.
    pub fn row_bytes(&self) -> usize {
        let (values, bytes) = block(self.format);
        self.k / values * bytes
    }

    /// Rows of a group.
    pub fn group_rows(&self) -> usize {
        match self.format {
            Format::F32 | Format::F16 | Format::Bf16 => FLOAT_ROWS,
            _ => GROUP,
        }
    }

    /// Groups of rows; the last may have rows that the matrix does not have.
    pub fn n_groups(&self) -> usize {
        self.rows.div_ceil(self.group_rows())
    }

    /// Packed bytes of one group, all sections.
    pub fn group_bytes(&self) -> usize {
        self.sections().iter().map(|section| section.group_bytes).sum()
    }

    /// Packed bytes.
    pub fn bytes(&self) -> usize {
        self.group_bytes() * self.n_groups()
    }

    /// The sections of the whole matrix; the second is empty except for `Q8_0` and `Q4_0`, where it has the scales.
    pub fn sections(&self) -> [Section; 2] {
        let slabs = self.k.div_ceil(LANES);
        let blocks = self.k / SUPER_BLOCK;
        let (first, second) = match self.format {
            Format::F32 => (slabs * size_of::<Slab<f32>>(), 0),
            Format::F16 | Format::Bf16 => (slabs * size_of::<Slab<u16>>(), 0),
            Format::Q8_0 | Format::Q4_0 => {
                let blocks = self.k / Q8_BLOCK;
                (blocks * size_of::<WeightBlock>(), blocks * size_of::<[u16; GROUP]>())
            }
            Format::Q4K => (blocks * size_of::<KBlock<0, 8, 8>>(), 0),
            Format::Q5K => (blocks * size_of::<KBlock<8, 8, 8>>(), 0),
            Format::Q6K => (blocks * size_of::<KBlock<16, 16, 0>>(), 0),
        };
        let start = first * self.n_groups();
        [Section { start: 0, group_bytes: first }, Section { start, group_bytes: second }]
    }

    /// Packs groups `groups` into the start of `out`: the first section of all of them, then the second. Every byte is
    /// written. Returns whether some `Q8_0` weight is -128, which [`Matrix::from_packed`] has to know.
    ///
    /// # Panics
    /// If `out` is too short, or the groups are not there.
    pub fn pack(&self, team: &Team, source: &SourceRows<'_>, groups: Range<usize>, out: &mut AlignedBytes) -> bool {
        assert!(groups.end <= self.n_groups(), "groups {groups:?} of {}", self.n_groups());
        let [first, second] = self.sections().map(|section| section.group_bytes);
        let (packed, rest) = out.bytes_mut()[..groups.len() * (first + second)].split_at_mut(groups.len() * first);
        let step = (JOB_BYTES / (first + second)).max(1);
        let mut seconds = rest.chunks_mut((step * second).max(1));
        let mut jobs: Vec<Job<'_>> = packed
            .chunks_mut(step * first)
            .enumerate()
            .map(|(i, first)| Job {
                first_group: groups.start + i * step,
                packed: first,
                scales: seconds.next().unwrap_or_default(),
                has_min: false,
            })
            .collect();
        team.for_each_chunk(&mut jobs, 1, |_, jobs| {
            for job in jobs {
                self.pack_job(source, job);
            }
        });
        jobs.iter().any(|job| job.has_min)
    }

    fn pack_job(&self, source: &SourceRows<'_>, job: &mut Job<'_>) {
        let [first, second] = self.sections().map(|section| section.group_bytes);
        let mut scales = job.scales.chunks_exact_mut(second.max(1));
        for (i, out) in job.packed.chunks_exact_mut(first).enumerate() {
            let start = (job.first_group + i) * self.group_rows();
            let rows: Vec<&[u8]> =
                (start..(start + self.group_rows()).min(self.rows)).map(|row| source.row(row)).collect();
            match self.format {
                Format::F32 => pack_floats(&rows, cast_mut(out), f32::from_le_bytes),
                Format::F16 | Format::Bf16 => pack_floats(&rows, cast_mut(out), u16::from_le_bytes),
                Format::Q8_0 => {
                    let scales = scales.next().expect("scales of each group");
                    job.has_min |= pack_q8_0(&rows, cast_mut(out), cast_mut(scales));
                }
                Format::Q4_0 => pack_q4_0(&rows, cast_mut(out), cast_mut(scales.next().expect("scales of each group"))),
                Format::Q4K => pack_k(&rows, cast_mut::<KBlock<0, 8, 8>>(out), KBlock::put_q4_k),
                Format::Q5K => pack_k(&rows, cast_mut::<KBlock<8, 8, 8>>(out), KBlock::put_q5_k),
                Format::Q6K => pack_k(&rows, cast_mut::<KBlock<16, 16, 0>>(out), KBlock::put_q6_k),
            }
        }
    }
}

/// Where packed matrices are kept while a model uses them: [`InMemory`], or a file that is mapped.
pub trait PackedStore {
    /// The matrix of `source`, packed now or kept from an earlier time.
    ///
    /// # Errors
    /// It cannot be kept there.
    fn place(&mut self, packing: Packing, source: &SourceRows<'_>) -> Result<Matrix, PackedStoreError>;
}

/// Why a store does not take a matrix: what the store says.
pub type PackedStoreError = Box<dyn std::error::Error + Send + Sync>;

/// Keeps each matrix in memory of its own.
pub struct InMemory {
    team: Team,
}

impl InMemory {
    /// Packs on `team`.
    pub fn new(team: Team) -> Self {
        InMemory { team }
    }
}

impl PackedStore for InMemory {
    fn place(&mut self, packing: Packing, source: &SourceRows<'_>) -> Result<Matrix, PackedStoreError> {
        Ok(Matrix::pack_rows(&self.team, packing, source)?)
    }
}

/// Consecutive groups that one thread packs.
struct Job<'a> {
    first_group: usize,
    packed: &'a mut [u8],
    scales: &'a mut [u8],
    has_min: bool,
}

/// Values and bytes of a block of the format in the file.
fn block(format: Format) -> (usize, usize) {
    match format {
        Format::F32 => (1, 4),
        Format::F16 | Format::Bf16 => (1, 2),
        Format::Q8_0 => (Q8_BLOCK, Q8_0_BYTES),
        Format::Q4_0 => (Q8_BLOCK, Q4_0_BYTES),
        Format::Q4K => (SUPER_BLOCK, Q4_K_BYTES),
        Format::Q5K => (SUPER_BLOCK, Q5_K_BYTES),
        Format::Q6K => (SUPER_BLOCK, Q6_K_BYTES),
    }
}

fn pack_floats<const N: usize, T>(rows: &[&[u8]], out: &mut [Slab<T>], read: impl Fn([u8; N]) -> T)
where
    T: Default + Plain,
{
    out.fill(Slab([[T::default(); LANES]; FLOAT_ROWS]));
    for (i, row) in rows.iter().enumerate() {
        for (slab, bytes) in out.iter_mut().zip(row.as_chunks::<N>().0.chunks(LANES)) {
            for (value, bytes) in slab.0[i].iter_mut().zip(bytes) {
                *value = read(*bytes);
            }
        }
    }
}

/// Whether some weight is -128.
fn pack_q8_0(rows: &[&[u8]], q: &mut [WeightBlock], d: &mut [[u16; GROUP]]) -> bool {
    q.fill(WeightBlock::ZERO);
    d.fill([0; GROUP]);
    let mut has_min = false;
    for (i, row) in rows.iter().enumerate() {
        for ((q, d), block) in q.iter_mut().zip(&mut *d).zip(row.as_chunks::<Q8_0_BYTES>().0) {
            d[i] = u16::from_le_bytes([block[0], block[1]]);
            for (line, four) in q.0.iter_mut().zip(block[2..].as_chunks::<4>().0) {
                has_min |= four.contains(&0x80);
                line[4 * i..4 * i + 4].copy_from_slice(&four.map(|w| w ^ 0x80));
            }
        }
    }
    has_min
}

/// As `Q8_0` with the same values. Number i of a block holds column i in its low and column i + 16 in its high four
/// bits, as value + 8; what is stored is value + 128.
fn pack_q4_0(rows: &[&[u8]], q: &mut [WeightBlock], d: &mut [[u16; GROUP]]) {
    q.fill(WeightBlock::ZERO);
    d.fill([0; GROUP]);
    for (i, row) in rows.iter().enumerate() {
        for ((q, d), block) in q.iter_mut().zip(&mut *d).zip(row.as_chunks::<Q4_0_BYTES>().0) {
            d[i] = u16::from_le_bytes([block[0], block[1]]);
            let (low, high) = q.0.split_at_mut(4);
            for ((low, high), four) in low.iter_mut().zip(high).zip(block[2..].as_chunks::<4>().0) {
                low[4 * i..4 * i + 4].copy_from_slice(&four.map(|w| (w & 15) + 120));
                high[4 * i..4 * i + 4].copy_from_slice(&four.map(|w| (w >> 4) + 120));
            }
        }
    }
}

fn pack_k<const N: usize, B: Plain + Default>(rows: &[&[u8]], blocks: &mut [B], put: impl Fn(&mut B, usize, &[u8; N])) {
    // A matrix has all rows of a group, or the missing ones are to be zero.
    if rows.len() < GROUP {
        blocks.fill(B::default());
    }
    for (b, block) in blocks.iter_mut().enumerate() {
        for (i, row) in rows.iter().enumerate() {
            put(block, i, &row.as_chunks::<N>().0[b]);
        }
    }
}

/// What changes whenever packed bytes mean something else: a checksum over a sample of every format as this build
/// packs it. Who keeps packed bytes keeps this with them and throws them away when it differs.
pub fn layout_id() -> u64 {
    static ID: OnceLock<u64> = OnceLock::new();
    *ID.get_or_init(|| {
        let mut sums = vec![];
        for format in Format::ALL {
            // Two groups, the second with padding; not a multiple of anything but the block length.
            let packing = Packing::new(format, 19, 3 * SUPER_BLOCK).expect("a possible shape");
            let mut state = 1u32;
            let source: Vec<u8> = (0..packing.rows * packing.row_bytes())
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            let rows = SourceRows::new(&packing, &[&source]).expect("all rows");
            let mut out = AlignedBytes::zeroed(packing.bytes());
            packing.pack(&Team::new(1), &rows, 0..packing.n_groups(), &mut out);
            sums.extend(checksum(out.as_ref()).to_le_bytes());
            sums.extend((packing.sections()[1].start as u64).to_le_bytes());
        }
        checksum(&sums)
    })
}

impl Matrix {
    /// Packs `parts`, whole rows below each other, into memory of its own.
    ///
    /// # Errors
    /// If they are not the rows of `packing`.
    pub fn pack(team: &Team, packing: Packing, parts: &[&[u8]]) -> Result<Matrix, MatrixError> {
        Matrix::pack_rows(team, packing, &SourceRows::new(&packing, parts)?)
    }

    fn pack_rows(team: &Team, packing: Packing, source: &SourceRows<'_>) -> Result<Matrix, MatrixError> {
        let mut out = AlignedBytes::zeroed(packing.bytes());
        let has_min = packing.pack(team, source, 0..packing.n_groups(), &mut out);
        Matrix::from_packed(packing, has_min, &(std::sync::Arc::new(out) as _), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scalar::SuperBlock;

    fn noise(n: usize) -> Vec<u8> {
        let mut state = 7u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..n).map(next).collect()
    }

    fn packed(packing: &Packing, parts: &[&[u8]], groups: Range<usize>, threads: usize) -> Vec<u8> {
        let mut out = AlignedBytes::zeroed(groups.len() * packing.group_bytes());
        // What was in the buffer must not matter.
        out.bytes_mut().fill(0xa5);
        packing.pack(&Team::new(threads), &SourceRows::new(packing, parts).expect("rows"), groups, &mut out);
        out.as_ref().to_vec()
    }

    /// The sections of the whole matrix from pieces of `step` groups, as a file of them is written.
    fn in_pieces(packing: &Packing, source: &[u8], step: usize) -> Vec<u8> {
        let mut whole = vec![0; packing.bytes()];
        for start in (0..packing.n_groups()).step_by(step) {
            let groups = start..(start + step).min(packing.n_groups());
            let piece = packed(packing, &[source], groups.clone(), 1);
            let mut at = 0;
            for section in packing.sections() {
                let n = section.group_bytes * groups.len();
                let to = section.start + section.group_bytes * groups.start;
                whole[to..to + n].copy_from_slice(&piece[at..at + n]);
                at += n;
            }
        }
        whole
    }

    #[test]
    fn pieces_threads_and_parts_give_the_same_bytes() {
        for format in Format::ALL {
            // Several jobs, and rows that end within a group.
            let packing = Packing::new(format, 16 * 23 + 5, 2 * SUPER_BLOCK).expect("a shape");
            let source = noise(packing.rows() * packing.row_bytes());
            let whole = packed(&packing, &[&source], 0..packing.n_groups(), 1);
            assert_eq!(whole, packed(&packing, &[&source], 0..packing.n_groups(), 3), "{format:?} threads");
            assert_eq!(whole, in_pieces(&packing, &source, 5), "{format:?} pieces");
            let (a, rest) = source.split_at(7 * packing.row_bytes());
            let (b, c) = rest.split_at(packing.row_bytes());
            assert_eq!(whole, packed(&packing, &[a, b, c], 0..packing.n_groups(), 2), "{format:?} parts");
        }
    }

    #[test]
    fn k_blocks_hold_what_the_definition_unpacks() {
        fn check<const N: usize, const H: usize, const S: usize, const M: usize>(
            format: Format,
            unpack: impl Fn(&[u8; N]) -> SuperBlock,
        ) where
            KBlock<H, S, M>: Plain,
        {
            let packing = Packing::new(format, 21, 2 * SUPER_BLOCK).expect("a shape");
            let source = noise(21 * packing.row_bytes());
            let mut bytes = AlignedBytes::zeroed(packing.bytes());
            let rows = SourceRows::new(&packing, &[&source]).expect("rows");
            packing.pack(&Team::new(1), &rows, 0..2, &mut bytes);
            let blocks: &[KBlock<H, S, M>] = cast_mut(bytes.bytes_mut());
            for (n, bytes) in source.as_chunks::<N>().0.iter().enumerate() {
                let (row, b) = (n / 2, n % 2);
                assert_eq!(blocks[row / GROUP * 2 + b].row(row % GROUP), unpack(bytes), "{format:?} {row} {b}");
            }
        }
        check::<Q4_K_BYTES, 0, 8, 8>(Format::Q4K, SuperBlock::from_q4_k);
        check::<Q5_K_BYTES, 8, 8, 8>(Format::Q5K, SuperBlock::from_q5_k);
        check::<Q6_K_BYTES, 16, 16, 0>(Format::Q6K, SuperBlock::from_q6_k);
    }

    #[test]
    fn slices_cover_the_rows_they_are_asked_for() {
        let packing = Packing::new(Format::F32, 5, 2).expect("a shape");
        let source = noise(40);
        let parts = [&source[..16], &source[16..24], &source[24..]];
        let rows = SourceRows::new(&packing, &parts).expect("rows");
        for (from, to) in [(0, 5), (0, 1), (1, 3), (2, 3), (3, 5), (4, 4)] {
            let slices: Vec<u8> = rows.slices(from..to).flatten().copied().collect();
            assert_eq!(slices, source[8 * from..8 * to], "{from}..{to}");
        }
        assert!(SourceRows::new(&packing, &parts[..2]).is_err());
        assert!(SourceRows::new(&packing, &[&source[..20], &source[20..]]).is_err());
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let check = |format, rows, k, expect: &str| {
            assert!(Packing::new(format, rows, k).expect_err("refused").to_string().contains(expect), "{rows} {k}");
        };
        check(Format::F32, 0, 8, "impossible");
        check(Format::F32, 8, 0, "impossible");
        check(Format::F32, usize::MAX, 1, "impossible");
        check(Format::Q8_0, usize::MAX / 64, 64, "impossible");
        check(Format::Q8_0, 1, 48, "no multiple of the block length 32");
        check(Format::Q6K, 1, 288, "no multiple of the block length 256");
    }
}
