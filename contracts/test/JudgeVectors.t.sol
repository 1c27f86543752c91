// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Canonical} from "../src/Canonical.sol";
import {F32} from "../src/F32.sol";
import {Base} from "./Base.sol";

/// @notice Holds the arithmetic of the contracts to that of Rust: record by record, bit by bit.
/// @dev vectors/judge.json, which both sides read, has the first records of each instruction and the hash of many more;
/// those are written to cache/judge by `npm run judge`, which `npm test` does first.
abstract contract JudgeVectors is Base {
    string private constant FILE = "../vectors/judge.json";
    string private constant DIR = "cache/judge/";

    function _check(uint256 index, string memory name, function(bytes memory) pure returns (uint256) f) internal view {
        string memory json = vm.readFile(FILE);
        string memory row = string.concat(".instructions[", vm.toString(index), "].");
        vm.assertEq(vm.parseJsonString(json, string.concat(row, "name")), name, "order of the instructions");
        uint256 length = vm.parseJsonUint(json, string.concat(row, "operandBytes"));
        _run(name, vm.parseJsonBytes(json, string.concat(row, "golden")), length, f);

        uint256 count;
        bytes32 hashed;
        for (uint256 part = 0;; ++part) {
            string memory path = string.concat(DIR, name, "-", vm.toString(part), ".bin");
            if (!vm.exists(path)) break;
            bytes memory records = vm.readFileBinary(path);
            count += _run(name, records, length, f);
            hashed = keccak256(abi.encodePacked(hashed, keccak256(records)));
        }
        uint256 wanted = vm.parseJsonUint(json, string.concat(row, "count"));
        vm.assertLe(wanted, count, string.concat(name, ": records in cache/judge; `npm run judge` writes them"));
        if (count == wanted) {
            bytes32 committed = vm.parseJsonBytes32(json, string.concat(row, "keccak"));
            vm.assertEq(hashed, committed, string.concat(name, ": `npm run judge` wrote other records"));
        }
    }

    /// @dev One record after the other: the length of each stands where the result of the one before was.
    function _run(
        string memory name,
        bytes memory records,
        uint256 length,
        function(bytes memory) pure returns (uint256) f
    ) private pure returns (uint256 count) {
        count = records.length / (length + 4);
        vm.assertEq(records.length, count * (length + 4), string.concat(name, ": whole records"));
        bytes memory operands = new bytes(length + 32);
        uint256 free;
        assembly ("memory-safe") {
            free := mload(0x40)
        }
        for (uint256 i = 0; i < count; ++i) {
            uint256 expected;
            assembly ("memory-safe") {
                let from := add(add(records, 32), mul(i, add(length, 4)))
                mcopy(add(operands, 32), from, length)
                mstore(operands, length)
                // What the record before allocated is not needed any more.
                mstore(0x40, free)
                expected := shr(224, mload(add(from, length)))
            }
            uint256 got = f(operands);
            if (got != expected) _fail(name, i, operands, got, expected);
        }
    }

    function _fail(string memory name, uint256 i, bytes memory operands, uint256 got, uint256 expected) private pure {
        string memory what = string.concat(name, " record ", vm.toString(i), " of ", vm.toString(operands));
        vm.assertEq(bytes32(got), bytes32(expected), what);
    }
}

/// @notice Single IEEE operations and conversions.
contract NumberVectorsTest is JudgeVectors {
    function test_add() public view {
        _check(0, "add", _add);
    }

    function test_sub() public view {
        _check(1, "sub", _sub);
    }

    function test_mul() public view {
        _check(2, "mul", _mul);
    }

    function test_div() public view {
        _check(3, "div", _div);
    }

    function test_less() public view {
        _check(4, "less", _less);
    }

    function test_max() public view {
        _check(5, "max", _max);
    }

    function test_fma() public view {
        _check(6, "fma", _fma);
    }

    function test_sqrt() public view {
        _check(7, "sqrt", _sqrt);
    }

    function test_rint() public view {
        _check(8, "rint", _rint);
    }

    function test_fromInt() public view {
        _check(9, "fromInt", _fromInt);
    }

    function test_fromHalf() public view {
        _check(10, "fromHalf", _fromHalf);
    }

    function test_toHalf() public view {
        _check(11, "toHalf", _toHalf);
    }

    function test_fromBfloat() public view {
        _check(12, "fromBfloat", _fromBfloat);
    }

    // ------------------------------------------------------------------ how a record is read

    function _add(bytes memory x) private pure returns (uint256) {
        return F32.add(Canonical.float(x, 0), Canonical.float(x, 4));
    }

    function _sub(bytes memory x) private pure returns (uint256) {
        return F32.sub(Canonical.float(x, 0), Canonical.float(x, 4));
    }

    function _mul(bytes memory x) private pure returns (uint256) {
        return F32.mul(Canonical.float(x, 0), Canonical.float(x, 4));
    }

    function _div(bytes memory x) private pure returns (uint256) {
        return F32.div(Canonical.float(x, 0), Canonical.float(x, 4));
    }

    function _less(bytes memory x) private pure returns (uint256) {
        return F32.lt(Canonical.float(x, 0), Canonical.float(x, 4)) ? 1 : 0;
    }

    function _max(bytes memory x) private pure returns (uint256) {
        uint256 larger = F32.max(Canonical.float(x, 0), Canonical.float(x, 4));
        return F32.isNan(larger) ? F32.NAN : larger;
    }

    function _fma(bytes memory x) private pure returns (uint256) {
        return F32.fma(Canonical.float(x, 0), Canonical.float(x, 4), Canonical.float(x, 8));
    }

    function _sqrt(bytes memory x) private pure returns (uint256) {
        return F32.sqrt(Canonical.float(x, 0));
    }

    function _rint(bytes memory x) private pure returns (uint256) {
        return F32.rint(Canonical.float(x, 0));
    }

    function _fromInt(bytes memory x) private pure returns (uint256) {
        return F32.fromInt(int256(int32(uint32(Canonical.float(x, 0)))));
    }

    function _fromHalf(bytes memory x) private pure returns (uint256) {
        return F32.fromHalf(Canonical.float(x, 0));
    }

    function _toHalf(bytes memory x) private pure returns (uint256) {
        return F32.toHalf(Canonical.float(x, 0));
    }

    function _fromBfloat(bytes memory x) private pure returns (uint256) {
        return F32.fromBfloat(Canonical.float(x, 0));
    }
}

/// @notice What is composed of them.
contract FunctionVectorsTest is JudgeVectors {
    function test_exp() public view {
        _check(13, "exp", _exp);
    }

    function test_silu() public view {
        _check(14, "silu", _silu);
    }

    function test_gelu() public view {
        _check(15, "gelu", _gelu);
    }

    function test_softcap() public view {
        _check(16, "softcap", _softcap);
    }

    function test_turnFirst() public view {
        _check(17, "turnFirst", _turnFirst);
    }

    function test_turnSecond() public view {
        _check(18, "turnSecond", _turnSecond);
    }

    function test_laneSum() public view {
        _check(19, "laneSum", _laneSum);
    }

    function test_inverseRms() public view {
        _check(20, "inverseRms", _inverseRms);
    }

    // ------------------------------------------------------------------ how a record is read

    function _exp(bytes memory x) private pure returns (uint256) {
        return Canonical.exp(Canonical.float(x, 0));
    }

    function _silu(bytes memory x) private pure returns (uint256) {
        return Canonical.silu(Canonical.float(x, 0));
    }

    function _gelu(bytes memory x) private pure returns (uint256) {
        return Canonical.gelu(Canonical.float(x, 0));
    }

    function _softcap(bytes memory x) private pure returns (uint256) {
        return Canonical.softcap(Canonical.float(x, 0), Canonical.float(x, 4));
    }

    function _turnFirst(bytes memory x) private pure returns (uint256) {
        return Canonical.turnFirst(
            Canonical.float(x, 0), Canonical.float(x, 4), Canonical.float(x, 8), Canonical.float(x, 12)
        );
    }

    function _turnSecond(bytes memory x) private pure returns (uint256) {
        return Canonical.turnSecond(
            Canonical.float(x, 0), Canonical.float(x, 4), Canonical.float(x, 8), Canonical.float(x, 12)
        );
    }

    function _laneSum(bytes memory x) private pure returns (uint256) {
        return Canonical.laneSum(x, 0);
    }

    function _inverseRms(bytes memory x) private pure returns (uint256) {
        return Canonical.inverseRms(Canonical.float(x, 0), Canonical.float(x, 4), Canonical.float(x, 8));
    }
}

/// @notice Quantizers, steps of products, cells of tables.
contract BlockVectorsTest is JudgeVectors {
    function test_quantizeBlock() public view {
        _check(21, "quantizeBlock", _quantizeBlock);
    }

    function test_quantizeSuperBlock() public view {
        _check(22, "quantizeSuperBlock", _quantizeSuperBlock);
    }

    function test_stepQ8() public view {
        _check(23, "stepQ8", _stepQ8);
    }

    function test_stepQ4() public view {
        _check(24, "stepQ4", _stepQ4);
    }

    function test_stepQ4K() public view {
        _check(25, "stepQ4K", _stepQ4K);
    }

    function test_stepQ5K() public view {
        _check(26, "stepQ5K", _stepQ5K);
    }

    function test_stepQ6K() public view {
        _check(27, "stepQ6K", _stepQ6K);
    }

    function test_cellQ8() public view {
        _check(28, "cellQ8", _cellQ8);
    }

    function test_cellQ4() public view {
        _check(29, "cellQ4", _cellQ4);
    }

    function test_cellQ4K() public view {
        _check(30, "cellQ4K", _cellQ4K);
    }

    function test_cellQ5K() public view {
        _check(31, "cellQ5K", _cellQ5K);
    }

    function test_cellQ6K() public view {
        _check(32, "cellQ6K", _cellQ6K);
    }

    // ------------------------------------------------------------------ how a record is read

    function _quantizeBlock(bytes memory x) private pure returns (uint256) {
        uint256 i = Canonical.word(x, 128) >> 248;
        uint256 d = Canonical.scaleOfBlock(x);
        return i == 32 ? d : Canonical.quantize(Canonical.float(x, 4 * i), d);
    }

    function _quantizeSuperBlock(bytes memory x) private pure returns (uint256) {
        uint256 i = Canonical.word(x, 1024) >> 240;
        uint256 d = Canonical.scaleOfSuperBlock(x);
        return i == 256 ? d : Canonical.quantize(Canonical.float(x, 4 * i), d);
    }

    /// @dev What follows the first four bytes, in place: they become the length.
    function _behindAcc(bytes memory x) private pure returns (uint256 acc, bytes memory data) {
        acc = Canonical.float(x, 0);
        assembly ("memory-safe") {
            let length := mload(x)
            data := add(x, 4)
            mstore(data, sub(length, 4))
        }
    }

    function _stepQ8(bytes memory x) private pure returns (uint256) {
        (uint256 acc, bytes memory data) = _behindAcc(x);
        return Canonical.stepQ8(acc, data);
    }

    function _stepQ4(bytes memory x) private pure returns (uint256) {
        (uint256 acc, bytes memory data) = _behindAcc(x);
        return Canonical.stepQ4(acc, data);
    }

    function _stepQ4K(bytes memory x) private pure returns (uint256) {
        (uint256 acc, bytes memory data) = _behindAcc(x);
        return Canonical.stepQ4K(acc, data);
    }

    function _stepQ5K(bytes memory x) private pure returns (uint256) {
        (uint256 acc, bytes memory data) = _behindAcc(x);
        return Canonical.stepQ5K(acc, data);
    }

    function _stepQ6K(bytes memory x) private pure returns (uint256) {
        (uint256 acc, bytes memory data) = _behindAcc(x);
        return Canonical.stepQ6K(acc, data);
    }

    function _cellQ8(bytes memory x) private pure returns (uint256) {
        return Canonical.cellQ8(x, Canonical.word(x, 34) >> 248);
    }

    function _cellQ4(bytes memory x) private pure returns (uint256) {
        return Canonical.cellQ4(x, Canonical.word(x, 18) >> 248);
    }

    function _cellQ4K(bytes memory x) private pure returns (uint256) {
        return Canonical.cellQ4K(x, Canonical.word(x, 144) >> 248);
    }

    function _cellQ5K(bytes memory x) private pure returns (uint256) {
        return Canonical.cellQ5K(x, Canonical.word(x, 176) >> 248);
    }

    function _cellQ6K(bytes memory x) private pure returns (uint256) {
        return Canonical.cellQ6K(x, Canonical.word(x, 210) >> 248);
    }
}
