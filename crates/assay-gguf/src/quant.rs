//! Encodes rows of `f32` into the tensor formats that test and benchmark models are written in.

use crate::ggml::GgmlType;
use assay_num::{f16, scalar};

mod k_quant;

/// Values in a Q8_0 block.
const Q8_0_LEN: usize = 32;

/// Formats that [`encode`] writes.
#[must_use]
pub fn can_encode(ty: GgmlType) -> bool {
    use GgmlType as T;
    matches!(ty, T::F32 | T::F16 | T::BF16 | T::Q8_0 | T::Q4_0 | T::Q4_K | T::Q5_K | T::Q6_K)
}

/// Appends `values` in format `ty` to `out`; returns false, and appends nothing, if [`can_encode`] is false or the
/// number of values is no multiple of the block. F16 and BF16 round to nearest even (a NaN in BF16 stays one). Q8_0 is ggml's reference: per 32 values
/// `d = amax/127`, stored as f16; each value is `round(x * (1/d))`, halves away from zero, with the `d` before it was
/// rounded to f16; all zero if `d` is 0. Q4_0 divides
/// by `d = f16(x / -8)` of the value x of largest magnitude. The K formats take the scales that the extremes of the values ask for, without the
/// search for better ones that ggml does: valid files of the right size, a little less exact than its own.
#[must_use]
pub fn encode(ty: GgmlType, values: &[f32], out: &mut Vec<u8>) -> bool {
    match ty {
        GgmlType::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        GgmlType::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32_rne(v).to_le_bytes())),
        GgmlType::BF16 => out.extend(values.iter().flat_map(|&v| bf16_rne(v).to_le_bytes())),
        GgmlType::Q8_0 if values.len().is_multiple_of(Q8_0_LEN) => {
            for block in values.chunks_exact(Q8_0_LEN) {
                encode_q8_0(block, out);
            }
        }
        GgmlType::Q4_0 if values.len().is_multiple_of(Q8_0_LEN) => {
            for block in values.chunks_exact(Q8_0_LEN) {
                encode_q4_0(block, out);
            }
        }
        GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => {
            let (blocks, []) = values.as_chunks::<{ scalar::SUPER_BLOCK }>() else {
                return false;
            };
            for block in blocks {
                match ty {
                    GgmlType::Q4_K => k_quant::encode_with_mins::<4>(block, out),
                    GgmlType::Q5_K => k_quant::encode_with_mins::<5>(block, out),
                    _ => k_quant::encode_q6_k(block, out),
                }
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

fn encode_q4_0(block: &[f32], out: &mut Vec<u8>) {
    let extreme = block.iter().fold(0.0_f32, |most, &v| if v.abs() > most.abs() { v } else { most });
    let bits = f16::from_f32_rne(extreme / -8.0);
    let d = f16::to_f32(bits);
    let q = |v: f32| if d == 0.0 { 8 } else { ((v / d).round().clamp(-8.0, 7.0) + 8.0) as u8 };
    out.extend_from_slice(&bits.to_le_bytes());
    let (first, second) = block.split_at(Q8_0_LEN / 2);
    out.extend(first.iter().zip(second).map(|(&low, &high)| q(low) | q(high) << 4));
}

fn bf16_rne(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    // Half of what is dropped, less one where the kept part is even: a tie then does not carry. Never overflows.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
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
        check(GgmlType::BF16, &[1.0, -2.0, 1.003_906_3, 1.011_718_8], &[0x80, 0x3f, 0, 0xc0, 0x80, 0x3f, 0x82, 0x3f]);
        // -16 is the extreme: d = 2, and 16 does not fit.
        let mut values = [0.0; 32];
        (values[0], values[1], values[16]) = (-16.0, 4.0, 16.0);
        let mut expect = [0x88; 18];
        (expect[0], expect[1], expect[2], expect[3]) = (0, 0x40, 0xf0, 0x8a);
        check(GgmlType::Q4_0, &values, &expect);
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
        assert!(!encode(GgmlType::Q4_K, &[0.0; 255], &mut out));
        assert!(!encode(GgmlType(3), &[0.0; 32], &mut out));
        assert!(out.is_empty());
    }
}
