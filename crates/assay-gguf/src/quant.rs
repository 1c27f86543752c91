//! Encodes rows of `f32` into the tensor formats that test and benchmark models are written in.

use crate::ggml::GgmlType;
use assay_num::f16;

/// Values in a Q8_0 block.
const Q8_0_LEN: usize = 32;

/// Formats that [`encode`] writes.
#[must_use]
pub fn can_encode(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::Q8_0)
}

/// Appends `values` in format `ty` to `out`; returns false, and appends nothing, if [`can_encode`] is false or the
/// number of values is no multiple of the block. F16 rounds to nearest even. Q8_0 is ggml's reference: per 32 values
/// `d = amax/127`, stored as f16; each value is `round(x * (1/d))`, halves away from zero, with the `d` before it was
/// rounded to f16; all zero if `d` is 0.
#[must_use]
pub fn encode(ty: GgmlType, values: &[f32], out: &mut Vec<u8>) -> bool {
    match ty {
        GgmlType::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        GgmlType::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32_rne(v).to_le_bytes())),
        GgmlType::Q8_0 if values.len().is_multiple_of(Q8_0_LEN) => {
            for block in values.chunks_exact(Q8_0_LEN) {
                encode_q8_0(block, out);
            }
        }
        _ => return false,
    }
    true
}

#[expect(clippy::cast_possible_truncation, reason = "|x| <= amax, so the quotient is within -127..=127")]
fn encode_q8_0(block: &[f32], out: &mut Vec<u8>) {
    let amax = block.iter().fold(0.0_f32, |amax, v| amax.max(v.abs()));
    let d = amax / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    out.extend_from_slice(&f16::from_f32_rne(d).to_le_bytes());
    out.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_encode_as_ggml_does() {
        let check = |ty, values: &[f32], expect: &[u8]| {
            let mut out = vec![];
            assert!(encode(ty, values, &mut out));
            assert_eq!(out, expect, "{ty}");
        };
        check(GgmlType::F32, &[1.5], &[0, 0, 0xc0, 0x3f]);
        check(GgmlType::F16, &[1.0, -2.0, 65504.0], &[0, 0x3c, 0, 0xc0, 0xff, 0x7b]);
        check(GgmlType::Q8_0, &[0.0; 32], &[0; 34]);
        // amax 127 gives d = 1; 2.5 and -2.5 round away from zero.
        let mut values = [0.0; 32];
        (values[0], values[1], values[2], values[31]) = (127.0, 2.5, -2.5, 1.4);
        let mut expect = [0; 34];
        (expect[1], expect[2], expect[3], expect[4], expect[33]) = (0x3c, 127, 3, 253, 1);
        check(GgmlType::Q8_0, &values, &expect);
    }

    #[test]
    fn a_partial_block_or_an_unknown_format_is_refused() {
        let mut out = vec![];
        assert!(!encode(GgmlType::Q8_0, &[0.0; 33], &mut out));
        assert!(!encode(GgmlType(2), &[0.0; 32], &mut out));
        assert!(out.is_empty());
    }
}
