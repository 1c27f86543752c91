//! The K formats: unpacking against another implementation's values, products of every instruction set, thread count and
//! batch against the scalar definition.

mod support;

use assay_num::scalar::{self, Q4_K_BYTES, Q5_K_BYTES, Q6_K_BYTES, SUPER_BLOCK, SuperBlock};
use assay_num::{ActKind, Acts, Format, Isa, Kernels, Matrix, MatrixError, Team, f16};
use support::{Rng, assert_bits, hash, kernels, scale};

#[derive(Clone, Copy)]
struct Kind {
    format: Format,
    bytes: usize,
    /// Where d is, and dmin if there is one.
    scales: &'static [usize],
    load: fn(usize, usize, &[u8]) -> Result<Matrix, MatrixError>,
}

const KINDS: [Kind; 3] = [
    Kind { format: Format::Q4K, bytes: Q4_K_BYTES, scales: &[0, 2], load: Matrix::from_q4_k },
    Kind { format: Format::Q5K, bytes: Q5_K_BYTES, scales: &[0, 2], load: Matrix::from_q5_k },
    Kind { format: Format::Q6K, bytes: Q6_K_BYTES, scales: &[208], load: Matrix::from_q6_k },
];

impl Kind {
    /// Rows of random bytes, every one of which is valid, with finite scales.
    fn rows(&self, rng: &mut Rng, rows: usize, k: usize, wild: bool) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..rows * k / SUPER_BLOCK * self.bytes).map(|_| rng.next() as u8).collect();
        for block in bytes.chunks_exact_mut(self.bytes) {
            for &at in self.scales {
                block[at..at + 2].copy_from_slice(&scale(rng, wild).to_le_bytes());
            }
        }
        bytes
    }

    fn unpacked(&self, bytes: &[u8]) -> Vec<SuperBlock> {
        let blocks = bytes.chunks_exact(self.bytes);
        match self.format {
            Format::Q4K => blocks.map(|b| SuperBlock::from_q4_k(b.try_into().unwrap())).collect(),
            Format::Q5K => blocks.map(|b| SuperBlock::from_q5_k(b.try_into().unwrap())).collect(),
            _ => blocks.map(|b| SuperBlock::from_q6_k(b.try_into().unwrap())).collect(),
        }
    }

    fn expect(&self, bytes: &[u8], x: &[f32], k: usize) -> Vec<f32> {
        let (w, n) = (self.unpacked(bytes), k / SUPER_BLOCK);
        let acts: Vec<_> = x.as_chunks::<SUPER_BLOCK>().0.iter().map(scalar::quantize_super_block).collect();
        acts.chunks_exact(n).flat_map(|x| w.chunks_exact(n).map(|w| scalar::k_dot(w, x))).collect()
    }
}

/// All kernels and teams must give `expect`; the last token alone must give its part of it.
fn check(matrix: &Matrix, x: &[f32], m: usize, expect: &[f32], teams: &[Team]) {
    let (rows, k) = (matrix.rows(), matrix.k());
    let mut acts = Acts::new();
    for kernels in kernels() {
        let what = format!("{}: {:?} [{rows}, {k}], {m} tokens", kernels.isa(), matrix.format());
        for team in teams {
            kernels.prepare(team, x, m, k, ActKind::Q8K, &mut acts);
            let mut out = vec![f32::NAN; m * rows];
            kernels.matmul(team, matrix, &acts, &mut out);
            assert_bits(expect, &out, &format!("{what}, {} threads", team.threads()));
        }
        let mut last = vec![f32::NAN; rows];
        kernels.prepare(&teams[0], &x[(m - 1) * k..], 1, k, ActKind::Q8K, &mut acts);
        kernels.matmul(&teams[0], matrix, &acts, &mut last);
        assert_bits(&expect[(m - 1) * rows..], &last, &format!("{what}, the last alone"));
    }
}

#[test]
fn products_equal_their_definition() {
    let teams = [Team::new(1), Team::new(2), Team::new(3)];
    let mut rng = Rng(31);
    for kind in KINDS {
        for m in (1..=13).chain([32, 33, 47]) {
            for (rows, k) in [(1, 256), (15, 256), (17, 512), (50, 768), (33, 2048)] {
                let wild = (rows + m) % 2 == 0;
                let bytes = kind.rows(&mut rng, rows, k, wild);
                let x = if wild { rng.wild_floats(m * k) } else { rng.floats(m * k, 3.0) };
                let matrix = (kind.load)(rows, k, &bytes).unwrap();
                assert_eq!((matrix.format(), matrix.act_kind()), (kind.format, ActKind::Q8K));
                check(&matrix, &x, m, &kind.expect(&bytes, &x, k), &teams);
            }
        }
    }
}

/// The largest sums each format allows, in all signs: nothing may saturate or wrap.
#[test]
fn extremes_do_not_saturate() {
    let (rows, k, m) = (16, 512, 5);
    let one = f16::from_f32_rne(1.0).to_le_bytes();
    for kind in KINDS {
        for fill in [0x00, 0xff, 0x80, 0x7f] {
            for weights in [0x00, 0xff] {
                let mut block = vec![weights; kind.bytes];
                let small = if kind.format == Format::Q6K { 192..208 } else { 4..16 };
                block[small].fill(fill);
                kind.scales.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&one));
                let bytes = block.repeat(rows * k / SUPER_BLOCK);
                for x in [127.0, -127.0] {
                    let x = vec![x; m * k];
                    let row = &kind.unpacked(&bytes)[0];
                    let mut weights = [0.0; SUPER_BLOCK];
                    row.to_f32(&mut weights);
                    let exact: f64 = weights.iter().map(|&w| f64::from(w) * f64::from(x[0])).sum::<f64>() * 2.0;
                    let expect = kind.expect(&bytes, &x, k);
                    // The definition itself: two super-blocks of equal sums, each rounded to f32 at most twice.
                    assert!((f64::from(expect[0]) - exact).abs() <= exact.abs() * 3e-7 + 32.0, "{} {exact}", expect[0]);
                    let matrix = (kind.load)(rows, k, &bytes).unwrap();
                    check(&matrix, &x, m, &expect, &[Team::new(1)]);
                }
            }
        }
    }
}

#[test]
fn large_product_does_not_depend_on_the_split() {
    let mut rng = Rng(33);
    let (rows, k, m) = (1000, 512, 3);
    for kind in KINDS {
        let bytes = kind.rows(&mut rng, rows, k, false);
        let x = rng.floats(m * k, 1.0);
        let matrix = (kind.load)(rows, k, &bytes).unwrap();
        check(&matrix, &x, m, &kind.expect(&bytes, &x, k), &[Team::new(1), Team::new(2), Team::new(3)]);
    }
}

#[test]
fn a_value_that_is_not_finite_reaches_every_output() {
    let (rows, k) = (20, 512);
    let mut rng = Rng(34);
    for kind in KINDS {
        let matrix = (kind.load)(rows, k, &kind.rows(&mut rng, rows, k, false)).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for kernels in kernels() {
                let mut x = rng.floats(k, 1.0);
                x[300] = bad;
                let (mut acts, mut out, team) = (Acts::new(), vec![0.0; rows], Team::new(1));
                kernels.prepare(&team, &x, 1, k, ActKind::Q8K, &mut acts);
                kernels.matmul(&team, &matrix, &acts, &mut out);
                assert!(out.iter().all(|v| v.is_nan()), "{}: {bad} became {out:?}", kernels.isa());
            }
        }
    }
}

/// No finite activation leaves the range of the scale, and the smallest become 0 rather than NaN.
#[test]
fn activations_of_every_size_quantize_as_defined() {
    let check = |amax: f32, d: f32, q: i8| {
        let mut x = [0.0; SUPER_BLOCK];
        (x[3], x[200]) = (-amax, amax / 2.0);
        let (got, scale) = scalar::quantize_super_block(&x);
        assert_eq!((scale.to_bits(), got[3], got[4]), (d.to_bits(), q, 0), "{amax:e}");
    };
    check(127.0, 1.0, -127);
    check(f32::MAX, f32::MAX / 127.0, -127);
    check(127.0 * f32::MIN_POSITIVE, f32::MIN_POSITIVE, -127);
    check(126.9 * f32::MIN_POSITIVE, 0.0, 0);
    check(f32::from_bits(1), 0.0, 0);
    check(0.0, 0.0, 0);
}

#[test]
fn rows_are_dequantized_as_defined() {
    let mut rng = Rng(35);
    let (rows, k) = (37, 768);
    for kind in KINDS {
        let bytes = kind.rows(&mut rng, rows, k, true);
        let matrix = (kind.load)(rows, k, &bytes).unwrap();
        for (row, blocks) in kind.unpacked(&bytes).chunks_exact(k / SUPER_BLOCK).enumerate() {
            let mut expect = vec![[0.0; SUPER_BLOCK]; blocks.len()];
            blocks.iter().zip(&mut expect).for_each(|(block, out)| block.to_f32(out));
            let mut out = vec![f32::NAN; k];
            matrix.row_f32(row, &mut out);
            assert_bits(expect.as_flattened(), &out, &format!("{:?} row {row}", kind.format));
        }
    }
}

/// Hashes of `gguf.quants.dequantize` (PyPI package gguf 0.19) of the same bytes.
#[test]
fn unpacking_agrees_with_the_reference_implementation() {
    const GOLDEN: [u64; 3] = [0x256a_85e4_6285_585f, 0xe5ca_8f44_3ab1_ad3c, 0x8e4c_0622_e0fd_4f34];
    for (kind, golden) in KINDS.iter().zip(GOLDEN) {
        let bytes = kind.rows(&mut Rng(36), 4, 512, false);
        let mut values = vec![[0.0; SUPER_BLOCK]; bytes.len() / kind.bytes];
        kind.unpacked(&bytes).iter().zip(&mut values).for_each(|(block, out)| block.to_f32(out));
        assert_eq!(hash(values.as_flattened()), golden, "{:?}", kind.format);
    }
}

#[test]
fn wrong_shapes_are_errors() {
    for kind in KINDS {
        let columns = MatrixError::Columns { k: 128, block: 256 };
        assert_eq!((kind.load)(2, 128, &vec![0; kind.bytes]).unwrap_err(), columns);
        let length = MatrixError::Length { expected: 2 * kind.bytes, got: kind.bytes };
        assert_eq!((kind.load)(2, 256, &vec![0; kind.bytes]).unwrap_err(), length);
        assert_eq!((kind.load)(0, 256, &[]).unwrap_err(), MatrixError::Shape { rows: 0, k: 256 });
    }
}

/// Fixed inputs, fixed bits: the definition cannot drift unnoticed.
#[test]
fn golden_outputs() {
    const GOLDEN: [u64; 3] = [0xe2ef_d16c_281f_061a, 0x6fa5_7408_cc4c_0885, 0xf256_d52e_010e_2f21];
    let mut rng = Rng(37);
    let team = Team::new(2);
    let (rows, k, m) = (48, 512, 5);
    let x = rng.floats(m * k, 2.0);
    let matrices = KINDS.map(|kind| (kind.load)(rows, k, &kind.rows(&mut rng, rows, k, false)).unwrap());
    for isa in Isa::available() {
        let kernels = Kernels::with_isa(isa).unwrap();
        let hashes = matrices.each_ref().map(|matrix| {
            let (mut acts, mut out) = (Acts::new(), vec![0.0; m * rows]);
            kernels.prepare(&team, &x, m, k, ActKind::Q8K, &mut acts);
            kernels.matmul(&team, matrix, &acts, &mut out);
            hash(&out)
        });
        assert_eq!(hashes, GOLDEN, "{isa} {hashes:#x?}");
    }
}
