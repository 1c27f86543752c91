// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {F32} from "./F32.sol";

// Every cast is of a number that was masked or shifted to far less than its type.
// forge-lint: disable-start(unsafe-typecast)

/// @title Canonical
/// @notice The arithmetic of profile canonical-1 above single IEEE operations: the functions, the quantizers and one
/// step of each product of weights with activations.
/// @dev The definitions are those of `assay_num::scalar`; vectors/judge.json and what it is generated from hold both
/// to each other. Here only what differs by representation is said.
///
/// Numbers of the trace are big-endian, weights have the byte order of the file, little-endian. Quantized activations
/// are their i8 values followed by the scale, an f32. `at` is an offset in `data`; nothing is read behind
/// `data.length` that could change a result, and the caller checks the lengths.
library Canonical {
    /// @dev exp(x) is infinite above and zero below.
    uint256 internal constant EXP_MAX = 0x42b17217;
    uint256 internal constant EXP_MIN = 0xc2aeac4f;
    uint256 private constant LOG2_E = 0x3fb8aa3b;
    uint256 private constant MINUS_LN2_HIGH = 0xbf317200;
    uint256 private constant MINUS_LN2_LOW = 0xb5bfbe8e;
    /// @dev Coefficients of exp, the highest degree in the lowest 32 bits.
    uint256 private constant EXP_POLY = 0x3f800000_3f800000_3f000000_3e2aaaab_3d2aaaab_3c088889_3ab60b61_39500d01;
    uint256 private constant GELU_CUBIC = 0x3d372713;
    uint256 private constant MINUS_GELU_SCALE = 0xbfcc4229;
    uint256 private constant TWO = 0x40000000;
    uint256 private constant F127 = 0x42fe0000;
    uint256 private constant SMALLEST_NORMAL = 0x00800000;

    // ------------------------------------------------------------------ functions

    function exp(uint256 x) internal pure returns (uint256 p) {
        unchecked {
            if (F32.isNan(x)) return F32.NAN;
            if (F32.lt(EXP_MAX, x)) return F32.INFINITY;
            if (F32.lt(x, EXP_MIN)) return 0;
            uint256 n = F32.rint(F32.mul(x, LOG2_E));
            uint256 r = F32.fma(n, MINUS_LN2_HIGH, x);
            r = F32.fma(n, MINUS_LN2_LOW, r);
            p = EXP_POLY & 0xffffffff;
            for (uint256 i = 32; i < 256; i += 32) {
                p = F32.fma(p, r, (EXP_POLY >> i) & 0xffffffff);
            }
            p = (p + (uint256(F32.toIntRounded(n)) << 23)) & 0xffffffff;
        }
    }

    function silu(uint256 x) internal pure returns (uint256) {
        return F32.div(x, F32.add(F32.ONE, exp(F32.neg(x))));
    }

    function gelu(uint256 x) internal pure returns (uint256) {
        uint256 p = F32.fma(F32.mul(x, x), GELU_CUBIC, F32.ONE);
        uint256 z = F32.mul(F32.mul(x, p), MINUS_GELU_SCALE);
        return F32.div(x, F32.add(F32.ONE, exp(z)));
    }

    function softcap(uint256 x, uint256 cap) internal pure returns (uint256) {
        uint256 e = exp(F32.mul(x, F32.div(TWO, cap)));
        uint256 t = F32.sub(F32.ONE, F32.div(TWO, F32.add(F32.ONE, e)));
        return F32.fma(t, cap, F32.mul(x, 0));
    }

    /// @notice The fixed tree over 16 lanes of 4 bytes at `at`.
    function laneSum(bytes memory data, uint256 at) internal pure returns (uint256) {
        unchecked {
            uint256[8] memory sums;
            for (uint256 i = 0; i < 8; ++i) {
                sums[i] = F32.add(float(data, at + 4 * i), float(data, at + 4 * i + 32));
            }
            for (uint256 n = 4; n > 0; n >>= 1) {
                for (uint256 i = 0; i < n; ++i) {
                    sums[i] = F32.add(sums[i], sums[i + n]);
                }
            }
            return sums[0];
        }
    }

    /// @notice `1 / sqrt(sum / n + eps)`.
    function inverseRms(uint256 sum, uint256 n, uint256 eps) internal pure returns (uint256) {
        uint256 mean = F32.div(sum, F32.fromInt(int256(n)));
        return F32.div(F32.ONE, F32.sqrt(F32.add(mean, eps)));
    }

    /// @notice The first of a pair (a, b) turned by the angle of cosine c and sine s.
    function turnFirst(uint256 a, uint256 b, uint256 c, uint256 s) internal pure returns (uint256) {
        return F32.fma(a, c, F32.neg(F32.mul(b, s)));
    }

    /// @notice The second of the pair.
    function turnSecond(uint256 a, uint256 b, uint256 c, uint256 s) internal pure returns (uint256) {
        return F32.fma(a, s, F32.mul(b, c));
    }

    // ------------------------------------------------------------------ quantizers

    /// @notice The scale of 32 activations, rounded to binary16; NaN if one is not finite.
    function scaleOfBlock(bytes memory data) internal pure returns (uint256) {
        uint256 amax = _largest(data, 32);
        if (!F32.isFinite(amax)) return F32.NAN;
        return F32.fromHalf(F32.toHalf(F32.div(amax, F127)));
    }

    /// @notice The scale of 256 activations, not rounded further; NaN if one is not finite.
    function scaleOfSuperBlock(bytes memory data) internal pure returns (uint256) {
        uint256 amax = _largest(data, 256);
        if (!F32.isFinite(amax)) return F32.NAN;
        uint256 d = F32.div(amax, F127);
        return F32.lt(d, SMALLEST_NORMAL) ? 0 : d;
    }

    /// @notice Activation x in units of the scale d, as the byte of an i8.
    function quantize(uint256 x, uint256 d) internal pure returns (uint256) {
        unchecked {
            if (F32.isNan(d)) return 0;
            uint256 inverse = F32.lt(0, d) ? F32.div(F32.ONE, d) : 0;
            int256 q = F32.toIntRounded(F32.mul(x, inverse));
            if (q > 127) q = 127;
            if (q < -127) q = -127;
            return uint256(q) & 0xff;
        }
    }

    // ------------------------------------------------------------------ products

    /// @notice One block of a row in Q8_0: 34 bytes of weights, then 36 bytes of activations.
    function stepQ8(uint256 acc, bytes memory data) internal pure returns (uint256) {
        unchecked {
            (uint256 weights, uint256 acts) = (word(data, 2), word(data, 34));
            int256 sum;
            for (uint256 i = 0; i < 32; ++i) {
                sum += _int8(weights, i) * _int8(acts, i);
            }
            uint256 scale = F32.mul(F32.fromHalf(half(data, 0)), float(data, 66));
            return F32.fma(F32.fromInt(sum), scale, acc);
        }
    }

    /// @notice One block of a row in Q4_0: 18 bytes of weights, then 36 bytes of activations.
    function stepQ4(uint256 acc, bytes memory data) internal pure returns (uint256) {
        unchecked {
            (uint256 weights, uint256 acts) = (word(data, 2), word(data, 18));
            int256 sum;
            for (uint256 i = 0; i < 16; ++i) {
                uint256 both = _byte(weights, i);
                sum += (int256(both & 15) - 8) * _int8(acts, i) + (int256(both >> 4) - 8) * _int8(acts, i + 16);
            }
            uint256 scale = F32.mul(F32.fromHalf(half(data, 0)), float(data, 50));
            return F32.fma(F32.fromInt(sum), scale, acc);
        }
    }

    /// @notice One super-block of a row in Q4_K: 144 bytes of weights, then 260 bytes of activations.
    function stepQ4K(uint256 acc, bytes memory data) internal pure returns (uint256) {
        return _stepWithMinima(acc, data, 144, 0);
    }

    /// @notice One super-block of a row in Q5_K: 176 bytes of weights, then 260 bytes of activations.
    function stepQ5K(uint256 acc, bytes memory data) internal pure returns (uint256) {
        return _stepWithMinima(acc, data, 176, 1);
    }

    /// @notice One super-block of a row in Q6_K: 210 bytes of weights, then 260 bytes of activations.
    function stepQ6K(uint256 acc, bytes memory data) internal pure returns (uint256) {
        unchecked {
            int256 total;
            for (uint256 j = 0; j < 8; ++j) {
                (uint256 low, uint256 high, uint256 shifts) = _sixBits(data, j);
                uint256 acts = word(data, 210 + 32 * j);
                int256 sum;
                for (uint256 i = 0; i < 32; ++i) {
                    if (i == 16) {
                        total += _int8(word(data, 192), 2 * j) * sum;
                        sum = 0;
                    }
                    uint256 q =
                        ((_byte(low, i) >> (shifts >> 8)) & 15) | (((_byte(high, i) >> (shifts & 0xff)) & 3) << 4);
                    sum += (int256(q) - 32) * _int8(acts, i);
                }
                total += _int8(word(data, 192), 2 * j + 1) * sum;
            }
            uint256 scale = F32.mul(F32.fromHalf(half(data, 208)), float(data, 466));
            return F32.fma(F32.fromInt(total), scale, acc);
        }
    }

    // ------------------------------------------------------------------ table rows

    /// @notice Column `i` of a Q8_0 block as a number.
    function cellQ8(bytes memory data, uint256 i) internal pure returns (uint256) {
        return F32.mul(F32.fromInt(_int8(word(data, 2), i)), F32.fromHalf(half(data, 0)));
    }

    /// @notice Column `i` of a Q4_0 block as a number.
    function cellQ4(bytes memory data, uint256 i) internal pure returns (uint256) {
        int256 q = int256((_byte(word(data, 2), i & 15) >> (i < 16 ? 0 : 4)) & 15) - 8;
        return F32.mul(F32.fromInt(q), F32.fromHalf(half(data, 0)));
    }

    /// @notice Column `i` of a Q4_K super-block as a number.
    function cellQ4K(bytes memory data, uint256 i) internal pure returns (uint256) {
        return _cellWithMinimum(data, i, 0);
    }

    /// @notice Column `i` of a Q5_K super-block as a number.
    function cellQ5K(bytes memory data, uint256 i) internal pure returns (uint256) {
        return _cellWithMinimum(data, i, 1);
    }

    /// @notice Column `i` of a Q6_K super-block as a number.
    function cellQ6K(bytes memory data, uint256 i) internal pure returns (uint256) {
        unchecked {
            (uint256 low, uint256 high, uint256 shifts) = _sixBits(data, i / 32);
            uint256 l = i & 31;
            uint256 q = ((_byte(low, l) >> (shifts >> 8)) & 15) | (((_byte(high, l) >> (shifts & 0xff)) & 3) << 4);
            int256 scale = _int8(word(data, 192), i / 16);
            uint256 d = F32.mul(F32.fromHalf(half(data, 208)), F32.fromInt(scale));
            // There is no minimum; taking +0 off keeps the sign of a zero, as the definition does.
            return F32.sub(F32.mul(d, F32.fromInt(int256(q) - 32)), 0);
        }
    }

    // ------------------------------------------------------------------ bytes

    /// @notice The 32 bytes at `at`, of which those behind the end of `data` are to be ignored.
    function word(bytes memory data, uint256 at) internal pure returns (uint256 w) {
        assembly ("memory-safe") {
            w := mload(add(add(data, 32), at))
        }
    }

    /// @notice A big-endian f32.
    function float(bytes memory data, uint256 at) internal pure returns (uint256) {
        return word(data, at) >> 224;
    }

    /// @notice A little-endian u16.
    function half(bytes memory data, uint256 at) internal pure returns (uint256) {
        uint256 w = word(data, at) >> 240;
        return (w >> 8) | ((w & 0xff) << 8);
    }

    /// @notice A little-endian f32.
    function floatOfFile(bytes memory data, uint256 at) internal pure returns (uint256) {
        return half(data, at) | (half(data, at + 2) << 16);
    }

    // ------------------------------------------------------------------ private

    function _byte(uint256 w, uint256 i) private pure returns (uint256 b) {
        assembly ("memory-safe") {
            b := byte(i, w)
        }
    }

    function _int8(uint256 w, uint256 i) private pure returns (int256 b) {
        assembly ("memory-safe") {
            b := signextend(0, byte(i, w))
        }
    }

    /// @dev Largest magnitude among `n` numbers, NaN above all: the order of the bits is that of the values.
    function _largest(bytes memory data, uint256 n) private pure returns (uint256 amax) {
        unchecked {
            for (uint256 i = 0; i < n; ++i) {
                uint256 magnitude = float(data, 4 * i) & F32.MAGNITUDE;
                if (magnitude > amax) amax = magnitude;
            }
        }
    }

    /// @dev The 6-bit scale and minimum of columns 32j to 32j + 31, from the 12 bytes at offset 4.
    function _scaleAndMinimum(bytes memory data, uint256 j) private pure returns (int256 scale, int256 minimum) {
        unchecked {
            uint256 w = word(data, 4);
            if (j < 4) return (int256(_byte(w, j) & 63), int256(_byte(w, j + 4) & 63));
            uint256 both = _byte(w, j + 4);
            scale = int256((both & 15) | ((_byte(w, j - 4) >> 6) << 4));
            minimum = int256((both >> 4) | ((_byte(w, j) >> 6) << 4));
        }
    }

    /// @dev `acts` is where the activations begin; `fifth` is 1 if there are fifth bits.
    function _stepWithMinima(uint256 acc, bytes memory data, uint256 acts, uint256 fifth)
        private
        pure
        returns (uint256)
    {
        unchecked {
            int256 total;
            int256 minima;
            for (uint256 j = 0; j < 8; ++j) {
                uint256 low = word(data, 16 + 32 * fifth + 32 * (j / 2)) >> (4 * (j & 1));
                // Without fifth bits the mask hides what is read.
                uint256 high = word(data, 16) >> j;
                uint256 x = word(data, acts + 32 * j);
                int256 sum;
                int256 plain;
                for (uint256 i = 0; i < 32; ++i) {
                    int256 xi = _int8(x, i);
                    sum += int256((_byte(low, i) & 15) | ((_byte(high, i) & fifth) << 4)) * xi;
                    plain += xi;
                }
                (int256 scale, int256 minimum) = _scaleAndMinimum(data, j);
                total += scale * sum;
                minima += minimum * plain;
            }
            uint256 dx = float(data, acts + 256);
            acc = F32.fma(F32.fromInt(total), F32.mul(F32.fromHalf(half(data, 0)), dx), acc);
            return F32.fma(F32.neg(F32.fromInt(minima)), F32.mul(F32.fromHalf(half(data, 2)), dx), acc);
        }
    }

    function _cellWithMinimum(bytes memory data, uint256 i, uint256 fifth) private pure returns (uint256) {
        unchecked {
            uint256 j = i / 32;
            uint256 low = _byte(word(data, 16 + 32 * fifth + 32 * (j / 2)), i & 31) >> (4 * (j & 1));
            uint256 high = _byte(word(data, 16), i & 31) >> j;
            uint256 q = (low & 15) | ((high & fifth) << 4);
            (int256 scale, int256 minimum) = _scaleAndMinimum(data, j);
            uint256 d = F32.mul(F32.fromHalf(half(data, 0)), F32.fromInt(scale));
            uint256 least = F32.mul(F32.fromHalf(half(data, 2)), F32.fromInt(minimum));
            return F32.sub(F32.mul(d, F32.fromInt(int256(q))), least);
        }
    }

    /// @dev Where the bits of columns 32j to 32j + 31 of a Q6_K super-block are, and by how much to shift each byte:
    /// the low four bits in the upper, the high two bits in the lower byte of `shifts`.
    function _sixBits(bytes memory data, uint256 j) private pure returns (uint256 low, uint256 high, uint256 shifts) {
        unchecked {
            uint256 quarter = j & 3;
            low = word(data, 64 * (j / 4) + 32 * (quarter & 1));
            high = word(data, 128 + 32 * (j / 4));
            shifts = ((4 * (quarter >> 1)) << 8) | (2 * quarter);
        }
    }
}
// forge-lint: disable-end(unsafe-typecast)
