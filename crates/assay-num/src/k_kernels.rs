//! Products in the K formats, written once and instantiated per instruction set: [`crate::scalar::k_dot`] in each lane.
//!
//! The module that calls the macro provides `ask` (of memory what comes after a line), `ROWS` (rows a register holds, so
//! that a group is one, two or four *parts*) and the operations on integers `zero`, `load` (a part of a line of weights), `low` (the low four bits of each byte),
//! `high` (the high ones), `lift` (moves the bits from a position to bit 4 and masks them, one or two bits wide, in),
//! `four` (four activations in every lane), `mac` (sum + unsigned weights * activations), `scales` (a part of a line of
//! scales, as `scale` wants them), `scale` (total + sum * scales), `pairs` (two lines of i8 as pairs of i16), `two`
//! (two sums of activations in every lane), `mac_pairs`, `sub32` (a - 32 b); on floats `float_zero`, `float_scale`
//! (f16 scales times that of the activations), `fma`, `fnma`, `write`.

/// Which part of its group a part is.
#[inline(always)]
pub(crate) fn within_group(part: usize, parts: usize) -> usize {
    part % parts
}

macro_rules! k_kernels {
    ($features:literal, parts: $parts:literal, tiles: [$one:literal, $two:literal, $three:literal, $four:literal], early: $early:expr) => {
        /// Groups `groups` times all tokens of `x: [m, n_blocks]`.
        #[target_feature(enable = $features)]
        pub(crate) fn k_groups<const HIGH: usize, const SCALES: usize, const MINS: usize>(
            w: &KWeights<HIGH, SCALES, MINS>,
            groups: Range<usize>,
            x: &[ActSuperBlock],
            out: &mut Columns<'_>,
        ) {
            let parts = groups.start * $parts..groups.end * $parts;
            let m = x.len() / w.n_blocks;
            let mut t = 0;
            while t < m {
                t += match m - t {
                    1 => tokens::<$one, 1, HIGH, SCALES, MINS>(w, parts.clone(), x, t, out),
                    2 => tokens::<$two, 2, HIGH, SCALES, MINS>(w, parts.clone(), x, t, out),
                    3 => tokens::<$three, 3, HIGH, SCALES, MINS>(w, parts.clone(), x, t, out),
                    _ => tokens::<$four, 4, HIGH, SCALES, MINS>(w, parts.clone(), x, t, out),
                };
            }
        }

        /// All parts times tokens `t..t + T`, N parts at a time; returns T.
        #[inline]
        #[target_feature(enable = $features)]
        fn tokens<const N: usize, const T: usize, const HIGH: usize, const SCALES: usize, const MINS: usize>(
            w: &KWeights<HIGH, SCALES, MINS>,
            parts: Range<usize>,
            x: &[ActSuperBlock],
            t: usize,
            out: &mut Columns<'_>,
        ) -> usize {
            let mut part = parts.start;
            while part + N <= parts.end {
                tile::<N, T, HIGH, SCALES, MINS>(w, part, x, t, out);
                part += N;
            }
            for part in part..parts.end {
                tile::<1, T, HIGH, SCALES, MINS>(w, part, x, t, out);
            }
            T
        }

        /// Parts `part..part + N` times tokens `t..t + T`.
        #[inline]
        #[target_feature(enable = $features)]
        fn tile<const N: usize, const T: usize, const HIGH: usize, const SCALES: usize, const MINS: usize>(
            w: &KWeights<HIGH, SCALES, MINS>,
            part: usize,
            x: &[ActSuperBlock],
            t: usize,
            out: &mut Columns<'_>,
        ) {
            let n = w.n_blocks;
            let blocks: [&[_]; N] = std::array::from_fn(|i| &w.group((part + i) / $parts)[..n]);
            let x: [&[ActSuperBlock]; T] = std::array::from_fn(|k| &x[(t + k) * n..(t + k + 1) * n]);
            let mut acc = [[float_zero(); T]; N];
            for b in 0..n {
                let mut total = [[zero(); T]; N];
                // With 16 scales the two halves of 32 columns are summed apart.
                let apart = SCALES / 8 - 1;
                for j in 0..8 {
                    // Four lines of 16 bytes are one of the cache.
                    if (j * SCALES / 8) % 4 == 0 {
                        blocks.iter().for_each(|blocks| ask(&blocks[b].scales[j * SCALES / 8]));
                    }
                    if MINS > 0 && j % 4 == 0 {
                        blocks.iter().for_each(|blocks| ask(&blocks[b].mins[j]));
                    }
                    let mut sum = [[[zero(); T]; N]; 2];
                    for c in 0..4 {
                        for i in 0..N {
                            let (block, h) = (&blocks[i][b], within_group(part + i, $parts));
                            ask(&block.low[4 * j + c]);
                            if HIGH == 8 && c == 0 {
                                ask(&block.high[j]);
                            }
                            if HIGH == 16 && c % 2 == 0 {
                                ask(&block.high[2 * j + c / 2]);
                            }
                            let line = load(&block.low[4 * j + c], h);
                            let (mut first, mut second) = (low(line), high(line));
                            if HIGH == 8 {
                                let bits = load(&block.high[j], h);
                                (first, second) = (lift::<1>(bits, c, first), lift::<1>(bits, 4 + c, second));
                            }
                            if HIGH == 16 {
                                let bits = load(&block.high[2 * j + c / 2], h);
                                let from = 2 * (c % 2);
                                (first, second) = (lift::<2>(bits, from, first), lift::<2>(bits, 4 + from, second));
                            }
                            for k in 0..T {
                                let q = &x[k][b].q;
                                sum[0][i][k] = mac(sum[0][i][k], first, four(q[8 * j + c]));
                                sum[apart][i][k] = mac(sum[apart][i][k], second, four(q[8 * j + 4 + c]));
                            }
                        }
                        if c == 3 || (c == 1 && $early && HIGH > 0) {
                            for a in 0..=apart {
                                for i in 0..N {
                                    let factors = scales(
                                        &blocks[i][b].scales[j * SCALES / 8 + a],
                                        within_group(part + i, $parts),
                                    );
                                    for k in 0..T {
                                        total[i][k] = scale(total[i][k], sum[a][i][k], factors);
                                        sum[a][i][k] = zero();
                                    }
                                }
                            }
                        }
                    }
                }
                blocks.iter().for_each(|blocks| ask(&blocks[b].d));
                let mut offsets = [[zero(); T]; N];
                for i in 0..N {
                    let (block, h) = (&blocks[i][b], within_group(part + i, $parts));
                    for p in 0..MINS / 2 {
                        let mins = pairs(&block.mins[2 * p], &block.mins[2 * p + 1], h);
                        for k in 0..T {
                            let sums = two(x[k][b].double_sums[2 * p], x[k][b].double_sums[2 * p + 1]);
                            offsets[i][k] = mac_pairs(offsets[i][k], mins, sums);
                        }
                    }
                    if MINS == 0 {
                        for p in 0..SCALES / 2 {
                            let factors = pairs(&block.scales[2 * p], &block.scales[2 * p + 1], h);
                            for k in 0..T {
                                let sums = two(x[k][b].sums[2 * p], x[k][b].sums[2 * p + 1]);
                                offsets[i][k] = mac_pairs(offsets[i][k], factors, sums);
                            }
                        }
                    }
                    for k in 0..T {
                        let d = float_scale(&block.d, h, x[k][b].d);
                        if MINS == 0 {
                            // The stored value is q + 32.
                            acc[i][k] = fma(sub32(total[i][k], offsets[i][k]), d, acc[i][k]);
                        } else {
                            let dmin = float_scale(&block.dmin, h, x[k][b].d);
                            acc[i][k] = fnma(offsets[i][k], dmin, fma(total[i][k], d, acc[i][k]));
                        }
                    }
                }
            }
            for i in 0..N {
                for k in 0..T {
                    write(acc[i][k], part + i, t + k, out);
                }
            }
        }
    };
}
pub(crate) use k_kernels;
