//! IEEE binary16 as bits (`u16`): exact widening and narrowing with round to nearest even.
//!
//! Same results as the x86 F16C and the AArch64 conversions for every input that is not a NaN.

/// Widens f16 bits to f32; exact. A NaN stays a NaN (quiet bit set).
#[inline]
pub fn to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10) & 31;
    let mantissa = u32::from(bits) & 1023;
    match exponent {
        // 2^-24 is the weight of the lowest subnormal bit; the product of two exact values is exact.
        0 => f32::from_bits((mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits() | sign),
        31 if mantissa != 0 => f32::from_bits(sign | 0x7fc0_0000 | (mantissa << 13)),
        31 => f32::from_bits(sign | 0x7f80_0000),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13)),
    }
}

/// Widens bfloat16 bits, the upper half of an f32; exact.
#[inline]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Narrows f32 to f16 bits, round to nearest, ties to even. Values of 65520 and above give infinity,
/// values below 2^-25 (and 2^-25 itself, a tie) give a zero of the same sign.
#[inline]
pub fn from_f32_rne(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00 | ((magnitude >> 13) & 0x3ff) as u16;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3300_0000 {
        return sign;
    }
    // A carry out of the mantissa walks into the exponent, which is exactly the wanted rounding.
    let (kept, dropped, half) = if magnitude < 0x3880_0000 {
        let shift = 126 - (magnitude >> 23);
        let mantissa = (magnitude & 0x7f_ffff) | 0x80_0000;
        (mantissa >> shift, mantissa & ((1 << shift) - 1), 1 << (shift - 1))
    } else {
        ((magnitude - 0x3800_0000) >> 13, magnitude & 0x1fff, 0x1000)
    };
    let up = dropped > half || (dropped == half && kept & 1 == 1);
    sign | (kept + u32::from(up)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let wide = to_f32(bits);
            if wide.is_nan() {
                assert_eq!(from_f32_rne(wide) & 0x7c00, 0x7c00);
                assert_ne!(from_f32_rne(wide) & 0x3ff, 0, "a NaN became an infinity");
            } else {
                assert_eq!(from_f32_rne(wide), bits);
            }
        }
    }

    /// Between two neighbours: just below the middle goes down, the middle to even, just above goes up.
    #[test]
    fn narrowing_rounds_to_nearest_even_between_all_neighbours() {
        for low in 0..0x7bffu16 {
            let (a, b) = (to_f32(low), to_f32(low + 1));
            let middle = a + (b - a) * 0.5;
            let even = if low & 1 == 0 { low } else { low + 1 };
            assert_eq!(from_f32_rne(middle), even, "{low:#x}");
            assert_eq!(from_f32_rne(f32::from_bits(middle.to_bits() - 1)), low);
            assert_eq!(from_f32_rne(f32::from_bits(middle.to_bits() + 1)), low + 1);
            assert_eq!(from_f32_rne(-middle), even | 0x8000);
        }
    }

    #[test]
    fn boundaries() {
        for (value, expect) in [
            (65504.0, 0x7bff),
            (65519.996, 0x7bff),
            (65520.0, 0x7c00),
            (f32::INFINITY, 0x7c00),
            (f32::MAX, 0x7c00),
            (-0.0, 0x8000),
            (f32::from_bits(1), 0),
            (f32::from_bits(0x3300_0000), 0),
            (f32::from_bits(0x3300_0001), 1),
        ] {
            assert_eq!(from_f32_rne(value), expect, "{value:e}");
        }
    }
}
