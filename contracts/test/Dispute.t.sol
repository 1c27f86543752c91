// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Graph} from "../src/Graph.sol";
import {ITrial} from "../src/interfaces/ITrial.sol";
import {DisputePlayers} from "./DisputePlayers.sol";

/// @notice Whole games: every kind of lie is convicted, and no truth is.
contract DisputeTest is DisputePlayers {
    function _start(uint256 nonce) private returns (bytes32 id) {
        _jobShown = _jobOf(bytes32(nonce));
        return _challenge(_jobShown, _answer());
    }

    function _lieAt(uint256 p, uint256 op, uint256 seed) private view returns (Lie memory lie) {
        uint256 word = words[op];
        (lie.position, lie.op) = (p, op);
        uint256 leaves = Graph.leavesAt(word, p, input);
        lie.leaf = seed % leaves;
        seed /= 1000;
        uint256 slots = Graph.isQuantizer(word) ? Graph.leafLength(word) - 3 : 32;
        lie.slot = seed % slots;
        (, uint256 size) = _slotAt(word, lie.slot);
        seed /= 1000;
        // A byte of an i8, or any bit of a number.
        lie.flip = uint32(1 << (seed % (8 * size)));
        lie.fromStep = (seed / 1000) % 8;
    }

    function _assertConvicted(uint256 owedBefore, string memory what) private view {
        vm.assertTrue(court.convicted(court.offenceOf(provider, content.requestHash)), what);
        vm.assertEq(court.owed(challenger) - owedBefore, BOND + PENALTY * REWARD_BPS / 10_000, what);
    }

    function test_everyOperationCanBeConvicted() public {
        for (uint256 op = 0; op < words.length; ++op) {
            for (uint256 i = 0; i < 2; ++i) {
                bytes32 id = _start(2 * op + i);
                uint256 before = court.owed(challenger);
                Lie memory lie = _lieAt(positions - 1, op, uint256(keccak256(abi.encode(op, i))));
                lie.operandFlip = i == 0 ? 0 : 1 + op;
                _play(id, lie);
                _assertConvicted(before, vm.toString(op));
            }
        }
    }

    /// forge-config: default.fuzz.runs = 96
    function testFuzz_aLiarIsConvicted(uint256 seed, uint256 where, uint256 operandFlip) public {
        uint256 p = where % positions;
        uint256 op = (where / 1000) % words.length;
        if (Graph.leavesAt(words[op], p, input) == 0) op = 1;
        Lie memory lie = _lieAt(p, op, seed);
        lie.operandFlip = operandFlip % 3 == 0 ? 0 : 1 + operandFlip % 1000;
        bytes32 id = _start(1);
        uint256 moves = _play(id, lie);
        _assertConvicted(0, "convicted");
        vm.assertLe(moves, 48, "moves");
        (bool isPaid,) = court.refunded(court.offenceOf(provider, content.requestHash));
        vm.assertTrue(!isPaid && court.owed(SINK) == 0, "the rest of the penalty is held for the payer and the sink");
    }

    /// @dev A challenger that picks what it likes finds nothing to convict of.
    /// forge-config: default.fuzz.runs = 96
    function testFuzz_anHonestProviderIsNot(uint256 seed) public {
        Lie memory none;
        bytes32 id = _start(1);
        ITrial.Dispute memory d = trial.dispute(id);
        for (; d.phase < ITrial.Phase.Convict; d = trial.dispute(id)) {
            if (uint8(d.phase) % 2 == 1) {
                _provide(id, d, none);
                continue;
            }
            seed = uint256(keccak256(abi.encode(seed)));
            if (!_tryToPick(id, d, none, seed)) break;
        }
        if (d.phase == ITrial.Phase.Convict) _assertNothingConvicts(id, d);
        vm.warp(START + 1 + WINDOW * 48);
        trial.timeout(id);
        vm.assertEq(court.owed(provider), BOND, "the bond is the provider's");
        vm.assertEq(court.owed(challenger), 0, "nothing for the challenger");
        vm.assertTrue(!court.convicted(court.offenceOf(provider, content.requestHash)), "not convicted");
        vm.assertEq(registry.stakeOf(provider), STAKE, "stake");
    }

    /// @return on False if there is nothing left to pick: what was picked must be zero and is.
    function _tryToPick(bytes32 id, ITrial.Dispute memory d, Lie memory none, uint256 seed) private returns (bool on) {
        if (d.phase == ITrial.Phase.PickNumber) {
            (, uint256 count,) = _group(d);
            uint256 slots = Graph.isQuantizer(d.word) ? Graph.leafLength(d.word) - 3 : 32;
            try this.pickNumberAt(id, d, none, seed % count, (seed >> 32) % slots) {}
            catch (bytes memory reason) {
                vm.assertEq(bytes32(reason), bytes32(ITrial.NoFault.selector), "behind the end there are zeros");
                return false;
            }
        } else if (d.phase == ITrial.Phase.PickStep) {
            bytes memory values = _steps(d, none);
            vm.prank(challenger);
            trial.pickStep(id, seed % (values.length / 4 + 1), values);
        } else {
            (,,,, uint256 count) = _level(d, none);
            try this.pickAt(id, d, none, seed % count) {}
            catch (bytes memory reason) {
                vm.assertEq(bytes32(reason), bytes32(ITrial.NoFault.selector), "an operation without numbers");
                return false;
            }
        }
        return true;
    }

    function pickAt(bytes32 id, ITrial.Dispute memory d, Lie memory lie, uint256 i) external {
        _pickAt(id, d, lie, i);
    }

    function pickNumberAt(bytes32 id, ITrial.Dispute memory d, Lie memory lie, uint256 i, uint256 slot) external {
        _pickNumberAt(id, d, lie, i, slot);
    }

    function convictOperand(bytes32 id, ITrial.Dispute memory d, bytes memory stated, uint256 byteAt) external {
        Lie memory none;
        _convictOperand(id, d, none, stated, byteAt);
    }

    function _assertNothingConvicts(bytes32 id, ITrial.Dispute memory d) private {
        Lie memory none;
        if (Graph.kind(d.word) == Graph.CHOOSE) {
            vm.expectRevert(ITrial.NoFault.selector);
            this.convictChoice(id, d);
            return;
        }
        bytes memory stated = _stated(d, none);
        vm.prank(challenger);
        vm.expectRevert(ITrial.NoFault.selector);
        trial.convictStep(id, stated);
        for (uint256 at = 0; at < stated.length; at += stated.length / 8 + 1) {
            try this.convictOperand(id, d, stated, at) {
                vm.assertTrue(false, "convicted by a right operand");
            } catch (bytes memory reason) {
                vm.assertEq(bytes32(reason), bytes32(ITrial.NoFault.selector), "a right operand");
            }
        }
    }

    function convictChoice(bytes32 id, ITrial.Dispute memory d) external {
        Lie memory none;
        _convict(id, d, none);
    }
}
