//! Products in the K formats, written once and instantiated per instruction set: [`crate::scalar::k_dot`] in each lane.
//!
//! The module that calls the macro provides `ask` (of memory what comes after a line), `fetch_part` (of memory a block, in
//! turns), `ROWS` (rows a register holds, so that a group is one, two or four *parts*) and the operations on integers `zero`, `load` (a part of a line of weights), `low` (the low four bits of each byte),
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

/// Tokens that a super-block of weights meets before the next one does, at most: their sums fit the L1 cache beside it.
pub(crate) const TOKENS: usize = 32;

macro_rules! k_kernels {
    ($features:literal, parts: $parts:literal, float: $float:ty, one: $one:literal, more: $more:literal, panels: $panels:literal, early: $early:expr) => {
        /// Tokens of a tile, at most.
        const TILE: usize = 4;

        /// Groups `groups` times all tokens of `x: [m, n_blocks]`.
        #[target_feature(enable = $features)]
        pub(crate) fn k_groups<const HIGH: usize, const SCALES: usize, const MINS: usize>(
            w: &KWeights<HIGH, SCALES, MINS>,
            groups: Range<usize>,
            x: &[ActSuperBlock],
            out: &mut Columns<'_>,
        ) {
            let parts = groups.start * $parts..groups.end * $parts;
            let at_once = if $panels && x.len() > TILE * w.n_blocks { TOKENS } else { TILE };
            for (i, x) in x.chunks(at_once * w.n_blocks).enumerate() {
                let first = i * at_once;
                match x.len() / w.n_blocks {
                    1 => few::<$one, 1, HIGH, SCALES, MINS>(w, parts.clone(), x, first, out),
                    2 => few::<$more, 2, HIGH, SCALES, MINS>(w, parts.clone(), x, first, out),
                    3 => few::<$more, 3, HIGH, SCALES, MINS>(w, parts.clone(), x, first, out),
                    4 => few::<$more, 4, HIGH, SCALES, MINS>(w, parts.clone(), x, first, out),
                    _ => many::<$more, HIGH, SCALES, MINS>(w, parts.clone(), x, first, out),
                }
            }
        }

        /// `parts` times the tokens of `x: [at most TOKENS, n_blocks]`, which are `first_token` and those after it.
        #[inline]
        #[target_feature(enable = $features)]
        fn many<const N: usize, const HIGH: usize, const SCALES: usize, const MINS: usize>(
            w: &KWeights<HIGH, SCALES, MINS>,
            parts: Range<usize>,
            x: &[ActSuperBlock],
            first_token: usize,
            out: &mut Columns<'_>,
        ) {
            let mut part = parts.start;
            while part + N <= parts.end {
                many_parts::<N, HIGH, SCALES, MINS>(w, part..parts.end, x, first_token, out);
                part += N;
            }
            for part in part..parts.end {
                many_parts::<1, HIGH, SCALES, MINS>(w, part..parts.end, x, first_token, out);
            }
        }

        /// `parts` times T tokens, `first_token` and those after it: what comes after the weights is asked of memory ahead
        /// of time.
        #[inline]
        #[target_feature(enable = $features)]
        fn few<const N: usize, const T: usize, const HIGH: usize, const SCALES: usize, const MINS: usize>(
            w: &KWeights<HIGH, SCALES, MINS>,
            parts: Range<usize>,
            x: &[ActSuperBlock],
            first_token: usize,
            out: &mut Columns<'_>,
        ) {
            let mut part = parts.start;
            while part + N <= parts.end {
                few_parts::<N, T, HIGH, SCALES, MINS>(w, part, x, first_token, out);
                part += N;
            }
            for part in part..parts.end {
                few_parts::<1, T, HIGH, SCALES, MINS>(w, part, x, first_token, out);
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn few_parts<const N: usize, const T: usize, const HIGH: usize, const SCALES: usize, const MINS: usize>(
            w: &KWeights<HIGH, SCALES, MINS>,
            part: usize,
            x: &[ActSuperBlock],
            first_token: usize,
            out: &mut Columns<'_>,
        ) {
            let n = w.n_blocks;
            let blocks: [&[_]; N] = std::array::from_fn(|i| &w.group((part + i) / $parts)[..n]);
            let x: [&[ActSuperBlock]; T] = std::array::from_fn(|k| &x[k * n..(k + 1) * n]);
            let mut sums = [[float_zero(); N]; T];
            for b in 0..n {
                let (blocks, x) = (std::array::from_fn(|i| &blocks[i][b]), std::array::from_fn(|k| &x[k][b]));
                add_block::<N, T, true, HIGH, SCALES, MINS>(blocks, part, x, &mut sums);
            }
            for (t, sums) in sums.iter().enumerate() {
                for i in 0..N {
                    write(sums[i], part + i, first_token + t, out);
                }
            }
        }

        /// [`many`] for the first N of `parts`; the others come next.
        #[inline]
        #[target_feature(enable = $features)]
        fn many_parts<const N: usize, const HIGH: usize, const SCALES: usize, const MINS: usize>(
            w: &KWeights<HIGH, SCALES, MINS>,
            parts: Range<usize>,
            x: &[ActSuperBlock],
            first_token: usize,
            out: &mut Columns<'_>,
        ) {
            let (n, part) = (w.n_blocks, parts.start);
            let m = x.len() / n;
            let blocks: [&[_]; N] = std::array::from_fn(|i| &w.group((part + i) / $parts)[..n]);
            let next: [_; N] = std::array::from_fn(|i| {
                let part = part + N + i;
                parts.contains(&part).then(|| &w.group(part / $parts)[0])
            });
            let n_tiles = m.div_ceil(TILE);
            let mut sums = [[float_zero(); N]; TOKENS];
            for b in 0..n {
                let now = blocks.map(|blocks| &blocks[b]);
                let mut t = 0;
                for tile in 0..n_tiles {
                    for i in 0..N {
                        if let Some(block) = blocks[i].get(b + 1).or(next[i]) {
                            // Each tile asks for its part, so that memory and arithmetic are busy at the same time.
                            fetch_part(block, tile, n_tiles);
                        }
                    }
                    let (x, sums) = (move |k: usize| &x[(t + k) * n + b], &mut sums[t..]);
                    // Tiles of nearly the same size: the sums of a small one would wait for each other.
                    t += match (m - t).div_ceil(n_tiles - tile) {
                        1 => add_block::<N, 1, false, HIGH, SCALES, MINS>(now, part, std::array::from_fn(x), sums),
                        2 => add_block::<N, 2, false, HIGH, SCALES, MINS>(now, part, std::array::from_fn(x), sums),
                        3 => add_block::<N, 3, false, HIGH, SCALES, MINS>(now, part, std::array::from_fn(x), sums),
                        _ => add_block::<N, 4, false, HIGH, SCALES, MINS>(now, part, std::array::from_fn(x), sums),
                    };
                }
            }
            for (t, sums) in sums[..m].iter().enumerate() {
                for i in 0..N {
                    write(sums[i], part + i, first_token + t, out);
                }
            }
        }

        /// One super-block of parts `part..part + N` times T tokens, added to their sums; returns T.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_block<
            const N: usize,
            const T: usize,
            const ASK: bool,
            const HIGH: usize,
            const SCALES: usize,
            const MINS: usize,
        >(
            blocks: [&KBlock<HIGH, SCALES, MINS>; N],
            part: usize,
            x: [&ActSuperBlock; T],
            sums: &mut [[$float; N]],
        ) -> usize {
            /// Asks memory if nobody else has.
            #[inline(always)]
            fn ahead<const ASK: bool, V>(value: &V) {
                if ASK {
                    ask(value);
                }
            }
            let acc = &mut sums[..T];
            let mut total = [[zero(); T]; N];
            // With 16 scales the two halves of 32 columns are summed apart.
            let apart = SCALES / 8 - 1;
            for j in 0..8 {
                // Four lines of 16 bytes are one of the cache.
                if (j * SCALES / 8) % 4 == 0 {
                    blocks.iter().for_each(|block| ahead::<ASK, _>(&block.scales[j * SCALES / 8]));
                }
                if MINS > 0 && j % 4 == 0 {
                    blocks.iter().for_each(|block| ahead::<ASK, _>(&block.mins[j]));
                }
                let mut sum = [[[zero(); T]; N]; 2];
                for c in 0..4 {
                    for i in 0..N {
                        let (block, h) = (blocks[i], within_group(part + i, $parts));
                        ahead::<ASK, _>(&block.low[4 * j + c]);
                        if HIGH == 8 && c == 0 {
                            ahead::<ASK, _>(&block.high[j]);
                        }
                        if HIGH == 16 && c % 2 == 0 {
                            ahead::<ASK, _>(&block.high[2 * j + c / 2]);
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
                            let q = &x[k].q;
                            sum[0][i][k] = mac(sum[0][i][k], first, four(q[8 * j + c]));
                            sum[apart][i][k] = mac(sum[apart][i][k], second, four(q[8 * j + 4 + c]));
                        }
                    }
                    if c == 3 || (c == 1 && $early && HIGH > 0) {
                        for a in 0..=apart {
                            for i in 0..N {
                                let factors =
                                    scales(&blocks[i].scales[j * SCALES / 8 + a], within_group(part + i, $parts));
                                for k in 0..T {
                                    total[i][k] = scale(total[i][k], sum[a][i][k], factors);
                                    sum[a][i][k] = zero();
                                }
                            }
                        }
                    }
                }
            }
            blocks.iter().for_each(|block| ahead::<ASK, _>(&block.d));
            let mut offsets = [[zero(); T]; N];
            for i in 0..N {
                let (block, h) = (blocks[i], within_group(part + i, $parts));
                for p in 0..MINS / 2 {
                    let mins = pairs(&block.mins[2 * p], &block.mins[2 * p + 1], h);
                    for k in 0..T {
                        let sums = two(x[k].double_sums[2 * p], x[k].double_sums[2 * p + 1]);
                        offsets[i][k] = mac_pairs(offsets[i][k], mins, sums);
                    }
                }
                if MINS == 0 {
                    for p in 0..SCALES / 2 {
                        let factors = pairs(&block.scales[2 * p], &block.scales[2 * p + 1], h);
                        for k in 0..T {
                            let sums = two(x[k].sums[2 * p], x[k].sums[2 * p + 1]);
                            offsets[i][k] = mac_pairs(offsets[i][k], factors, sums);
                        }
                    }
                }
                for k in 0..T {
                    let d = float_scale(&block.d, h, x[k].d);
                    if MINS == 0 {
                        // The stored value is q + 32.
                        acc[k][i] = fma(sub32(total[i][k], offsets[i][k]), d, acc[k][i]);
                    } else {
                        let dmin = float_scale(&block.dmin, h, x[k].d);
                        acc[k][i] = fnma(offsets[i][k], dmin, fma(total[i][k], d, acc[k][i]));
                    }
                }
            }
            T
        }
    };
}
pub(crate) use k_kernels;
