//! One pass of plain reads over memory, as a measure for products with one token, which read all weights once.

use std::hint::black_box;

use crate::team::Team;

/// Pieces a pass is split into, so that no thread waits long for another.
const PARTS: usize = 256;

/// Reads `lines` once, split over the team, with nothing done to the values that memory would have to wait for.
pub fn read_memory(team: &Team, lines: &[[u64; 8]]) {
    let part = lines.len().div_ceil(PARTS).max(1);
    team.run(lines.len().div_ceil(part), |i| read(&lines[i * part..(i * part + part).min(lines.len())]));
}

/// Four streams at once: one alone is held back by the processor's page-wise prefetcher.
fn read(lines: &[[u64; 8]]) {
    let mut sums = [[0u64; 8]; 4];
    let mut add = |stream: usize, line: &[u64; 8]| sums[stream].iter_mut().zip(line).for_each(|(sum, x)| *sum ^= x);
    let quarter = lines.len() / 4;
    for i in 0..quarter {
        for stream in 0..4 {
            add(stream, &lines[stream * quarter + i]);
        }
    }
    lines[4 * quarter..].iter().for_each(|line| add(0, line));
    black_box(sums);
}
