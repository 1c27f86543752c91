//! `Q8_0` products with AVX2 and AVX-VNNI, and the activation quantizer for both.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and saturates pairs to i16. With |w| <= 128 and |x| <= 127 a pair is
//! at most 2 * 128 * 127 = 32512 < 2^15, so nothing saturates and the sums are exact. One operand gives its
//! sign to the other: `sign(x, w)` is always possible (x is never -128), `sign(w, x)` only without a weight of -128.

#![expect(clippy::needless_range_loop, reason = "register tiles: several arrays indexed by constant bounds")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::ask;
use super::avx2::{keep, load8, load8_f16, store8};
use crate::acts::ActBlock;
use crate::matmul::Columns;
use crate::matrix::{GROUP, Q8Weights, WeightBlock};
use crate::scalar::Q8_BLOCK;

/// Rows of a half group: one register of f32.
const HALF: usize = GROUP / 2;

macro_rules! groups {
    ($name:ident, $features:literal, $single:ident, $tile:ident, $doc:literal) => {
        #[doc = $doc]
        #[target_feature(enable = $features)]
        pub(crate) fn $name(w: &Q8Weights, groups: Range<usize>, x: &[ActBlock], out: &mut Columns<'_>) {
            let m = x.len() / w.n_blocks;
            let mut t = 0;
            while t < m {
                let n = (m - t).min(4);
                for g in groups.clone() {
                    match n {
                        1 => $single(w, g, x, t, out),
                        2 => $tile::<2>(w, g, x, t, out),
                        3 => $tile::<3>(w, g, x, t, out),
                        _ => $tile::<4>(w, g, x, t, out),
                    }
                }
                t += n;
            }
        }
    };
}

groups!(q8_groups, "avx2,fma,f16c", single, tile, "Groups `groups` times all tokens of `x: [m, n_blocks]`.");
groups!(q8_groups_vnni, "avx2,avxvnni,fma,f16c", single_vnni, tile_vnni, "As [`q8_groups`], with `vpdpbusd`.");

/// Group `g` times tokens `t..t + T`, one half after the other: both at once need more registers than there are.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const T: usize>(w: &Q8Weights, g: usize, x: &[ActBlock], t: usize, out: &mut Columns<'_>) {
    half_tile::<0, T>(w, g, x, t, out);
    half_tile::<1, T>(w, g, x, t, out);
}

/// Half H of group `g` times tokens `t..t + T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn half_tile<const H: usize, const T: usize>(w: &Q8Weights, g: usize, x: &[ActBlock], t: usize, out: &mut Columns<'_>) {
    let n = w.n_blocks;
    let (q, d) = w.group(g);
    let (q, d) = (&q[..n], &d[..n]);
    let x: [&[ActBlock]; T] = std::array::from_fn(|i| &x[(t + i) * n..(t + i + 1) * n]);
    let (ones, top_bit) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
    let mut acc = [_mm256_setzero_ps(); T];
    for b in 0..n {
        let mut isum = [_mm256_setzero_si256(); T];
        for line in 0..8 {
            let weights = _mm256_xor_si256(half_line::<H>(&q[b], line), top_bit);
            let magnitudes = _mm256_abs_epi8(weights);
            for i in 0..T {
                let signed = _mm256_sign_epi8(four(&x[i][b], line), weights);
                let pairs = _mm256_maddubs_epi16(magnitudes, signed);
                isum[i] = keep(_mm256_add_epi32(isum[i], _mm256_madd_epi16(pairs, ones)));
            }
        }
        let dw = load8_f16(half::<H, _>(&d[b]));
        for i in 0..T {
            acc[i] = step(isum[i], dw, x[i][b].d, acc[i]);
        }
    }
    for i in 0..T {
        write::<H>(acc[i], g, t + i, out);
    }
}

/// Group `g` times token `t`, both halves in one pass over memory.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn single(w: &Q8Weights, g: usize, x: &[ActBlock], t: usize, out: &mut Columns<'_>) {
    if w.has_min {
        return tile::<1>(w, g, x, t, out);
    }
    let n = w.n_blocks;
    let (q, d) = w.group(g);
    let (ones, top_bit) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
    let mut acc = [_mm256_setzero_ps(); 2];
    for ((q, d), x) in q.iter().zip(d).zip(&x[t * n..(t + 1) * n]) {
        // Two sums per half: the chain of additions would otherwise be longer than the loads take.
        let mut isum = [[_mm256_setzero_si256(); 2]; 2];
        ask(d);
        for line in 0..8 {
            ask(&q.0[line]);
            let x = four(x, line);
            let magnitudes = _mm256_abs_epi8(x);
            let halves = [half_line::<0>(q, line), half_line::<1>(q, line)];
            for h in 0..2 {
                let signed = _mm256_sign_epi8(_mm256_xor_si256(halves[h], top_bit), x);
                let pairs = _mm256_maddubs_epi16(magnitudes, signed);
                isum[h][line % 2] = _mm256_add_epi32(isum[h][line % 2], _mm256_madd_epi16(pairs, ones));
            }
        }
        acc[0] = step(_mm256_add_epi32(isum[0][0], isum[0][1]), load8_f16(half::<0, _>(d)), x.d, acc[0]);
        acc[1] = step(_mm256_add_epi32(isum[1][0], isum[1][1]), load8_f16(half::<1, _>(d)), x.d, acc[1]);
    }
    write::<0>(acc[0], g, t, out);
    write::<1>(acc[1], g, t, out);
}

/// Group `g` times tokens `t..t + T`, both halves at once, so that activations are loaded half as often (a load is
/// what limits it). The offset of 128 in the weights is taken off as in the AVX-512 kernel.
#[inline]
#[target_feature(enable = "avx2,avxvnni,fma,f16c")]
fn tile_vnni<const T: usize>(w: &Q8Weights, g: usize, x: &[ActBlock], t: usize, out: &mut Columns<'_>) {
    let n = w.n_blocks;
    let (q, d) = w.group(g);
    let (q, d) = (&q[..n], &d[..n]);
    let x: [&[ActBlock]; T] = std::array::from_fn(|i| &x[(t + i) * n..(t + i + 1) * n]);
    let mut acc = [[_mm256_setzero_ps(); 2]; T];
    for b in 0..n {
        let mut isum = [[_mm256_setzero_si256(); 2]; T];
        for i in 0..T {
            isum[i] = [_mm256_set1_epi32(x[i][b].offset); 2];
        }
        for line in 0..8 {
            let weights = [half_line::<0>(&q[b], line), half_line::<1>(&q[b], line)];
            for i in 0..T {
                let x = four(&x[i][b], line);
                for h in 0..2 {
                    isum[i][h] = _mm256_dpbusd_avx_epi32(isum[i][h], weights[h], x);
                }
            }
        }
        let dw = [load8_f16(half::<0, _>(&d[b])), load8_f16(half::<1, _>(&d[b]))];
        for i in 0..T {
            for h in 0..2 {
                acc[i][h] = step(isum[i][h], dw[h], x[i][b].d, acc[i][h]);
            }
        }
    }
    for i in 0..T {
        write::<0>(acc[i][0], g, t + i, out);
        write::<1>(acc[i][1], g, t + i, out);
    }
}

#[inline]
#[target_feature(enable = "avx2,avxvnni,fma,f16c")]
fn single_vnni(w: &Q8Weights, g: usize, x: &[ActBlock], t: usize, out: &mut Columns<'_>) {
    let n = w.n_blocks;
    let (q, d) = w.group(g);
    let mut acc = [_mm256_setzero_ps(); 2];
    for ((q, d), x) in q.iter().zip(d).zip(&x[t * n..(t + 1) * n]) {
        let mut isum = [_mm256_set1_epi32(x.offset); 2];
        ask(d);
        for line in 0..8 {
            ask(&q.0[line]);
            let x = four(x, line);
            isum[0] = _mm256_dpbusd_avx_epi32(isum[0], half_line::<0>(q, line), x);
            isum[1] = _mm256_dpbusd_avx_epi32(isum[1], half_line::<1>(q, line), x);
        }
        acc[0] = step(isum[0], load8_f16(half::<0, _>(d)), x.d, acc[0]);
        acc[1] = step(isum[1], load8_f16(half::<1, _>(d)), x.d, acc[1]);
    }
    write::<0>(acc[0], g, t, out);
    write::<1>(acc[1], g, t, out);
}

/// `fma(f32(isum), dw * dx, acc)`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn step(isum: __m256i, dw: __m256, dx: f32, acc: __m256) -> __m256 {
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), _mm256_mul_ps(dw, _mm256_set1_ps(dx)), acc)
}

/// Four activations in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn four(x: &ActBlock, line: usize) -> __m256i {
    _mm256_set1_epi32(i32::from_ne_bytes(x.q[line].map(|q| q as u8)))
}

#[inline(always)]
fn half<const H: usize, T>(x: &[T; GROUP]) -> &[T; HALF] {
    &x.as_chunks().0[H]
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "vector load")]
fn half_line<const H: usize>(q: &WeightBlock, line: usize) -> __m256i {
    let bytes: &[u8; 32] = &q.0[line].as_chunks().0[H];
    // SAFETY: the reference covers the 32 bytes read; the load is unaligned.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn write<const H: usize>(acc: __m256, g: usize, t: usize, out: &mut Columns<'_>) {
    let mut rows = [0.0; HALF];
    store8(acc, &mut rows);
    out.write(t, g * GROUP + H * HALF, &rows);
}

/// [`crate::scalar::quantize_block`] for each block.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn quantize(x: &[[f32; Q8_BLOCK]], out: &mut [ActBlock]) {
    let magnitude = _mm256_set1_epi32(0x7fff_ffff);
    let (most, least) = (_mm256_set1_ps(127.0), _mm256_set1_ps(-127.0));
    for (x, out) in x.iter().zip(out) {
        let (x, _) = x.as_chunks::<8>();
        let x = [load8(&x[0]), load8(&x[1]), load8(&x[2]), load8(&x[3])];
        let bits = |v| _mm256_and_si256(_mm256_castps_si256(v), magnitude);
        let max = _mm256_max_epi32(_mm256_max_epi32(bits(x[0]), bits(x[1])), _mm256_max_epi32(bits(x[2]), bits(x[3])));
        let amax_bits = lanes(max).iter().fold(0, |a, &b| a.max(b)) as u32;
        if amax_bits >= f32::INFINITY.to_bits() {
            *out = ActBlock { q: [[0; 4]; 8], d: f32::NAN, offset: 0 };
            continue;
        }
        let amax = _mm_set_ss(f32::from_bits(amax_bits) / 127.0);
        let d = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(amax)));
        let id = _mm256_set1_ps(if d > 0.0 { 1.0 / d } else { 0.0 });
        // Clamping first and rounding after is the same: the bounds are integers.
        let round = |v| _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(_mm256_mul_ps(v, id), most), least));
        let q = [round(x[0]), round(x[1]), round(x[2]), round(x[3])];
        let packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        // The packs work within halves of the register; this puts the groups of four back in order.
        let packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        store_block(packed, &mut out.q);
        let sum = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
        out.d = d;
        out.offset = -128 * lanes(sum).iter().sum::<i32>();
    }
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "vector store")]
pub(super) fn lanes(x: __m256i) -> [i32; 8] {
    let mut out = [0; 8];
    // SAFETY: the array has the 32 bytes written; the store is unaligned.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) };
    out
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "vector store")]
fn store_block(x: __m256i, out: &mut [[i8; 4]; 8]) {
    // SAFETY: the array has the 32 bytes written; the store is unaligned.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) };
}
