//! Encoders of the K formats; the layouts are written down in `assay_num::scalar::SuperBlock`.

#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "values are clamped to the range first")]

use assay_num::{f16, scalar::SUPER_BLOCK};

/// Q4_K (`BITS` 4) or Q5_K (5). Per 32 values: `min = max(0, -lowest)`, `scale = (highest + min) / (2^BITS - 1)`; both in
/// 63 steps of the largest of their kind in the super-block, which is stored as f16.
pub(super) fn encode_with_mins<const BITS: u32>(values: &[f32; SUPER_BLOCK], out: &mut Vec<u8>) {
    let most = ((1 << BITS) - 1) as f32;
    let subs = values.as_chunks::<32>().0;
    let ranges: Vec<(f32, f32)> = subs
        .iter()
        .map(|sub| {
            let min = sub.iter().fold(0.0_f32, |min, v| min.max(-v));
            let high = sub.iter().fold(0.0_f32, |high, &v| high.max(v));
            ((high + min) / most, min)
        })
        .collect();
    let d = rounded(ranges.iter().fold(0.0_f32, |d, r| d.max(r.0)) / 63.0);
    let dmin = rounded(ranges.iter().fold(0.0_f32, |d, r| d.max(r.1)) / 63.0);
    let small: Vec<(u8, u8)> = ranges
        .iter()
        .map(|&(scale, min)| (step(scale, d, 0.0, 63.0) as u8, step(min, dmin, 0.0, 63.0) as u8))
        .collect();
    out.extend(f16::from_f32_rne(d).to_le_bytes());
    out.extend(f16::from_f32_rne(dmin).to_le_bytes());
    out.extend(pack_small(&small));
    let q: Vec<u8> = subs
        .iter()
        .zip(&small)
        .flat_map(|(sub, &(scale, min))| {
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            sub.map(|v| step(v + min, scale, 0.0, most) as u8)
        })
        .collect();
    if BITS == 5 {
        out.extend((0..32).map(|l| (0..8).fold(0, |bits, i| bits | (q[32 * i + l] >> 4) << i)));
    }
    out.extend((0..128).map(|i| {
        let column = i / 32 * 64 + i % 32;
        q[column] & 15 | q[column + 32] << 4
    }));
}

/// Q6_K. Per 16 values `scale = largest magnitude / 31`, in 127 steps of the largest in the super-block.
pub(super) fn encode_q6_k(values: &[f32; SUPER_BLOCK], out: &mut Vec<u8>) {
    let subs = values.as_chunks::<16>().0;
    let wanted: Vec<f32> =
        subs.iter().map(|sub| sub.iter().fold(0.0_f32, |most, v| most.max(v.abs())) / 31.0).collect();
    let d = rounded(wanted.iter().fold(0.0_f32, |d, &s| d.max(s)) / 127.0);
    let scales: Vec<u8> = wanted.iter().map(|&s| step(s, d, 0.0, 127.0) as u8).collect();
    let stored: Vec<u8> = subs
        .iter()
        .zip(&scales)
        .flat_map(|(sub, &scale)| sub.map(|v| (step(v, d * f32::from(scale), -32.0, 31.0) + 32.0) as u8))
        .collect();
    let halves = stored.as_chunks::<128>().0;
    out.extend(halves.iter().flat_map(|q| (0..64).map(|l| q[l] & 15 | q[l + 64] << 4)));
    out.extend(
        halves.iter().flat_map(|q| (0..32).map(|l| (0..4).fold(0, |bits, i| bits | (q[l + 32 * i] >> 4) << (2 * i)))),
    );
    out.extend(scales);
    out.extend(f16::from_f32_rne(d).to_le_bytes());
}

/// 12 bytes: low six bits of the first four scales and mins, the halves of the last four, their top bits above the first.
fn pack_small(small: &[(u8, u8)]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => small[i].0 | small[i + 4].0 >> 4 << 6,
        4..8 => small[i - 4].1 | small[i].1 >> 4 << 6,
        _ => small[i - 4].0 & 15 | small[i - 4].1 << 4,
    })
}

fn rounded(d: f32) -> f32 {
    f16::to_f32(f16::from_f32_rne(d))
}

/// How many steps of `size` the value is; 0 if the steps have no size.
fn step(value: f32, size: f32, least: f32, most: f32) -> f32 {
    if size == 0.0 { 0.0_f32.max(least) } else { (value / size).round().clamp(least, most) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_num::scalar::SuperBlock;

    /// Values over several magnitudes, in which sub-blocks differ in size and offset.
    fn values() -> [f32; SUPER_BLOCK] {
        std::array::from_fn(|i| ((i * 37 % 64) as f32 - 30.0) * 0.01 * (1 + i / 32) as f32)
    }

    /// Decodes to within the step of the format: the largest value of the sub-block over `steps`.
    fn check(decoded: &SuperBlock, steps: f32) {
        let (values, mut got) = (values(), [0.0; SUPER_BLOCK]);
        decoded.to_f32(&mut got);
        for (i, (value, got)) in values.iter().zip(got).enumerate() {
            let step = 0.64 * (1 + i / 32) as f32 / steps;
            assert!((value - got).abs() <= step, "value {i}: {value} became {got}, a step is {step}");
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_nearly_the_same() {
        let mut out = vec![];
        encode_with_mins::<4>(&values(), &mut out);
        // Half a step, and what the 6-bit scale and minimum of a small sub-block lack.
        check(&SuperBlock::from_q4_k(out.as_slice().try_into().unwrap()), 15.0);
        out.clear();
        encode_with_mins::<5>(&values(), &mut out);
        check(&SuperBlock::from_q5_k(out.as_slice().try_into().unwrap()), 31.0);
        out.clear();
        encode_q6_k(&values(), &mut out);
        check(&SuperBlock::from_q6_k(out.as_slice().try_into().unwrap()), 62.0);
    }

    #[test]
    fn zeros_stay_zeros() {
        let zeros = [0.0; SUPER_BLOCK];
        let mut out = vec![];
        encode_with_mins::<5>(&zeros, &mut out);
        assert_eq!(out, [0; 176]);
        out.clear();
        encode_q6_k(&zeros, &mut out);
        let mut got = [1.0; SUPER_BLOCK];
        SuperBlock::from_q6_k(out.as_slice().try_into().unwrap()).to_f32(&mut got);
        assert_eq!(got, zeros);
    }
}
