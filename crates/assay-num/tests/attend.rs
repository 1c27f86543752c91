//! Attention of every instruction set against the scalar definition, and the definition against f64.

mod support;

use assay_num::{AttendScratch, KV_CHUNK, Kernels, KvChunk, Scoring, f16, scalar};
use support::{Rng, assert_bits, hash, kernels};

struct Cache {
    k: Vec<Vec<u16>>,
    v: Vec<Vec<u16>>,
}

impl Cache {
    /// `n` valid positions; what lies beyond is NaN, so that a masked key that enters is seen.
    fn new(rng: &mut Rng, head_dim: usize, n: usize, size: f32) -> Cache {
        let n_chunks = n.div_ceil(KV_CHUNK);
        let mut cache = Cache {
            k: vec![vec![0x7e00; head_dim * KV_CHUNK]; n_chunks],
            v: vec![vec![0x7e00; head_dim * KV_CHUNK]; n_chunks],
        };
        for p in 0..n {
            let (k, v) = (rng.floats(head_dim, size), rng.floats(head_dim, 1.0));
            let c = p / KV_CHUNK;
            Kernels::detect().store_kv(&mut cache.k[c], &mut cache.v[c], p % KV_CHUNK, &k, &v);
        }
        cache
    }

    fn chunks(&self) -> Vec<KvChunk<'_>> {
        self.k.iter().zip(&self.v).map(|(k, v)| KvChunk { k, v }).collect()
    }
}

#[test]
fn attention_equals_its_definition() {
    let mut rng = Rng(11);
    for head_dim in [1, 8, 16, 24, 32, 64, 80, 96, 128, 256] {
        for n_keys in [1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 300, 511, 512, 513, 777] {
            let cache = Cache::new(&mut rng, head_dim, n_keys, 2.0);
            let chunks = cache.chunks();
            let q = rng.floats(head_dim, 2.0);
            let scale = 1.0 / (head_dim as f32).sqrt();
            let mut expect = vec![f32::NAN; head_dim];
            scalar::attend(&q, &chunks, n_keys, scale, &mut expect);
            for kernels in kernels() {
                let mut out = vec![f32::NAN; head_dim];
                kernels.attend(&q, &chunks, n_keys, scale, &mut AttendScratch::new(), &mut out);
                assert_bits(&expect, &out, &format!("{} head_dim {head_dim}, {n_keys} keys", kernels.isa()));
            }
        }
    }
}

/// Any number of queries, each with its own number of keys, over one reused scratch.
#[test]
fn many_queries_equal_single_ones() {
    let mut rng = Rng(12);
    let n_positions = 600;
    for head_dim in [16, 40, 64, 128] {
        let cache = Cache::new(&mut rng, head_dim, n_positions, 1.0);
        let chunks = cache.chunks();
        let mut scratch: Vec<_> = kernels().iter().map(|_| AttendScratch::new()).collect();
        for n in 1..=13 {
            let causal = |i: usize| 250 + i;
            let mixed = |i: usize| [600, 1, 256, 257, 30, 512, 513][i % 7];
            for lengths in [causal as fn(usize) -> usize, mixed] {
                let n_keys: Vec<usize> = (0..n).map(lengths).collect();
                let q = rng.floats(n * head_dim, 1.0);
                let mut expect = vec![0.0; n * head_dim];
                for (i, out) in expect.chunks_exact_mut(head_dim).enumerate() {
                    scalar::attend(&q[i * head_dim..][..head_dim], &chunks, n_keys[i], 0.125, out);
                }
                for (kernels, scratch) in kernels().into_iter().zip(&mut scratch) {
                    let mut out = vec![f32::NAN; n * head_dim];
                    kernels.attend_many(&q, &n_keys, &chunks, 0.125, scratch, &mut out);
                    assert_bits(&expect, &out, &format!("{} {n} queries of {head_dim}", kernels.isa()));
                }
            }
        }
    }
}

/// What lies before every window is NaN here, so that a key that should be hidden is seen.
#[test]
fn windows_and_caps_equal_their_definition() {
    let mut rng = Rng(17);
    let n_positions = 800;
    for head_dim in [8, 24, 64, 256] {
        let whole = Cache::new(&mut rng, head_dim, n_positions, 2.0);
        for window in [1, 2, 16, 17, 250, 256, 257, 300, 512, 799, 800, 5000] {
            let scoring = Scoring { scale: 0.25, softcap: Some(3.0), window: Some(window) };
            for lengths in [[795, 796, 797, 798, 799, 800, 800], [1, 2, 256, 257, 258, 700, 800], [300; 7]] {
                let first = lengths.iter().map(|n| scoring.first_key(*n)).min().unwrap();
                let mut cache = Cache { k: whole.k.clone(), v: whole.v.clone() };
                for p in 0..first {
                    let (c, p) = (p / KV_CHUNK, p % KV_CHUNK);
                    cache.v[c][p * head_dim..][..head_dim].fill(0x7e00);
                    (0..head_dim).for_each(|d| cache.k[c][KvChunk::key_index(head_dim, d, p)] = 0x7e00);
                }
                let chunks = cache.chunks();
                let q = rng.floats(7 * head_dim, 1.0);
                let mut expect = vec![f32::NAN; q.len()];
                for (i, out) in expect.chunks_exact_mut(head_dim).enumerate() {
                    scalar::attend(&q[i * head_dim..][..head_dim], &chunks, lengths[i], scoring, out);
                }
                assert!(expect.iter().all(|x| x.is_finite()), "window {window} of {lengths:?}");
                for kernels in kernels() {
                    let mut out = vec![f32::NAN; q.len()];
                    kernels.attend_many(&q, &lengths, &chunks, scoring, &mut AttendScratch::new(), &mut out);
                    assert_bits(&expect, &out, &format!("{} window {window} of {lengths:?}", kernels.isa()));
                }
            }
        }
    }
}

/// A window changes the result as leaving the keys out does, and one that hides nothing changes nothing.
#[test]
fn a_window_is_as_if_the_keys_were_not_there() {
    let mut rng = Rng(18);
    let head_dim = 32;
    let cache = Cache::new(&mut rng, head_dim, 600, 2.0);
    let q = rng.floats(head_dim, 2.0);
    let attend = |chunks: &[KvChunk<'_>], n, window| {
        let mut out = vec![0.0; head_dim];
        scalar::attend(&q, chunks, n, Scoring { scale: 0.2, softcap: None, window }, &mut out);
        out
    };
    let chunks = cache.chunks();
    assert_bits(&attend(&chunks, 600, None), &attend(&chunks, 600, Some(600)), "a window of all keys");
    // From the border of a chunk on, the hidden chunks can really be taken away.
    let hidden = attend(&chunks[1..], 600 - KV_CHUNK, None);
    assert_bits(&hidden, &attend(&chunks, 600, Some(600 - KV_CHUNK)), "a window of whole chunks");
    assert!(attend(&chunks, 600, None) != hidden);
}

/// Scores far apart: weights underflow to 0 and whole chunks vanish against others, in both orders.
#[test]
fn extreme_scores_equal_the_definition() {
    let mut rng = Rng(13);
    let head_dim = 32;
    let cache = Cache::new(&mut rng, head_dim, 700, 3e4);
    let chunks = cache.chunks();
    for q_size in [0.0, -0.0, 1e-30, 1.0, 300.0, 1e20] {
        let q = rng.floats(head_dim, q_size);
        let mut expect = vec![0.0; head_dim];
        scalar::attend(&q, &chunks, 700, 1.0, &mut expect);
        for kernels in kernels() {
            let mut out = vec![f32::NAN; head_dim];
            kernels.attend(&q, &chunks, 700, 1.0, &mut AttendScratch::new(), &mut out);
            assert_bits(&expect, &out, &format!("{} q of size {q_size}", kernels.isa()));
        }
    }
}

/// The definition computes softmax(q k / sqrt(d)) v: compared with f64 to a few parts in a million.
#[test]
fn attention_is_softmax_attention() {
    let mut rng = Rng(14);
    let (head_dim, n) = (64, 700);
    let cache = Cache::new(&mut rng, head_dim, n, 2.0);
    let q = rng.floats(head_dim, 2.0);
    let wide = |bits: u16| f64::from(f16::to_f32(bits));
    let key = |p: usize, d: usize| wide(cache.k[p / KV_CHUNK][KvChunk::key_index(head_dim, d, p % KV_CHUNK)]);
    let value = |p: usize, d: usize| wide(cache.v[p / KV_CHUNK][p % KV_CHUNK * head_dim + d]);
    let weights: Vec<f64> =
        (0..n).map(|p| libm::exp((0..head_dim).map(|d| f64::from(q[d]) * key(p, d)).sum::<f64>() * 0.125)).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0; head_dim];
    scalar::attend(&q, &cache.chunks(), n, 0.125, &mut out);
    for (d, out) in out.iter().enumerate() {
        let exact: f64 = weights.iter().enumerate().map(|(p, w)| w * value(p, d)).sum::<f64>() / sum;
        assert!((f64::from(*out) - exact).abs() < 3e-6, "dimension {d}: {out} for {exact}");
    }
}

/// A NaN in a key or value that takes part is visible in the result.
#[test]
fn a_value_that_is_not_finite_is_not_hidden() {
    let mut rng = Rng(15);
    let head_dim = 32;
    for bad in [0x7e00, 0x7c00, 0xfc00] {
        let mut cache = Cache::new(&mut rng, head_dim, 300, 1.0);
        cache.v[0][100 * head_dim + 3] = bad;
        let q = rng.floats(head_dim, 1.0);
        for kernels in kernels() {
            let mut out = vec![0.0; head_dim];
            kernels.attend(&q, &cache.chunks(), 300, 0.2, &mut AttendScratch::new(), &mut out);
            assert!(!out[3].is_finite(), "{}", kernels.isa());
        }
        cache.k[0][KvChunk::key_index(head_dim, 5, 20)] = 0x7e00;
        for kernels in kernels() {
            let mut out = vec![0.0; head_dim];
            kernels.attend(&q, &cache.chunks(), 300, 0.2, &mut AttendScratch::new(), &mut out);
            assert!(out.iter().all(|v| v.is_nan()), "{}", kernels.isa());
        }
    }
}

#[test]
fn golden_outputs() {
    let mut rng = Rng(16);
    let cache = Cache::new(&mut rng, 64, 600, 1.0);
    let q = rng.floats(3 * 64, 1.0);
    for kernels in kernels() {
        let mut out = vec![0.0; 3 * 64];
        kernels.attend_many(&q, &[600, 20, 256], &cache.chunks(), 0.125, &mut AttendScratch::new(), &mut out);
        assert_eq!(hash(&out), 0x0ca6_2a08_4d31_641c, "{}", kernels.isa());
    }
}
