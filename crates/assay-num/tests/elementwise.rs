//! exp, silu, normalisation, rotation and f16 narrowing of every instruction set against the scalar definitions.

mod support;

use assay_num::{RopeStyle, RopeTable, RopeTableError, f16, scalar};
use support::{Rng, assert_bits, hash, hash_bytes, kernels};

/// Every 1009th f32 of all 2^32, NaNs and infinities included, plus the neighbours of every boundary.
fn floats_of_all_kinds() -> Vec<f32> {
    let mut values: Vec<f32> = (0..=u32::MAX / 1009).map(|i| f32::from_bits(i * 1009)).collect();
    for edge in [0.0f32, 1.0, 88.722_83, 87.336_54, 0.346_573_6, f32::INFINITY, f32::MIN_POSITIVE, f32::MAX] {
        for d in -3i32..=3 {
            let bits = (edge.to_bits() as i32).wrapping_add(d) as u32 & 0x7fff_ffff;
            values.extend([f32::from_bits(bits), f32::from_bits(bits | 0x8000_0000)]);
        }
    }
    values
}

#[test]
fn exp_and_silu_equal_their_definitions() {
    let x = floats_of_all_kinds();
    let exp: Vec<f32> = x.iter().map(|&x| scalar::exp(x)).collect();
    let up: Vec<f32> = x.iter().rev().copied().collect();
    let silu: Vec<f32> = x.iter().zip(&up).map(|(&x, &up)| scalar::silu(x) * up).collect();
    for kernels in kernels() {
        let mut out = vec![0.0; x.len()];
        kernels.exp(&x, &mut out);
        assert_bits(&exp, &out, &format!("{} exp", kernels.isa()));
        kernels.silu_mul(&x, &up, &mut out);
        assert_bits(&silu, &out, &format!("{} silu", kernels.isa()));
        for n in 0..40 {
            let mut out = vec![0.0; n];
            kernels.exp(&x[5_000_000 % x.len() + n..][..n], &mut out);
            assert_bits(&exp[5_000_000 % x.len() + n..][..n], &out, "exp of a short slice");
        }
    }
}

#[test]
fn gelu_and_softcap_equal_their_definitions() {
    let x = floats_of_all_kinds();
    let up: Vec<f32> = x.iter().rev().copied().collect();
    let gelu: Vec<f32> = x.iter().zip(&up).map(|(&x, &up)| scalar::gelu(x) * up).collect();
    for kernels in kernels() {
        let mut out = vec![0.0; x.len()];
        kernels.gelu_mul(&x, &up, &mut out);
        assert_bits(&gelu, &out, &format!("{} gelu", kernels.isa()));
        for cap in [0.5, 30.0, 50.0] {
            let capped: Vec<f32> = x.iter().map(|&x| scalar::softcap(x, cap)).collect();
            out.copy_from_slice(&x);
            kernels.softcap(&mut out, cap);
            assert_bits(&capped, &out, &format!("{} softcap {cap}", kernels.isa()));
        }
        for n in 0..40 {
            let from = 5_000_000 % x.len() + n;
            let mut out = vec![0.0; n];
            kernels.gelu_mul(&x[from..][..n], &up[from..][..n], &mut out);
            assert_bits(&gelu[from..][..n], &out, "gelu of a short slice");
        }
    }
}

#[test]
fn exact_gelu_equals_its_definition() {
    let x = floats_of_all_kinds();
    let expect: Vec<f32> = x.iter().map(|&x| scalar::gelu_erf(x)).collect();
    for kernels in kernels() {
        let mut out = x.clone();
        kernels.gelu_erf(&mut out);
        assert_bits(&expect, &out, &format!("{} exact gelu", kernels.isa()));
        for n in 0..40 {
            let from = 5_000_000 % x.len() + n;
            let mut out = x[from..][..n].to_vec();
            kernels.gelu_erf(&mut out);
            assert_bits(&expect[from..][..n], &out, "exact gelu of a short slice");
        }
    }
}

/// Against f64: relative to the magnitude of the argument; the tail by itself.
#[test]
fn exact_gelu_is_accurate() {
    let exact = |x: f64| x * 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2);
    let (mut worst, mut worst_tail) = (0.0, 0.0);
    for i in -60_000..=60_000 {
        let x = i as f32 * 2e-4;
        let wide = f64::from(x);
        let scale = if wide.abs() > 1.0 { wide.abs() } else { 1.0 };
        worst = f64::max(worst, (f64::from(scalar::gelu_erf(x)) - exact(wide)).abs() / scale);
        if (0.0..=5.0).contains(&x) {
            let tail = 0.5 * libm::erfc(wide / std::f64::consts::SQRT_2);
            worst_tail = f64::max(worst_tail, (f64::from(scalar::upper_tail(x)) / tail - 1.0).abs());
        }
    }
    assert!(worst < 1.5e-7 && worst_tail < 8e-7, "{worst:e} {worst_tail:e}");
    assert!(worst > 1e-9 && worst_tail > 1e-8, "the measurement itself is broken: {worst:e} {worst_tail:e}");
    let ends = [f32::MAX, -f32::MAX, 0.0, -0.0, f32::MIN_POSITIVE];
    assert_eq!(ends.map(scalar::gelu_erf), [f32::MAX, 0.0, 0.0, 0.0, f32::MIN_POSITIVE / 2.0]);
    assert!([f32::NAN, f32::INFINITY, f32::NEG_INFINITY].iter().all(|x| scalar::gelu_erf(*x).is_nan()));
}

#[test]
fn layer_norm_equals_its_definition() {
    let mut rng = Rng(27);
    for n in (1..70).chain([256, 384, 2048, 4099]) {
        let m = 3;
        let x = if n % 2 == 0 { rng.wild_floats(m * n) } else { rng.floats(m * n, 3.0) };
        let (w, b) = (rng.floats(n, 1.0), rng.floats(n, 1.0));
        let mut expect = vec![0.0; m * n];
        for (x, out) in x.chunks_exact(n).zip(expect.chunks_exact_mut(n)) {
            scalar::layer_norm(x, &w, &b, 1e-12, out);
        }
        for kernels in kernels() {
            let mut out = vec![f32::NAN; m * n];
            kernels.layer_norm(&x, &w, &b, 1e-12, &mut out);
            assert_bits(&expect, &out, &format!("{} layer_norm of {n}", kernels.isa()));
        }
    }
}

#[test]
fn layer_norm_of_a_known_row() {
    // Mean 3, variance 4; with eps 0 the centred row is halved.
    let mut out = [0.0; 4];
    scalar::layer_norm(&[1.0, 5.0, 1.0, 5.0], &[1.0, 2.0, 1.0, 3.0], &[0.0, 0.5, 10.0, -1.0], 0.0, &mut out);
    assert_eq!(out, [-1.0, 2.5, 9.0, 2.0]);
}

/// Against f64, also far from zero, where the mean is larger than the spread.
#[test]
fn layer_norm_is_accurate() {
    let mut rng = Rng(28);
    for (n, offset) in [(384, 0.0), (768, 5.0), (100, -30.0)] {
        let x: Vec<f32> = rng.floats(n, 2.0).iter().map(|x| x + offset).collect();
        let mut out = vec![0.0; n];
        scalar::layer_norm(&x, &vec![1.0; n], &vec![0.0; n], 1e-12, &mut out);
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean) * (f64::from(x) - mean)).sum::<f64>() / n as f64;
        for (x, out) in x.iter().zip(&out) {
            let exact = (f64::from(*x) - mean) / variance.sqrt();
            assert!((exact - f64::from(*out)).abs() < 1e-5, "{exact} {out}");
        }
    }
}

/// Against f64, by the error that matters: relative to the magnitude for gelu (its tail aside), to the cap for softcap.
#[test]
fn gelu_and_softcap_are_accurate() {
    let tanh = |x: f64| 1.0 - 2.0 / (1.0 + libm::exp(2.0 * x));
    let mut worst = [0.0f64; 2];
    for i in -40_000..=40_000 {
        let x = i as f32 * 5e-3;
        let wide = f64::from(x);
        let z = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide * wide * wide);
        let gelu = (f64::from(scalar::gelu(x)) - wide * (tanh(z) + 1.0) / 2.0).abs()
            / (if wide.abs() > 1.0 { wide.abs() } else { 1.0 });
        let cap = (f64::from(scalar::softcap(x, 30.0)) - 30.0 * tanh(wide / 30.0)).abs() / 30.0;
        worst = [if gelu > worst[0] { gelu } else { worst[0] }, if cap > worst[1] { cap } else { worst[1] }];
    }
    assert!(worst[0] < 3e-7 && worst[1] < 3e-7, "{worst:?}");
    assert!(worst[0] > 1e-9 && worst[1] > 1e-9, "the measurement itself is broken: {worst:?}");
    let ends = [f32::MAX, -f32::MAX, 0.0, -0.0];
    assert_eq!(ends.map(scalar::gelu), [f32::MAX, 0.0, 0.0, 0.0]);
    assert_eq!(ends.map(|x| scalar::softcap(x, 50.0)), [50.0, -50.0, 0.0, 0.0]);
    assert!(scalar::gelu(f32::NAN).is_nan());
    assert!([f32::NAN, f32::INFINITY, f32::NEG_INFINITY].iter().all(|x| scalar::softcap(*x, 50.0).is_nan()));
}

/// Against f64: at most 1 ulp where the result is normal, exact ends elsewhere.
#[test]
fn exp_is_accurate() {
    let mut worst = 0.0;
    for x in floats_of_all_kinds().into_iter().filter(|x| (scalar::EXP_MIN..=scalar::EXP_MAX).contains(x)) {
        let exact = libm::exp(f64::from(x));
        let near = exact as f32;
        let ulp = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
        let error = (f64::from(scalar::exp(x)) - exact).abs() / ulp;
        assert!(error <= 1.0, "exp({x:e}) is {error} ulp off");
        worst = f64::max(worst, error);
    }
    assert!(worst > 0.4, "the measurement itself is broken: {worst}");
    let next = |x: f32| f32::from_bits(x.to_bits() + 1);
    assert_eq!(scalar::exp(0.0).to_bits(), 1.0f32.to_bits());
    assert_eq!(scalar::exp(-0.0).to_bits(), 1.0f32.to_bits());
    assert!(scalar::exp(scalar::EXP_MAX).is_finite() && scalar::exp(scalar::EXP_MAX) > 3.402e38);
    assert_eq!(scalar::exp(next(scalar::EXP_MAX)), f32::INFINITY);
    assert!(scalar::exp(scalar::EXP_MIN) >= f32::MIN_POSITIVE);
    assert_eq!(scalar::exp(next(scalar::EXP_MIN)).to_bits(), 0);
    assert_eq!(scalar::exp(f32::NEG_INFINITY).to_bits(), 0);
    assert!(scalar::exp(f32::NAN).is_nan());
}

#[test]
fn rms_norm_equals_its_definition() {
    let mut rng = Rng(7);
    for n in (1..70).chain([256, 2048, 4099]) {
        let m = 3;
        let x = if n % 2 == 0 { rng.wild_floats(m * n) } else { rng.floats(m * n, 3.0) };
        let w = rng.floats(n, 1.0);
        let mut expect = vec![0.0; m * n];
        for (x, out) in x.chunks_exact(n).zip(expect.chunks_exact_mut(n)) {
            scalar::rms_norm(x, &w, 1e-5, out);
        }
        for kernels in kernels() {
            let mut out = vec![f32::NAN; m * n];
            kernels.rms_norm(&x, &w, 1e-5, &mut out);
            assert_bits(&expect, &out, &format!("{} rms_norm of {n}", kernels.isa()));
        }
    }
}

#[test]
fn rms_norm_of_a_known_row() {
    // Mean square of (3, 4, 0, 0) is 6.25; with eps 0 the row is divided by 2.5, which is 0.4 in f32.
    let mut out = [0.0; 4];
    scalar::rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 2.0, 1.0, 1.0], 0.0, &mut out);
    assert_eq!(out, [3.0 * 0.4f32, 4.0 * 0.4f32 * 2.0, 0.0, 0.0]);
}

#[test]
fn rotation_equals_its_definition() {
    let mut rng = Rng(8);
    for (head_dim, rope_dims) in [(2, 2), (8, 8), (64, 64), (80, 32), (128, 128), (18, 6)] {
        let table = RopeTable::new(40, rope_dims, 10_000.0, None).unwrap();
        for style in [RopeStyle::Interleaved, RopeStyle::Halves] {
            for pos in [0, 1, 39] {
                let x = rng.wild_floats(3 * head_dim);
                let mut expect = x.clone();
                expect.chunks_exact_mut(head_dim).for_each(|head| scalar::rope(head, pos, &table, style));
                for kernels in kernels() {
                    let mut out = x.clone();
                    kernels.rope(&mut out, head_dim, pos, &table, style);
                    assert_bits(
                        &expect,
                        &out,
                        &format!("{} rope {style:?} {head_dim}/{rope_dims} at {pos}", kernels.isa()),
                    );
                }
            }
        }
    }
}

/// A quarter turn, checked by hand: with freq factor f the angle is pos / f.
#[test]
fn rotation_turns_pairs_of_its_style() {
    let quarter = std::f32::consts::FRAC_2_PI;
    let table = RopeTable::new(2, 4, 1.0, Some(&[quarter, quarter])).unwrap();
    let turned = |style| {
        let mut x = [1.0, 2.0, 3.0, 4.0];
        scalar::rope(&mut x, 1, &table, style);
        x.map(|v| (v * 1e4).round() / 1e4)
    };
    assert_eq!(turned(RopeStyle::Interleaved), [-2.0, 1.0, -4.0, 3.0]);
    assert_eq!(turned(RopeStyle::Halves), [-3.0, -4.0, 1.0, 2.0]);
}

#[test]
fn rope_tables_are_fixed_and_reject_nonsense() {
    let table = RopeTable::new(300, 64, 500_000.0, None).unwrap();
    assert_eq!((table.n_positions(), table.rope_dims(), table.hash_bytes().len()), (300, 64, 16 + 300 * 32 * 2 * 4));
    let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32 * 0.25).collect();
    let with_factors = RopeTable::new(300, 64, 10_000.0, Some(&factors)).unwrap();
    assert_eq!(
        [&table, &with_factors].map(|t| hash_bytes(t.hash_bytes())),
        [0xfb29_be74_1645_244a, 0x09dd_755d_abb2_5199]
    );
    assert!(matches!(RopeTable::new(4, 5, 1e4, None), Err(RopeTableError::Shape { .. })));
    assert!(matches!(RopeTable::new(4, 0, 1e4, None), Err(RopeTableError::Shape { .. })));
    assert!(matches!(RopeTable::new(usize::MAX, 64, 1e4, None), Err(RopeTableError::Shape { .. })));
    assert!(matches!(RopeTable::new(4, 4, f64::NAN, None), Err(RopeTableError::ThetaBase(_))));
    assert_eq!(RopeTable::new(4, 4, 1e4, Some(&[1.0])).unwrap_err(), RopeTableError::Factors { at: 1 });
    assert_eq!(RopeTable::new(4, 4, 1e4, Some(&[1.0, 0.0])).unwrap_err(), RopeTableError::Factors { at: 1 });
}

#[test]
fn stored_keys_and_values_are_rounded_to_nearest_even() {
    let mut rng = Rng(9);
    for head_dim in [1, 8, 16, 63, 64, 80, 200] {
        for kernels in kernels() {
            let mut chunk_k = vec![0xdead; head_dim * 256];
            let mut chunk_v = chunk_k.clone();
            let (k, v) = (rng.wild_floats(head_dim), rng.wild_floats(head_dim));
            kernels.store_kv(&mut chunk_k, &mut chunk_v, 77, &k, &v);
            for (i, stored) in chunk_k.iter().enumerate() {
                // Position 77 is the 13th of the piece of 64 to 95, which begins behind two of head_dim lines of 32.
                let d = (i / 32).checked_sub(2 * head_dim).filter(|d| *d < head_dim && i % 32 == 13);
                let expect = d.map_or(0xdead, |d| f16::from_f32_rne(k[d]));
                assert_eq!(*stored, expect, "{} k[{i}]", kernels.isa());
            }
            for (i, stored) in chunk_v.iter().enumerate() {
                let expect = if i / head_dim == 77 { f16::from_f32_rne(v[i % head_dim]) } else { 0xdead };
                assert_eq!(*stored, expect, "{} v[{i}]", kernels.isa());
            }
        }
    }
}

#[test]
fn golden_outputs() {
    const GOLDEN: [u64; 5] = [
        0xa424_9376_c5c2_0eed,
        0x34f9_bc67_3052_81f5,
        0xe825_8576_c914_8e83,
        0xdf4f_f814_17f3_515a,
        0x26ad_a3ce_6b95_3ad9,
    ];
    let mut rng = Rng(10);
    let x = rng.floats(1000, 20.0);
    let w = rng.floats(100, 1.0);
    for kernels in kernels() {
        let mut exp = vec![0.0; 1000];
        kernels.exp(&x, &mut exp);
        let mut silu = vec![0.0; 1000];
        kernels.silu_mul(&x, &x, &mut silu);
        let mut norm = vec![0.0; 1000];
        kernels.rms_norm(&x, &w, 1e-6, &mut norm);
        let mut layer_norm = vec![0.0; 1000];
        kernels.layer_norm(&x, &w, &x[..100], 1e-12, &mut layer_norm);
        let mut gelu = x.clone();
        kernels.gelu_erf(&mut gelu);
        assert_eq!([&exp, &silu, &norm, &layer_norm, &gelu].map(|v| hash(v)), GOLDEN, "{}", kernels.isa());
    }
}
