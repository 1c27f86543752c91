//! `Q8_0` products with AVX-512 VNNI and the activation quantizer.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes: the stored weights are w + 128, and starting the integer sum at
//! -128 * sum(x) takes the offset off again. All of it is exact in i32: at most 32 * 255 * 127 + 128 * 32 * 127 < 2^21.

#![expect(clippy::needless_range_loop, reason = "register tiles: several arrays indexed by constant bounds")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{load, load_f16, store};
use super::{LINE, ask, fetch};
use crate::acts::ActBlock;
use crate::k_kernels::TOKENS;
use crate::matmul::{Columns, GROUPS};
use crate::matrix::{GROUP, Q8Weights, WeightBlock};
use crate::scalar::Q8_BLOCK;

/// Blocks of columns that meet some tokens before the next ones do: with four groups 9 KB, so that these weights and the
/// next ones, which are asked for meanwhile, fit the L1 cache beside the tokens and their sums.
const PANEL: usize = 4;

/// Tokens of a register tile, at most.
const TILE: usize = 4;

/// With so few tiles the first one asks memory for the next panel, line by line; with more, each of them for a part.
const EVENLY: usize = 2;

/// Sums of some tokens for G groups.
#[repr(align(64))]
struct Sums<const G: usize>([[[f32; GROUP]; G]; TOKENS]);

impl<const G: usize> Sums<G> {
    fn zero() -> Self {
        Sums([[[0.0; GROUP]; G]; TOKENS])
    }
}

/// Groups `groups` times all tokens of `x: [m, n_blocks]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(crate) fn q8_groups(w: &Q8Weights, groups: Range<usize>, x: &[ActBlock], out: &mut Columns<'_>) {
    let n = w.n_blocks;
    if x.len() == n {
        return groups.for_each(|g| single(w, g, x, out));
    }
    let mut sums = Sums::<GROUPS>::zero();
    for (i, x) in x.chunks(TOKENS * n).enumerate() {
        let mut g = groups.start;
        while g + GROUPS <= groups.end {
            panels(w, g, x, i * TOKENS, &mut sums, out);
            g += GROUPS;
        }
        for g in g..groups.end {
            panels(w, g, x, i * TOKENS, &mut Sums::<1>::zero(), out);
        }
    }
}

/// Group `g` times one token: one stream of memory, which can be asked for ahead of time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn single(w: &Q8Weights, g: usize, x: &[ActBlock], out: &mut Columns<'_>) {
    let (q, d) = w.group(g);
    let mut acc = _mm512_setzero_ps();
    for (b, ((q, d), x)) in q.iter().zip(d).zip(x).enumerate() {
        let mut isum = _mm512_set1_epi32(x.offset);
        for (line, x) in q.0.iter().zip(&x.q) {
            ask(line);
            isum = _mm512_dpbusd_epi32(isum, load_bytes(line), four(*x));
        }
        // Two rows of scales are one line.
        if b % 2 == 0 {
            ask(d);
        }
        acc = step(isum, load_f16(d), x.d, acc);
    }
    let mut rows = [0.0; GROUP];
    store(acc, &mut rows);
    out.write(0, g * GROUP, &rows);
}

/// The first G of `groups` times the tokens of `x: [at most TOKENS, n_blocks]`, which are `first_token` and those after
/// it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn panels<const G: usize>(
    w: &Q8Weights,
    g: usize,
    x: &[ActBlock],
    first_token: usize,
    sums: &mut Sums<G>,
    out: &mut Columns<'_>,
) {
    let n = w.n_blocks;
    let m = x.len() / n;
    let mut groups = [w.group(g); G];
    for (j, group) in groups.iter_mut().enumerate() {
        *group = w.group(g + j);
    }
    let sums = &mut sums.0[..m];
    sums.as_flattened_mut().as_flattened_mut().fill(0.0);
    let mut first = 0;
    while first < n {
        // After the last panel comes the first one of the next groups.
        let ahead = |size| if first + size < n { first + size } else { G * n };
        if first + PANEL <= n {
            panel::<G, PANEL>(&groups, first, ahead(PANEL), x, sums);
            first += PANEL;
        } else {
            panel::<G, 1>(&groups, first, ahead(1), x, sums);
            first += 1;
        }
    }
    for (t, sums) in sums.iter().enumerate() {
        out.write(first_token + t, g * GROUP, sums.as_flattened());
    }
}

/// Blocks of a group and their scales.
type Blocks<'a> = (&'a [WeightBlock], &'a [[u16; GROUP]]);

/// Blocks `first..first + P` of G groups times all tokens of `x`; meanwhile memory is asked for as many blocks from
/// `ahead` on, counted from the start of each group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn panel<const G: usize, const P: usize>(
    groups: &[Blocks<'_>; G],
    first: usize,
    ahead: usize,
    x: &[ActBlock],
    sums: &mut [[[f32; GROUP]; G]],
) {
    let n = x.len() / sums.len();
    let n_tiles = sums.len().div_ceil(TILE);
    let mut t = 0;
    for tile in 0..n_tiles {
        let (x, left) = (&x[t * n..], &mut sums[t..]);
        // Tiles of nearly the same size: the sums of a small one would wait for each other.
        let size = left.len().div_ceil(n_tiles - tile);
        if n_tiles <= EVENLY && tile == 0 {
            t += match size {
                1 => add_tile::<G, 1, P, true>(groups, first, ahead, n, x, left),
                2 => add_tile::<G, 2, P, true>(groups, first, ahead, n, x, left),
                3 => add_tile::<G, 3, P, true>(groups, first, ahead, n, x, left),
                _ => add_tile::<G, 4, P, true>(groups, first, ahead, n, x, left),
            };
            continue;
        }
        if n_tiles > EVENLY {
            // Each tile asks for its part, so that memory and arithmetic are busy at the same time.
            for piece in (tile..G * P).step_by(n_tiles) {
                let ((q, d), b) = (groups[piece % G], ahead + piece / G);
                (0..8).for_each(|line| fetch(q.as_ptr().wrapping_add(b).wrapping_byte_add(line * LINE)));
                fetch(d.as_ptr().wrapping_add(b));
            }
        }
        t += match size {
            1 => add_tile::<G, 1, P, false>(groups, first, ahead, n, x, left),
            2 => add_tile::<G, 2, P, false>(groups, first, ahead, n, x, left),
            3 => add_tile::<G, 3, P, false>(groups, first, ahead, n, x, left),
            _ => add_tile::<G, 4, P, false>(groups, first, ahead, n, x, left),
        };
    }
}

/// Blocks `first..first + P` of G groups times the first T tokens of `x: [at least T, n]`: [`crate::scalar::q8_dot`] in
/// each of the 16 lanes, from `sums` on; returns T.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn add_tile<const G: usize, const T: usize, const P: usize, const ASK: bool>(
    groups: &[Blocks<'_>; G],
    first: usize,
    ahead: usize,
    n: usize,
    x: &[ActBlock],
    sums: &mut [[[f32; GROUP]; G]],
) -> usize {
    // Of known length, so that nothing is checked in the loops, where that would keep the sums from running side by side.
    let (mut q, mut d): ([&[_; P]; G], [&[_; P]; G]) = ([at(groups[0].0, first); G], [at(groups[0].1, first); G]);
    let mut acts: [&[_; P]; T] = [at(x, first); T];
    for j in 1..G {
        (q[j], d[j]) = (at(groups[j].0, first), at(groups[j].1, first));
    }
    for i in 1..T {
        acts[i] = at(x, i * n + first);
    }
    let sums: &mut [_; T] = sums.first_chunk_mut().expect("sums of T tokens");
    for b in 0..P {
        let mut isum = [[_mm512_setzero_si512(); T]; G];
        for i in 0..T {
            let offset = _mm512_set1_epi32(acts[i][b].offset);
            for j in 0..G {
                isum[j][i] = offset;
            }
        }
        for line in 0..8 {
            let mut weights = [_mm512_setzero_si512(); G];
            for j in 0..G {
                if ASK {
                    fetch(groups[j].0.as_ptr().wrapping_add(ahead + b).wrapping_byte_add(line * LINE));
                }
                weights[j] = load_bytes(&q[j][b].0[line]);
            }
            for i in 0..T {
                let four = four(acts[i][b].q[line]);
                for j in 0..G {
                    isum[j][i] = _mm512_dpbusd_epi32(isum[j][i], weights[j], four);
                }
            }
        }
        for j in 0..G {
            // Two rows of scales are one line.
            if ASK && b % 2 == 0 {
                fetch(groups[j].1.as_ptr().wrapping_add(ahead + b));
            }
            let dw = load_f16(&d[j][b]);
            for i in 0..T {
                let sum = &mut sums[i][j];
                store(step(isum[j][i], dw, acts[i][b].d, load(sum)), sum);
            }
        }
    }
    T
}

/// N elements from `from` on.
#[inline(always)]
fn at<T, const N: usize>(values: &[T], from: usize) -> &[T; N] {
    values[from..].first_chunk().expect("N elements are left")
}

/// `fma(f32(isum), dw * dx, acc)`.
#[inline]
#[target_feature(enable = "avx512f")]
fn step(isum: __m512i, dw: __m512, dx: f32, acc: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum), _mm512_mul_ps(dw, _mm512_set1_ps(dx)), acc)
}

/// Four activations in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn four(q: [i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_ne_bytes(q.map(|q| q as u8)))
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
