// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

// Every cast is of a number that was masked or shifted to far less than its type.
// forge-lint: disable-start(unsafe-typecast)

/// @title F32
/// @notice IEEE 754 binary32 on bits held in a uint256: every operation rounds once, to nearest, ties to even.
/// @dev Subnormals, signed zeros and infinities are those of the standard. There is one NaN, `NAN`: which NaN a CPU
/// returns differs by CPU, and profile canonical-1 has none. Inputs are below 2^32; so are results.
library F32 {
    uint256 internal constant SIGN = 0x80000000;
    uint256 internal constant MAGNITUDE = 0x7fffffff;
    uint256 internal constant INFINITY = 0x7f800000;
    uint256 internal constant NAN = 0x7fc00000;
    uint256 internal constant ONE = 0x3f800000;
    uint256 private constant MANTISSA = 0x7fffff;
    uint256 private constant IMPLICIT = 0x800000;

    /// @dev Operands further apart than this many bits: the smaller one only says on which side of the larger the sum
    /// lies. Enough for the widest mantissa, a product's 48 bits, and a result's 24.
    uint256 private constant FAR = 120;

    function isFinite(uint256 a) internal pure returns (bool) {
        return a & INFINITY != INFINITY;
    }

    function isNan(uint256 a) internal pure returns (bool) {
        return a & MAGNITUDE > INFINITY;
    }

    function neg(uint256 a) internal pure returns (uint256) {
        return isNan(a) ? NAN : a ^ SIGN;
    }

    /// @notice `a < b`; false if one is NaN; the zeros are equal.
    function lt(uint256 a, uint256 b) internal pure returns (bool) {
        if (isNan(a) || isNan(b)) return false;
        return _ordinal(a) < _ordinal(b);
    }

    /// @notice `b` if it is above `a`, else `a`.
    function max(uint256 a, uint256 b) internal pure returns (uint256) {
        return lt(a, b) ? b : a;
    }

    function add(uint256 a, uint256 b) internal pure returns (uint256) {
        unchecked {
            if (!isFinite(a) || !isFinite(b)) return _addSpecial(a, b);
            (uint256 ma, uint256 ea) = _split(a);
            (uint256 mb, uint256 eb) = _split(b);
            return _sum(a, ma, int256(ea), b, mb, int256(eb));
        }
    }

    function sub(uint256 a, uint256 b) internal pure returns (uint256) {
        return add(a, b ^ SIGN);
    }

    function mul(uint256 a, uint256 b) internal pure returns (uint256) {
        unchecked {
            uint256 sign = (a ^ b) & SIGN;
            if (!isFinite(a) || !isFinite(b)) {
                if (isNan(a) || isNan(b) || a & MAGNITUDE == 0 || b & MAGNITUDE == 0) return NAN;
                return sign | INFINITY;
            }
            (uint256 ma, uint256 ea) = _split(a);
            (uint256 mb, uint256 eb) = _split(b);
            uint256 product = ma * mb;
            if (product == 0) return sign;
            return sign | _round(product, int256(ea + eb) - 150);
        }
    }

    /// @notice `a * b + c`, rounded once.
    function fma(uint256 a, uint256 b, uint256 c) internal pure returns (uint256) {
        unchecked {
            if (!isFinite(a) || !isFinite(b)) return _addSpecial(mul(a, b), c);
            if (!isFinite(c)) return isNan(c) ? NAN : c;
            (uint256 ma, uint256 ea) = _split(a);
            (uint256 mb, uint256 eb) = _split(b);
            (uint256 mc, uint256 ec) = _split(c);
            return _sum(a ^ b, ma * mb, int256(ea + eb) - 150, c, mc, int256(ec));
        }
    }

    function div(uint256 a, uint256 b) internal pure returns (uint256) {
        unchecked {
            uint256 sign = (a ^ b) & SIGN;
            bool zeroA = a & MAGNITUDE == 0;
            bool zeroB = b & MAGNITUDE == 0;
            if (!isFinite(a)) return isNan(a) || !isFinite(b) ? NAN : sign | INFINITY;
            if (!isFinite(b)) return isNan(b) ? NAN : sign;
            if (zeroB) return zeroA ? NAN : sign | INFINITY;
            if (zeroA) return sign;
            (uint256 ma, uint256 ea) = _split(a);
            (uint256 mb, uint256 eb) = _split(b);
            // At least 36 bits of quotient, then one bit that says whether anything is left.
            uint256 quotient = (ma << 60) / mb;
            uint256 rest = quotient * mb == ma << 60 ? 0 : 1;
            return sign | _round((quotient << 1) | rest, int256(ea) - int256(eb) + 89);
        }
    }

    function sqrt(uint256 a) internal pure returns (uint256) {
        unchecked {
            if (a & MAGNITUDE == 0) return a;
            if (a & SIGN != 0 || isNan(a)) return NAN;
            if (a == INFINITY) return a;
            (uint256 m, uint256 e) = _split(a);
            // The exponent that is halved is even, and the root has at least 30 bits.
            uint256 shift = 60 + (e & 1);
            m <<= shift;
            uint256 root = _integerSqrt(m);
            uint256 rest = root * root == m ? 0 : 1;
            return _round((root << 1) | rest, (int256(e) - 150 - int256(shift)) / 2 + 149);
        }
    }

    /// @notice The integer nearest to `a`, ties to even, with the sign of `a` also on a zero.
    function rint(uint256 a) internal pure returns (uint256) {
        unchecked {
            uint256 e = (a >> 23) & 0xff;
            if (e >= 150) return isNan(a) ? NAN : a;
            return a & SIGN | fromInt(int256(_rintMagnitude(a, e)));
        }
    }

    /// @notice As `rint`, as an integer. `a` is finite and below 2^127 in magnitude.
    function toIntRounded(uint256 a) internal pure returns (int256 v) {
        unchecked {
            uint256 e = (a >> 23) & 0xff;
            v = int256(e >= 150 ? (a & MANTISSA | IMPLICIT) << (e - 150) : _rintMagnitude(a, e));
            if (a & SIGN != 0) v = -v;
        }
    }

    /// @notice The f32 nearest to `v`, which is below 2^200 in magnitude; +0 for 0.
    function fromInt(int256 v) internal pure returns (uint256) {
        unchecked {
            if (v == 0) return 0;
            if (v < 0) return SIGN | _round(uint256(-v), 150);
            return _round(uint256(v), 150);
        }
    }

    /// @notice Widens IEEE binary16; exact.
    function fromHalf(uint256 h) internal pure returns (uint256) {
        unchecked {
            uint256 sign = (h & 0x8000) << 16;
            uint256 e = (h >> 10) & 31;
            uint256 m = h & 0x3ff;
            if (e == 0) return m == 0 ? sign : sign | _round(m, 126);
            if (e == 31) return m == 0 ? sign | INFINITY : NAN;
            return sign | ((e + 112) << 23) | (m << 13);
        }
    }

    /// @notice Narrows to IEEE binary16, ties to even; 65520 and above become infinite, NaN becomes 0x7e00.
    function toHalf(uint256 a) internal pure returns (uint256) {
        unchecked {
            uint256 magnitude = a & MAGNITUDE;
            if (magnitude > INFINITY) return 0x7e00;
            uint256 sign = (a >> 16) & 0x8000;
            if (magnitude >= 0x47800000) return sign | 0x7c00;
            if (magnitude < 0x33000000) return sign;
            // A carry out of the mantissa walks into the exponent, which is the rounding that is wanted.
            if (magnitude < 0x38800000) {
                return sign | _shiftRounded(magnitude & MANTISSA | IMPLICIT, 126 - (magnitude >> 23));
            }
            return sign | _shiftRounded(magnitude - 0x38000000, 13);
        }
    }

    /// @notice Widens bfloat16, the upper half of an f32.
    function fromBfloat(uint256 h) internal pure returns (uint256 a) {
        a = h << 16;
        if (isNan(a)) a = NAN;
    }

    // ------------------------------------------------------------------ private

    /// @dev Mantissa and exponent field of a finite value `m * 2^(e - 150)`; a subnormal has the field of the smallest
    /// normal.
    function _split(uint256 a) private pure returns (uint256 m, uint256 e) {
        assembly ("memory-safe") {
            e := and(shr(23, a), 0xff)
            m := or(and(a, 0x7fffff), shl(23, iszero(iszero(e))))
            e := or(e, iszero(e))
        }
    }

    /// @dev `+-ma * 2^(ea - 150) +- mb * 2^(eb - 150)`; the signs are those of the words a and b.
    function _sum(uint256 a, uint256 ma, int256 ea, uint256 b, uint256 mb, int256 eb) private pure returns (uint256) {
        unchecked {
            if (ma == 0 && mb == 0) return a & b & SIGN;
            if (ma == 0) return b & SIGN | _round(mb, eb);
            if (mb == 0) return a & SIGN | _round(ma, ea);
            int256 e;
            if (ea < eb) {
                uint256 d = uint256(eb - ea);
                (ma, mb, e) = d > FAR ? (1, mb << FAR, eb - int256(FAR)) : (ma, mb << d, ea);
            } else {
                uint256 d = uint256(ea - eb);
                (ma, mb, e) = d > FAR ? (ma << FAR, 1, ea - int256(FAR)) : (ma << d, mb, eb);
            }
            int256 z = (a & SIGN == 0 ? int256(ma) : -int256(ma)) + (b & SIGN == 0 ? int256(mb) : -int256(mb));
            if (z == 0) return 0;
            return z < 0 ? SIGN | _round(uint256(-z), e) : _round(uint256(z), e);
        }
    }

    /// @dev At least one of the two is not finite.
    function _addSpecial(uint256 a, uint256 b) private pure returns (uint256) {
        if (isNan(a) || isNan(b)) return NAN;
        if (isFinite(a)) return b;
        if (isFinite(b)) return a;
        return a == b ? a : NAN;
    }

    /// @dev The f32 nearest to `m * 2^(e - 150)`, m above 0. In units of the result's last place the mantissa, added to
    /// the exponent field below its own, is the encoding: for subnormals, too, and with a carry.
    function _round(uint256 m, int256 e) private pure returns (uint256 bits) {
        assembly ("memory-safe") {
            let n := shl(7, lt(0xffffffffffffffffffffffffffffffff, m))
            n := or(n, shl(6, lt(0xffffffffffffffff, shr(n, m))))
            n := or(n, shl(5, lt(0xffffffff, shr(n, m))))
            n := or(n, shl(4, lt(0xffff, shr(n, m))))
            n := or(n, shl(3, lt(0xff, shr(n, m))))
            n := or(n, shl(2, lt(0xf, shr(n, m))))
            n := or(n, shl(1, lt(3, shr(n, m))))
            n := or(n, lt(1, shr(n, m)))

            // Exponent field of one unit in the last place of the result.
            let unit := sub(add(e, n), 23)
            if slt(unit, 1) { unit := 1 }
            let shift := sub(unit, e)
            switch sgt(shift, 0)
            case 0 { bits := shl(sub(0, shift), m) }
            default {
                bits := shr(shift, m)
                let lost := sub(m, shl(shift, bits))
                // slither-disable-next-line incorrect-shift (it is the one bit that moves)
                let half := shl(sub(shift, 1), 1)
                // A shift of 256 and more leaves nothing, and half is zero then: nothing may round up.
                let up := or(gt(lost, half), and(eq(lost, half), and(bits, 1)))
                bits := add(bits, and(up, lt(shift, 256)))
            }
            bits := add(shl(23, sub(unit, 1)), bits)
            if gt(bits, 0x7f800000) { bits := 0x7f800000 }
            if sgt(unit, 254) { bits := 0x7f800000 }
        }
    }

    /// @dev `a` is below 2^23 in magnitude and has the exponent field e.
    function _rintMagnitude(uint256 a, uint256 e) private pure returns (uint256) {
        unchecked {
            if (e < 126) return 0;
            return _shiftRounded(a & MANTISSA | IMPLICIT, 150 - e);
        }
    }

    /// @dev `m / 2^shift`, ties to even; shift from 1.
    function _shiftRounded(uint256 m, uint256 shift) private pure returns (uint256 kept) {
        unchecked {
            kept = m >> shift;
            uint256 lost = m - (kept << shift);
            // forge-lint: disable-next-line(incorrect-shift)
            uint256 half = 1 << (shift - 1);
            if (lost > half || (lost == half && kept & 1 == 1)) ++kept;
        }
    }

    /// @dev Rounded down; m is from 2^60 to below 2^86. Newton's iteration from above never goes below the root.
    function _integerSqrt(uint256 m) private pure returns (uint256 root) {
        unchecked {
            root = 1 << 43;
            for (;;) {
                uint256 next = (root + m / root) >> 1;
                if (next >= root) return root;
                root = next;
            }
        }
    }

    function _ordinal(uint256 a) private pure returns (int256) {
        unchecked {
            int256 magnitude = int256(a & MAGNITUDE);
            return a & SIGN == 0 ? magnitude : -magnitude;
        }
    }
}
// forge-lint: disable-end(unsafe-typecast)
