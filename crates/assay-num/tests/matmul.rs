//! The matrix product of every instruction set, thread count and batch against the scalar definitions.

mod support;

use assay_num::{ActKind, Acts, Format, Isa, Kernels, Matrix, MatrixError, Team, f16, scalar};
use support::{Rng, assert_bits, hash, kernels, q8_rows};

fn bytes_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn bytes_f16(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn quantized(x: &[f32]) -> Vec<([i8; 32], f32)> {
    x.as_chunks::<32>().0.iter().map(scalar::quantize_block).collect()
}

/// All kernels and 1..=3 threads must give `expect`; the last token alone must give its part of it.
fn check(matrix: &Matrix, x: &[f32], m: usize, expect: &[f32], teams: &[Team]) {
    let (rows, k) = (matrix.rows(), matrix.k());
    let mut acts = Acts::new();
    for kernels in kernels() {
        for team in teams {
            let what =
                format!("{} x{}: {:?} [{rows}, {k}], {m} tokens", kernels.isa(), team.threads(), matrix.format());
            kernels.prepare(team, x, m, k, matrix.act_kind(), &mut acts);
            let mut out = vec![f32::NAN; m * rows];
            kernels.matmul(team, matrix, &acts, &mut out);
            assert_bits(expect, &out, &what);
        }
        let mut last = vec![f32::NAN; rows];
        kernels.prepare(&teams[0], &x[(m - 1) * k..], 1, k, matrix.act_kind(), &mut acts);
        kernels.matmul(&teams[0], matrix, &acts, &mut last);
        assert_bits(&expect[(m - 1) * rows..], &last, &format!("{} alone [{rows}, {k}]", kernels.isa()));
    }
}

#[test]
fn q8_product_equals_its_definition() {
    let teams = [Team::new(1), Team::new(2), Team::new(3)];
    let mut rng = Rng(1);
    for m in (1..=19).chain([32, 33, 70]) {
        for (rows, k) in [(1, 32), (15, 64), (16, 96), (17, 32), (50, 160), (33, 2048)] {
            let wild = (rows + m) % 2 == 0;
            let w = q8_rows(&mut rng, rows, k, wild);
            let x = if wild { rng.wild_floats(m * k) } else { rng.floats(m * k, 3.0) };
            let matrix = Matrix::from_q8_0(rows, k, &w.bytes).unwrap();
            let acts = quantized(&x);
            let nb = k / 32;
            let expect: Vec<f32> =
                acts.chunks_exact(nb).flat_map(|x| w.blocks.chunks_exact(nb).map(|w| scalar::q8_dot(w, x))).collect();
            check(&matrix, &x, m, &expect, &teams);
        }
    }
}

/// The largest sums the format allows, in all signs: nothing may saturate.
#[test]
fn q8_extremes_do_not_saturate() {
    let teams = [Team::new(1)];
    let k = 64;
    for (w, x) in [(-128i8, 1.0f32), (-128, -1.0), (127, 1.0), (127, -1.0), (-127, 1.0), (-127, -1.0)] {
        let block: Vec<u8> = [0x00, 0x3c].into_iter().chain([w as u8; 32]).collect();
        let matrix = Matrix::from_q8_0(16, k, &block.repeat(16 * k / 32)).unwrap();
        let x = vec![x * 127.0; k * 5];
        let expect = vec![f32::from(w) * x[0] * k as f32; 16 * 5];
        check(&matrix, &x, 5, &expect, &teams);
    }
}

#[test]
fn float_products_equal_their_definitions() {
    let teams = [Team::new(1), Team::new(2), Team::new(3)];
    let mut rng = Rng(2);
    for m in 1..=19 {
        for (rows, k) in [(1, 1), (7, 15), (16, 16), (19, 17), (21, 40), (37, 333), (18, 1024)] {
            let x = if m % 2 == 0 { rng.wild_floats(m * k) } else { rng.floats(m * k, 2.0) };
            let w = if m % 3 == 0 { rng.wild_floats(rows * k) } else { rng.floats(rows * k, 0.1) };
            let expect: Vec<f32> =
                x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(|w| scalar::dot(w, x))).collect();
            check(&Matrix::from_f32(rows, k, &bytes_f32(&w)).unwrap(), &x, m, &expect, &teams);

            let w: Vec<u16> = w.iter().map(|&w| f16::from_f32_rne(w)).collect();
            let expect: Vec<f32> =
                x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(|w| scalar::dot_f16(w, x))).collect();
            check(&Matrix::from_f16(rows, k, &bytes_f16(&w)).unwrap(), &x, m, &expect, &teams);

            // The same bits read as bfloat16, without its infinities and NaNs.
            let w: Vec<u16> = w.iter().map(|&w| if w & 0x7f80 == 0x7f80 { w ^ 0x4000 } else { w }).collect();
            let wide: Vec<f32> = w.iter().map(|&w| f32::from_bits(u32::from(w) << 16)).collect();
            let expect: Vec<f32> =
                x.chunks_exact(k).flat_map(|x| wide.chunks_exact(k).map(|w| scalar::dot(w, x))).collect();
            let matrix = Matrix::from_bf16(rows, k, &bytes_f16(&w)).unwrap();
            assert_eq!(matrix.format(), Format::Bf16);
            check(&matrix, &x, m, &expect, &teams);
            let mut row = vec![f32::NAN; k];
            matrix.row_f32(rows - 1, &mut row);
            assert_bits(&wide[(rows - 1) * k..], &row, "BF16 row");
        }
    }
}

/// A matrix of many batches, so that threads take turns.
#[test]
fn large_product_does_not_depend_on_the_split() {
    let mut rng = Rng(3);
    let (rows, k, m) = (1000, 512, 3);
    let w = q8_rows(&mut rng, rows, k, false);
    let matrix = Matrix::from_q8_0(rows, k, &w.bytes).unwrap();
    let x = rng.floats(m * k, 1.0);
    let acts = quantized(&x);
    let expect: Vec<f32> =
        acts.chunks_exact(k / 32).flat_map(|x| w.blocks.chunks_exact(k / 32).map(|w| scalar::q8_dot(w, x))).collect();
    check(&matrix, &x, m, &expect, &[Team::new(1), Team::new(2), Team::new(3)]);
}

#[test]
fn products_together_equal_products_apart() {
    let mut rng = Rng(18);
    let (k, m) = (256, 5);
    let matrices =
        [700, 1, 300].map(|rows| Matrix::from_q8_0(rows, k, &q8_rows(&mut rng, rows, k, false).bytes).unwrap());
    let x = rng.floats(m * k, 1.0);
    for kernels in kernels() {
        for team in [Team::new(1), Team::new(2), Team::new(3)] {
            let mut acts = Acts::new();
            kernels.prepare(&team, &x, m, k, ActKind::Q8, &mut acts);
            let mut apart = [700, 1, 300].map(|rows| vec![0.0; m * rows]);
            let mut together = [700, 1, 300].map(|rows| vec![f32::NAN; m * rows]);
            for (matrix, out) in matrices.iter().zip(&mut apart) {
                kernels.matmul(&team, matrix, &acts, out);
            }
            let mut products: Vec<_> = matrices.iter().zip(together.iter_mut().map(|out| &mut out[..])).collect();
            kernels.matmul_many(&team, &acts, &mut products);
            for (apart, together) in apart.iter().zip(&together) {
                assert_bits(apart, together, &format!("{} x{}", kernels.isa(), team.threads()));
            }
            kernels.matmul_many(&team, &acts, &mut []);
        }
    }
}

#[test]
fn a_value_that_is_not_finite_reaches_every_output() {
    let team = Team::new(1);
    let mut rng = Rng(4);
    let matrix = Matrix::from_q8_0(16, 64, &q8_rows(&mut rng, 16, 64, false).bytes).unwrap();
    // 8.4e6 / 127 is above the largest f16: the scale itself overflows.
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 8.4e6] {
        for kernels in kernels() {
            let mut x = rng.floats(64, 1.0);
            x[40] = bad;
            let mut acts = Acts::new();
            kernels.prepare(&team, &x, 1, 64, ActKind::Q8, &mut acts);
            let mut out = vec![0.0; 16];
            kernels.matmul(&team, &matrix, &acts, &mut out);
            assert!(out.iter().all(|v| v.is_nan()), "{}: {bad} became {out:?}", kernels.isa());
        }
    }
}

#[test]
fn rows_are_dequantized_exactly() {
    let mut rng = Rng(5);
    let (rows, k) = (37, 96);
    let w = q8_rows(&mut rng, rows, k, true);
    let matrix = Matrix::from_q8_0(rows, k, &w.bytes).unwrap();
    let mut out = vec![f32::NAN; k];
    for (row, blocks) in w.blocks.chunks_exact(k / 32).enumerate() {
        let expect: Vec<f32> = blocks.iter().flat_map(|(q, d)| q.map(|q| f32::from(q) * f16::to_f32(*d))).collect();
        matrix.row_f32(row, &mut out);
        assert_bits(&expect, &out, "Q8_0 row");
    }
    let values: Vec<u16> = (0..4 * 8).map(|i| i * 1021).collect();
    let matrix = Matrix::from_f16(4, 8, &bytes_f16(&values)).unwrap();
    let mut out = [0.0; 8];
    matrix.row_f32(2, &mut out);
    assert_bits(&values[16..24].iter().map(|&v| f16::to_f32(v)).collect::<Vec<_>>(), &out, "F16 row");
}

/// Values as `gguf.quants.dequantize` (PyPI package gguf 0.19) gives them for the same bytes.
#[test]
fn q4_0_is_the_same_values_in_fewer_bits() {
    let block: Vec<u8> = [0x00, 0x38].into_iter().chain((0..16).map(|i| i | (15 - i) << 4)).collect();
    let matrix = Matrix::from_q4_0(1, 32, &block).unwrap();
    let mut row = [f32::NAN; 32];
    matrix.row_f32(0, &mut row);
    // d = 0.5; low halves count up from -8, high halves down from 7.
    let expect: Vec<f32> = (-8..8).chain((-8..8).rev()).map(|q| q as f32 * 0.5).collect();
    assert_bits(&expect, &row, "Q4_0 row");
    let x: Vec<f32> = (0..64).map(|i| i as f32 - 20.0).collect();
    let acts = quantized(&x);
    let w: [i8; 32] = std::array::from_fn(|i| if i < 16 { i as i8 - 8 } else { 23 - i as i8 });
    let expect: Vec<f32> = acts.iter().map(|x| scalar::q8_dot(&[(w, 0x3800)], &[*x])).collect();
    check(&matrix, &x, 2, &expect, &[Team::new(1)]);
    assert_eq!(Matrix::from_q4_0(1, 48, &block).unwrap_err(), MatrixError::Columns { k: 48, block: 32 });
    assert_eq!(Matrix::from_q4_0(2, 32, &block).unwrap_err(), MatrixError::Length { expected: 36, got: 18 });
}

#[test]
fn wrong_shapes_are_errors() {
    assert_eq!(Matrix::from_q8_0(2, 48, &[0; 102]).unwrap_err(), MatrixError::Columns { k: 48, block: 32 });
    assert_eq!(Matrix::from_q8_0(2, 32, &[0; 67]).unwrap_err(), MatrixError::Length { expected: 68, got: 67 });
    assert_eq!(Matrix::from_f32(0, 5, &[]).unwrap_err(), MatrixError::Shape { rows: 0, k: 5 });
    assert_eq!(Matrix::from_f16(usize::MAX, 2, &[]).unwrap_err(), MatrixError::Shape { rows: usize::MAX, k: 2 });
    assert_eq!(
        Matrix::from_q8_0(usize::MAX / 8, 32, &[]).unwrap_err(),
        MatrixError::Shape { rows: usize::MAX / 8, k: 32 }
    );
    let matrix = Matrix::from_q8_0(2, 32, &[0; 68]).unwrap();
    assert_eq!((matrix.rows(), matrix.k(), matrix.format()), (2, 32, Format::Q8_0));
}

/// Fixed inputs, fixed bits: the definition cannot drift unnoticed.
#[test]
fn golden_outputs() {
    const GOLDEN: [u64; 3] = [0xb08b_0b3c_4677_9a07, 0xc23c_6b93_386b_27d0, 0x7187_9f73_c206_9386];
    let mut rng = Rng(6);
    let team = Team::new(2);
    let (rows, k, m) = (48, 256, 5);
    let x = rng.floats(m * k, 2.0);
    let q8 = Matrix::from_q8_0(rows, k, &q8_rows(&mut rng, rows, k, false).bytes).unwrap();
    let floats = rng.floats(rows * k, 0.2);
    let f32 = Matrix::from_f32(rows, k, &bytes_f32(&floats)).unwrap();
    let f16 = Matrix::from_f16(rows, k, &bytes_f16(&floats.iter().map(|&w| f16::from_f32_rne(w)).collect::<Vec<_>>()))
        .unwrap();
    let hashes = |isa| {
        let kernels = Kernels::with_isa(isa).unwrap();
        [&q8, &f32, &f16].map(|matrix| {
            let (mut acts, mut out) = (Acts::new(), vec![0.0; m * rows]);
            kernels.prepare(&team, &x, m, k, matrix.act_kind(), &mut acts);
            kernels.matmul(&team, matrix, &acts, &mut out);
            hash(&out)
        })
    };
    for isa in Isa::available() {
        assert_eq!(hashes(isa), GOLDEN, "{isa}");
    }
}
