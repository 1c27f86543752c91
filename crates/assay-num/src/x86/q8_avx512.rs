//! `Q8_0` products with AVX-512 VNNI and the activation quantizer.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes: the stored weights are w + 128, and starting the integer sum at
//! -128 * sum(x) takes the offset off again. All of it is exact in i32: at most 32 * 255 * 127 + 128 * 32 * 127 < 2^21.

#![expect(clippy::needless_range_loop, reason = "register tiles: several arrays indexed by constant bounds")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::ask_for_one_of;
use super::avx512::{load, load_f16, store};
use crate::acts::ActBlock;
use crate::matmul::{Columns, GROUPS};
use crate::matrix::{GROUP, Q8Weights};
use crate::scalar::Q8_BLOCK;

/// Groups `groups` times all tokens of `x: [m, n_blocks]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(crate) fn q8_groups(w: &Q8Weights, groups: Range<usize>, x: &[ActBlock], out: &mut Columns<'_>) {
    let m = x.len() / w.n_blocks;
    let mut t = 0;
    while t < m {
        t += match m - t {
            // One group is one stream of memory, which is what can be asked for ahead of time.
            1 => tokens::<1, 1>(w, groups.clone(), x, t, out),
            2 => tokens::<GROUPS, 2>(w, groups.clone(), x, t, out),
            3 => tokens::<GROUPS, 3>(w, groups.clone(), x, t, out),
            _ => tokens::<GROUPS, 4>(w, groups.clone(), x, t, out),
        };
    }
}

/// All groups times tokens `t..t + T`, G groups at a time; returns T. Four groups and four tokens make 16 sums of each
/// kind, measured faster than 2 x 6 for small batches and equal for large ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn tokens<const G: usize, const T: usize>(
    w: &Q8Weights,
    groups: Range<usize>,
    x: &[ActBlock],
    t: usize,
    out: &mut Columns<'_>,
) -> usize {
    let mut g = groups.start;
    while g + G <= groups.end {
        if t == 0 {
            tile::<G, T, true>(w, g, x, t, out);
        } else {
            tile::<G, T, false>(w, g, x, t, out);
        }
        g += G;
    }
    for g in g..groups.end {
        tile::<1, T, true>(w, g, x, t, out);
    }
    T
}

/// Groups `g..g + G` times tokens `t..t + T`: [`crate::scalar::q8_dot`] in each of the 16 lanes. The first tokens find the
/// weights in memory, the others in the L2 cache.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn tile<const G: usize, const T: usize, const FIRST: bool>(
    w: &Q8Weights,
    g: usize,
    x: &[ActBlock],
    t: usize,
    out: &mut Columns<'_>,
) {
    let n = w.n_blocks;
    let groups: [_; G] = std::array::from_fn(|i| w.group(g + i));
    let q = groups.map(|(q, _)| &q[..n]);
    let d = groups.map(|(_, d)| &d[..n]);
    let x: [&[ActBlock]; T] = std::array::from_fn(|i| &x[(t + i) * n..(t + i + 1) * n]);
    let mut acc = [[_mm512_setzero_ps(); T]; G];
    for b in 0..n {
        let mut isum = [[_mm512_setzero_si512(); T]; G];
        for i in 0..T {
            let offset = _mm512_set1_epi32(x[i][b].offset);
            for j in 0..G {
                isum[j][i] = offset;
            }
        }
        for line in 0..8 {
            let mut weights = [_mm512_setzero_si512(); G];
            for j in 0..G {
                if FIRST {
                    ask_for_one_of::<G, _>(&q[j][b].0[line]);
                }
                weights[j] = load_bytes(&q[j][b].0[line]);
            }
            for i in 0..T {
                let four = _mm512_set1_epi32(i32::from_ne_bytes(x[i][b].q[line].map(|q| q as u8)));
                for j in 0..G {
                    isum[j][i] = _mm512_dpbusd_epi32(isum[j][i], weights[j], four);
                }
            }
        }
        for j in 0..G {
            if FIRST && b % 2 == 0 {
                ask_for_one_of::<G, _>(&d[j][b]);
            }
            let dw = load_f16(&d[j][b]);
            for i in 0..T {
                let scale = _mm512_mul_ps(dw, _mm512_set1_ps(x[i][b].d));
                acc[j][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[j][i]), scale, acc[j][i]);
            }
        }
    }
    for j in 0..G {
        for i in 0..T {
            let mut rows = [0.0; GROUP];
            store(acc[j][i], &mut rows);
            out.write(t + i, (g + j) * GROUP, &rows);
        }
    }
}

/// [`crate::scalar::quantize_block`] for each block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
pub(crate) fn quantize(x: &[[f32; Q8_BLOCK]], out: &mut [ActBlock]) {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let (most, least) = (_mm512_set1_ps(127.0), _mm512_set1_ps(-127.0));
    for (x, out) in x.iter().zip(out) {
        let (x, _) = x.as_chunks::<16>();
        let (low, high) = (load(&x[0]), load(&x[1]));
        let bits = |v| _mm512_and_si512(_mm512_castps_si512(v), magnitude);
        let amax_bits = _mm512_reduce_max_epi32(_mm512_max_epi32(bits(low), bits(high))) as u32;
        if amax_bits >= f32::INFINITY.to_bits() {
            *out = ActBlock { q: [[0; 4]; 8], d: f32::NAN, offset: 0 };
            continue;
        }
        let amax = _mm_set_ss(f32::from_bits(amax_bits) / 127.0);
        let d = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(amax)));
        let id = _mm512_set1_ps(if d > 0.0 { 1.0 / d } else { 0.0 });
        // Clamping first and rounding after is the same: the bounds are integers.
        let round = |v| _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(_mm512_mul_ps(v, id), most), least));
        let (low, high) = (round(low), round(high));
        let (q, _) = out.q.as_chunks_mut::<4>();
        store_bytes(_mm512_cvtepi32_epi8(low), q[0].as_flattened_mut());
        store_bytes(_mm512_cvtepi32_epi8(high), q[1].as_flattened_mut());
        out.d = d;
        out.offset = -128 * _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vector load")]
fn load_bytes(x: &[u8; 64]) -> __m512i {
    // SAFETY: the reference covers the 64 bytes read; the load is unaligned.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vector store")]
fn store_bytes(x: __m128i, out: &mut [i8]) {
    assert_eq!(out.len(), 16);
    // SAFETY: the slice has the 16 bytes written; the store is unaligned.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), x) }
}
