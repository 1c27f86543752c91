//! `Q8_0` products, written once and instantiated per instruction set: [`crate::scalar::q8_dot`] in each lane.
//!
//! The module that calls the macro provides the type `Sum` (sums of one token with 16 rows) and `start` (from a block of
//! activations), `weights` (a line as `mac` wants it), `mac::<LANE>` (adds the products of a line with four activations:
//! those in `LANE` of the register), `total` (`Sum` as a sum a row).

macro_rules! q8_kernels {
    ($features:literal) => {
        /// Group `g` times tokens `t..t + T`.
        #[inline]
        #[target_feature(enable = $features)]
        fn tile<const T: usize>(w: &Q8Weights, g: usize, x: &[ActBlock], t: usize, out: &mut Columns<'_>) {
            let n = w.n_blocks;
            let (q, d) = w.group(g);
            let (q, d) = (&q[..n], &d[..n]);
            let x: [&[ActBlock]; T] = std::array::from_fn(|i| &x[(t + i) * n..(t + i + 1) * n]);
            let mut acc = [[vdupq_n_f32(0.0); 4]; T];
            for b in 0..n {
                let mut sums = [start(&x[0][b]); T];
                for i in 1..T {
                    sums[i] = start(&x[i][b]);
                }
                let (halves, _) = q[b].0.as_chunks::<4>();
                for (half, lines) in halves.iter().enumerate() {
                    let mut acts = [vdupq_n_s8(0); T];
                    for i in 0..T {
                        acts[i] = load_acts(&x[i][b].q.as_chunks().0[half]);
                    }
                    let lines = [weights(&lines[0]), weights(&lines[1]), weights(&lines[2]), weights(&lines[3])];
                    for i in 0..T {
                        mac::<0>(&mut sums[i], lines[0], acts[i]);
                        mac::<1>(&mut sums[i], lines[1], acts[i]);
                        mac::<2>(&mut sums[i], lines[2], acts[i]);
                        mac::<3>(&mut sums[i], lines[3], acts[i]);
                    }
                }
                for i in 0..T {
                    step(total(sums[i]), &d[b], x[i][b].d, &mut acc[i]);
                }
            }
            for i in 0..T {
                out.write(t + i, g * GROUP, &rows(acc[i]));
            }
        }
    };
}
pub(super) use q8_kernels;

/// Groups `groups` times all tokens of `x: [m, n_blocks]`, as many as there are tiles for at a time.
macro_rules! q8_groups {
    ($features:literal, [$(($n:literal, $tile:expr)),*]) => {
        #[target_feature(enable = $features)]
        pub(crate) fn q8_groups(w: &Q8Weights, groups: Range<usize>, x: &[ActBlock], out: &mut Columns<'_>) {
            let m = x.len() / w.n_blocks;
            let mut t = 0;
            while t < m {
                $(
                    if m - t >= $n {
                        for g in groups.clone() {
                            $tile(w, g, x, t, out);
                        }
                        t += $n;
                        continue;
                    }
                )*
            }
        }
    };
}
pub(super) use q8_groups;
