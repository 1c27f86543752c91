//! The float kernels, written once for a vector of 16 lanes and instantiated per instruction set.
//!
//! The module that calls the macro provides the type `V` and the operations `zero`, `splat`, `load`, `load_f16`,
//! `load_bf16`, `store`, `store_f16`, `fma`, `add`, `sub`, `mul`, `div`, `maximum`, `round`, `add_exponent`, `select_gt`, `lane_sum`.
//! An expansion is one source for NEON (four registers per `V`), AVX2 (two) and AVX-512 (one), which is the simplest
//! proof that all follow the same order of operations.

/// Views 16 elements of a slice as an array.
#[inline(always)]
pub(crate) fn at16<T>(values: &[T], from: usize) -> &[T; 16] {
    values[from..].first_chunk().expect("16 elements are left")
}

/// Registers of positions for the last scores of a chunk, where there are no `np` left.
pub(crate) const fn fewer(np: usize) -> usize {
    if np < 4 { 1 } else { np / 4 }
}

/// Registers of dimensions that a tile of values adds up: as many as the scores have positions, at most 4.
pub(crate) const fn dimensions(np: usize) -> usize {
    if np < 4 { np } else { 4 }
}

macro_rules! float_kernels {
    ($features:literal, attend: $tiles:tt, dot: $dots:tt) => {
        use std::ops::Range;

        use crate::attend::{AttendScratch, KEY_PIECE, KV_CHUNK, KvChunk, Scoring};
        use crate::f16;
        use crate::matmul::Columns;
        use crate::matrix::{FLOAT_ROWS, FloatWeights};
        use crate::rope::{RopeStyle, RopeTable};
        use crate::scalar::{
            self, EXP_MAX, EXP_MIN, EXP_POLY, GELU_CUBIC, GELU_SCALE, LANES, LN2_HIGH, LN2_LOW, LOG2_E, TAIL_POLY, TAIL_SCALE,
        };
        use crate::float_kernels::{at16, dimensions, fewer};

        /// [`scalar::exp`] of each lane.
        #[inline]
        #[target_feature(enable = $features)]
        fn exp_lanes(x: V) -> V {
            let n = round(mul(x, splat(LOG2_E)));
            let r = fma(n, splat(-LN2_HIGH), x);
            let r = fma(n, splat(-LN2_LOW), r);
            let mut p = splat(EXP_POLY[7]);
            for i in (0..7).rev() {
                p = fma(p, r, splat(EXP_POLY[i]));
            }
            let y = select_gt(x, splat(EXP_MAX), splat(f32::INFINITY), add_exponent(p, n));
            select_gt(splat(EXP_MIN), x, zero(), y)
        }

        #[target_feature(enable = $features)]
        pub(crate) fn exp(x: &[f32], out: &mut [f32]) {
            let (x, x_tail) = x.as_chunks::<LANES>();
            let (out, out_tail) = out.as_chunks_mut::<LANES>();
            for (x, out) in x.iter().zip(out) {
                store(exp_lanes(load(x)), out);
            }
            for (x, out) in x_tail.iter().zip(out_tail) {
                *out = scalar::exp(*x);
            }
        }

        #[target_feature(enable = $features)]
        pub(crate) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
            let (gate, gate_tail) = gate.as_chunks::<LANES>();
            let (up, up_tail) = up.as_chunks::<LANES>();
            let (out, out_tail) = out.as_chunks_mut::<LANES>();
            for ((gate, up), out) in gate.iter().zip(up).zip(out) {
                let x = load(gate);
                // x * -1 is exact: the negation.
                let y = div(x, add(splat(1.0), exp_lanes(mul(x, splat(-1.0)))));
                store(mul(y, load(up)), out);
            }
            for ((gate, up), out) in gate_tail.iter().zip(up_tail).zip(out_tail) {
                *out = scalar::silu(*gate) * up;
            }
        }

        #[target_feature(enable = $features)]
        pub(crate) fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
            let (gate, gate_tail) = gate.as_chunks::<LANES>();
            let (up, up_tail) = up.as_chunks::<LANES>();
            let (out, out_tail) = out.as_chunks_mut::<LANES>();
            for ((gate, up), out) in gate.iter().zip(up).zip(out) {
                let x = load(gate);
                let p = fma(mul(x, x), splat(GELU_CUBIC), splat(1.0));
                let z = mul(mul(x, p), splat(-GELU_SCALE));
                let y = div(x, add(splat(1.0), exp_lanes(z)));
                store(mul(y, load(up)), out);
            }
            for ((gate, up), out) in gate_tail.iter().zip(up_tail).zip(out_tail) {
                *out = scalar::gelu(*gate) * up;
            }
        }

        /// [`scalar::gelu_erf`] of each element.
        #[target_feature(enable = $features)]
        pub(crate) fn gelu_erf(x: &mut [f32]) {
            let (x, tail) = x.as_chunks_mut::<LANES>();
            for out in x {
                let x = load(out);
                let minus = mul(x, splat(-1.0));
                let a = select_gt(zero(), x, minus, x);
                let t = div(splat(1.0), fma(a, splat(TAIL_SCALE), splat(1.0)));
                let mut p = splat(TAIL_POLY[8]);
                for i in (0..8).rev() {
                    p = fma(p, t, splat(TAIL_POLY[i]));
                }
                let h = mul(mul(p, t), exp_lanes(mul(mul(a, a), splat(-0.5))));
                store(select_gt(zero(), x, mul(x, h), fma(minus, h, x)), out);
            }
            for x in tail {
                *x = scalar::gelu_erf(*x);
            }
        }

        /// [`scalar::softcap`] of each element.
        #[target_feature(enable = $features)]
        pub(crate) fn softcap(x: &mut [f32], cap: f32) {
            let (x, tail) = x.as_chunks_mut::<LANES>();
            let factor = splat(2.0 / cap);
            for out in x {
                let x = load(out);
                let e = exp_lanes(mul(x, factor));
                let t = sub(splat(1.0), div(splat(2.0), add(splat(1.0), e)));
                store(fma(t, splat(cap), mul(x, zero())), out);
            }
            for x in tail {
                *x = scalar::softcap(*x, cap);
            }
        }

        /// Finishes a dot product whose full groups of 16 are in `lanes`.
        #[inline]
        #[target_feature(enable = $features)]
        fn finish_dot(lanes: V, tail: impl ExactSizeIterator<Item = (f32, f32)>) -> f32 {
            if tail.len() == 0 {
                return lane_sum(lanes);
            }
            let mut array = [0.0; LANES];
            store(lanes, &mut array);
            for (lane, (a, b)) in array.iter_mut().zip(tail) {
                *lane = scalar::fma(a, b, *lane);
            }
            scalar::lane_sum(&array)
        }

        #[target_feature(enable = $features)]
        pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
            let (groups, tail) = x.as_chunks::<LANES>();
            let mut lanes = zero();
            for x in groups {
                lanes = fma(load(x), load(x), lanes);
            }
            let inv = scalar::inverse_rms(finish_dot(lanes, tail.iter().map(|&x| (x, x))), x.len(), eps);
            for ((out, &x), &w) in out.iter_mut().zip(x).zip(w) {
                *out = (x * inv) * w;
            }
        }

        #[target_feature(enable = $features)]
        pub(crate) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) {
            let n = x.len() as f32;
            let (groups, tail) = x.as_chunks::<LANES>();
            let mut lanes = zero();
            for x in groups {
                lanes = add(lanes, load(x));
            }
            // fma(x, 1, lane) is lane + x.
            let mean = finish_dot(lanes, tail.iter().map(|&x| (x, 1.0))) / n;
            let mut lanes = zero();
            for (x, out) in groups.iter().zip(out.as_chunks_mut::<LANES>().0) {
                let c = sub(load(x), splat(mean));
                lanes = fma(c, c, lanes);
                store(c, out);
            }
            let tail_out = &mut out[x.len() - tail.len()..];
            tail_out.iter_mut().zip(tail).for_each(|(out, x)| *out = x - mean);
            let inv = scalar::inverse_rms(finish_dot(lanes, tail_out.iter().map(|&c| (c, c))), x.len(), eps);
            for ((out, &w), &b) in out.iter_mut().zip(w).zip(b) {
                *out = scalar::fma(*out * inv, w, b);
            }
        }

        /// The definition, compiled for this instruction set: element by element, so vectors change nothing.
        #[target_feature(enable = $features)]
        pub(crate) fn rope(head: &mut [f32], pos: usize, table: &RopeTable, style: RopeStyle) {
            scalar::rope(head, pos, table, style);
        }

        #[target_feature(enable = $features)]
        pub(crate) fn narrow(x: &[f32], out: &mut [u16]) {
            let (x, x_tail) = x.as_chunks::<LANES>();
            let (out, out_tail) = out.as_chunks_mut::<LANES>();
            for (x, out) in x.iter().zip(out) {
                store_f16(load(x), out);
            }
            for (x, out) in x_tail.iter().zip(out_tail) {
                *out = f16::from_f32_rne(*x);
            }
        }

        float_kernels!(@dot $features, dot_tile_f16, dot_groups_f16, u16, load_f16, f16::to_f32, $dots);
        float_kernels!(@dot $features, dot_tile_bf16, dot_groups_bf16, u16, load_bf16, f16::bf16_to_f32, $dots);
        float_kernels!(@dot $features, dot_tile_f32, dot_groups_f32, f32, load, f32::from, $dots);
        float_kernels!(@attend $features, $tiles);
    };

    (@dot $features:literal, $tile:ident, $groups:ident, $w:ty, $load:ident, $widen:path, [$(($r:literal, $t:literal)),*]) => {
        /// Rows `r..r + R` of group `g` times tokens `t..t + T`.
        #[inline]
        #[target_feature(enable = $features)]
        fn $tile<const R: usize, const T: usize>(
            w: &FloatWeights<$w>,
            (g, r): (usize, usize),
            x: &[f32],
            t: usize,
            out: &mut Columns<'_>,
        ) {
            let k = w.k;
            let slabs = w.group(g);
            let n = k / LANES;
            let (w, x_tails) = (&slabs[..n], k - k % LANES);
            let x: [&[f32]; T] = std::array::from_fn(|i| &x[(t + i) * k..(t + i + 1) * k]);
            let full = x.map(|x| &x.as_chunks::<LANES>().0[..n]);
            let mut lanes = [[zero(); T]; R];
            for (i, slab) in w.iter().enumerate() {
                let mut acts = [zero(); T];
                for j in 0..T {
                    acts[j] = load(&full[j][i]);
                }
                for (row, lanes) in lanes.iter_mut().enumerate() {
                    let weights = $load(&slab.0[r + row]);
                    for j in 0..T {
                        lanes[j] = fma(weights, acts[j], lanes[j]);
                    }
                }
            }
            for j in 0..T {
                let mut outputs = [0.0; R];
                for (row, output) in outputs.iter_mut().enumerate() {
                    // Without a tail there is no slab after the full ones; the last serves as an empty one.
                    let tail = slabs[slabs.len() - 1].0[r + row].iter().zip(&x[j][x_tails..]);
                    *output = finish_dot(lanes[row][j], tail.map(|(&w, &x)| ($widen(w), x)));
                }
                out.write(t + j, g * FLOAT_ROWS + r, &outputs);
            }
        }

        /// Groups of 8 rows `groups` times all tokens of `x: [m, k]`.
        #[target_feature(enable = $features)]
        pub(crate) fn $groups(w: &FloatWeights<$w>, groups: Range<usize>, x: &[f32], out: &mut Columns<'_>) {
            let m = x.len() / w.k;
            let mut t = 0;
            while t < m {
                $(
                    if m - t >= $t {
                        for g in groups.clone() {
                            for r in (0..FLOAT_ROWS).step_by($r) {
                                $tile::<$r, $t>(w, (g, r), x, t, out);
                            }
                        }
                        t += $t;
                        continue;
                    }
                )*
            }
        }
    };

    (@attend $features:literal, [$(($nq:literal, $np:literal)),*]) => {
        #[target_feature(enable = $features)]
        pub(crate) fn attend_many(
            q: &[f32],
            n_keys: &[usize],
            chunks: &[KvChunk<'_>],
            scoring: Scoring,
            scratch: &mut AttendScratch,
            out: &mut [f32],
        ) {
            let head_dim = q.len() / n_keys.len();
            scratch.reset(n_keys.len(), head_dim);
            for (c, chunk) in chunks.iter().enumerate() {
                let before = c * KV_CHUNK;
                let mut i = 0;
                while i < n_keys.len() {
                    // Whether a query sees keys of this chunk, and whether they are its first.
                    let seen = |n: usize| {
                        let first = scoring.first_key(n);
                        (n > before && first < before + KV_CHUNK).then_some(first >= before)
                    };
                    let Some(first) = seen(n_keys[i]) else {
                        i += 1;
                        continue;
                    };
                    let run = n_keys[i..].iter().take_while(|&&n| seen(n) == Some(first)).count();
                    $(
                        if run >= $nq {
                            let valid = std::array::from_fn(|j| {
                                let n = n_keys[i + j];
                                (scoring.first_key(n).saturating_sub(before), (n - before).min(KV_CHUNK))
                            });
                            attend_tile::<$nq, $np, { fewer($np) }, { dimensions($np) }>(i, valid, q, chunk, first, scoring, scratch, out);
                            i += $nq;
                            continue;
                        }
                    )*
                }
            }
            for ((_, l), out) in scratch.state.iter().zip(out.chunks_exact_mut(head_dim)) {
                out.iter_mut().for_each(|o| *o /= l);
            }
        }

        /// One chunk for queries `i..i + NQ`, of whose positions query j sees those from `valid[j].0` to `valid[j].1`.
        #[target_feature(enable = $features)]
        #[expect(clippy::too_many_arguments, reason = "one register tile; a struct would only rename them")]
        fn attend_tile<const NQ: usize, const NP: usize, const FEW: usize, const ND: usize>(
            i: usize,
            valid: [(usize, usize); NQ],
            q: &[f32],
            chunk: &KvChunk<'_>,
            first: bool,
            scoring: Scoring,
            scratch: &mut AttendScratch,
            out: &mut [f32],
        ) {
            let head_dim = chunk.k.len() / KV_CHUNK;
            let range = i * head_dim..(i + NQ) * head_dim;
            let (q, out) = (&q[range.clone()], &mut out[range]);
            let from_min = valid.iter().fold(KV_CHUNK, |a, b| a.min(b.0));
            let n_max = valid.iter().fold(0, |a, b| a.max(b.1));
            let scores = &mut scratch.scores[..NQ * KV_CHUNK];
            // Positions before the first group that a query sees need no score, nor those after the last.
            let (mut p, end) = (from_min - from_min % LANES, n_max.next_multiple_of(LANES));
            while p < end {
                let left = (end - p) / LANES;
                p += if left >= NP {
                    score_tile::<NQ, NP>(q, chunk.k, p, scoring.scale, scores)
                } else if left >= FEW {
                    score_tile::<NQ, FEW>(q, chunk.k, p, scoring.scale, scores)
                } else {
                    score_tile::<NQ, 1>(q, chunk.k, p, scoring.scale, scores)
                };
            }
            let mut state = [(0.0, 0.0); NQ];
            for (j, scores) in scores.chunks_exact_mut(KV_CHUNK).enumerate() {
                state[j] = softmax(scores, valid[j], scoring.softcap);
            }
            let values = if first { &mut *out } else { &mut scratch.out[..NQ * head_dim] };
            weigh_values::<NQ, ND>(scores, &valid, chunk.v, values);
            for j in 0..NQ {
                scratch.state[i + j] = if first {
                    state[j]
                } else {
                    let range = j * head_dim..(j + 1) * head_dim;
                    scalar::combine(scratch.state[i + j], state[j], &mut out[range.clone()], &scratch.out[range])
                };
            }
        }

        /// Scores of NQ queries at positions `p..p + 16 * NP`; returns how many these are. Those beyond the valid ones are computed
        /// and ignored.
        #[inline]
        #[target_feature(enable = $features)]
        fn score_tile<const NQ: usize, const NP: usize>(q: &[f32], k: &[u16], p: usize, scale: f32, scores: &mut [f32]) -> usize {
            let head_dim = q.len() / NQ;
            let (lines, _) = k.as_chunks::<KEY_PIECE>();
            // Of each register of positions, the lines of all dimensions and its half of them.
            let pieces: [(&[_], usize); NP] = std::array::from_fn(|b| {
                let p = p + b * LANES;
                (&lines[p / KEY_PIECE * head_dim..][..head_dim], p / LANES % 2)
            });
            let mut sums = [[zero(); NP]; NQ];
            for d in 0..head_dim {
                let mut keys = [zero(); NP];
                for b in 0..NP {
                    let (lines, half) = pieces[b];
                    keys[b] = load_f16(&lines[d].as_chunks().0[half]);
                }
                for j in 0..NQ {
                    let q = splat(q[j * head_dim + d]);
                    for b in 0..NP {
                        sums[j][b] = fma(q, keys[b], sums[j][b]);
                    }
                }
            }
            for j in 0..NQ {
                let (scores, _) = scores[j * KV_CHUNK + p..][..NP * LANES].as_chunks_mut::<LANES>();
                for b in 0..NP {
                    store(mul(sums[j][b], splat(scale)), &mut scores[b]);
                }
            }
            NP * LANES
        }

        /// Turns the scores at `from..n` into weights `exp(s - m)`; returns m and the sum of the weights.
        #[inline]
        #[target_feature(enable = $features)]
        fn softmax(scores: &mut [f32], (from, n): (usize, usize), cap: Option<f32>) -> (f32, f32) {
            let padded = n.next_multiple_of(LANES);
            if let Some(cap) = cap {
                softcap(&mut scores[from - from % LANES..padded], cap);
            }
            scores[..from].fill(f32::NEG_INFINITY);
            // exp(-inf - m) is +0, and adding +0 to a sum of non-negative values changes no bit.
            scores[n..padded].fill(f32::NEG_INFINITY);
            let (scores, _) = scores[..padded].as_chunks_mut::<LANES>();
            let mut most = splat(f32::NEG_INFINITY);
            for s in scores.iter() {
                most = maximum(load(s), most);
            }
            let mut array = [0.0; LANES];
            store(most, &mut array);
            let m = array.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
            let mut lanes = zero();
            for s in scores {
                let e = exp_lanes(sub(load(s), splat(m)));
                lanes = add(lanes, e);
                store(e, s);
            }
            (m, lane_sum(lanes))
        }

        /// `out[j][d] = fma chain over p ascending of weight[j][p] * v[p][d]`, p from `valid[j].0` to `valid[j].1`.
        #[inline]
        #[target_feature(enable = $features)]
        fn weigh_values<const NQ: usize, const ND: usize>(weights: &[f32], valid: &[(usize, usize); NQ], v: &[u16], out: &mut [f32]) {
            let head_dim = out.len() / NQ;
            let mut d = 0;
            while d + ND * LANES <= head_dim {
                value_tile::<NQ, ND>(weights, valid, v, d, out);
                d += ND * LANES;
            }
            while d + LANES <= head_dim {
                value_tile::<NQ, 1>(weights, valid, v, d, out);
                d += LANES;
            }
            for d in d..head_dim {
                for j in 0..NQ {
                    let weights = &weights[j * KV_CHUNK..][..KV_CHUNK];
                    let chain = |o, p: usize| scalar::fma(weights[p], f16::to_f32(v[p * head_dim + d]), o);
                    out[j * head_dim + d] = (valid[j].0..valid[j].1).fold(0.0, chain);
                }
            }
        }

        /// Dimensions `d..d + 16 * ND` of NQ queries: positions that all see together, those before and after one by one.
        #[inline]
        #[target_feature(enable = $features)]
        fn value_tile<const NQ: usize, const ND: usize>(
            weights: &[f32],
            valid: &[(usize, usize); NQ],
            v: &[u16],
            d: usize,
            out: &mut [f32],
        ) {
            let head_dim = out.len() / NQ;
            let from_all = valid.iter().fold(0, |a, b| a.max(b.0));
            let n_all = valid.iter().fold(KV_CHUNK, |a, b| a.min(b.1)).max(from_all);
            let mut sums = [[zero(); ND]; NQ];
            for j in 0..NQ {
                for p in valid[j].0..from_all.min(valid[j].1) {
                    let e = splat(weights[j * KV_CHUNK + p]);
                    for b in 0..ND {
                        sums[j][b] = fma(e, load_f16(at16(v, p * head_dim + d + b * LANES)), sums[j][b]);
                    }
                }
            }
            for (p, v) in v.chunks_exact(head_dim).enumerate().take(n_all).skip(from_all) {
                let (v, _) = v[d..d + ND * LANES].as_chunks::<LANES>();
                let mut values = [zero(); ND];
                for b in 0..ND {
                    values[b] = load_f16(&v[b]);
                }
                for j in 0..NQ {
                    let e = splat(weights[j * KV_CHUNK + p]);
                    for b in 0..ND {
                        sums[j][b] = fma(e, values[b], sums[j][b]);
                    }
                }
            }
            for j in 0..NQ {
                for p in n_all..valid[j].1 {
                    let e = splat(weights[j * KV_CHUNK + p]);
                    for b in 0..ND {
                        sums[j][b] = fma(e, load_f16(at16(v, p * head_dim + d + b * LANES)), sums[j][b]);
                    }
                }
                let (out, _) = out[j * head_dim + d..][..ND * LANES].as_chunks_mut::<LANES>();
                for b in 0..ND {
                    store(sums[j][b], &mut out[b]);
                }
            }
        }
    };
}

pub(crate) use float_kernels;
