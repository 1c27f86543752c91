// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Graph} from "../src/Graph.sol";
import {ReceiptLib} from "../src/ReceiptLib.sol";
import {TraceTree} from "../src/TraceTree.sol";
import {ITrial} from "../src/interfaces/ITrial.sol";
import {DisputeFixture} from "./DisputeFixture.sol";

/// @notice Every move of the longest dispute over 1,000 tokens of a model of 8 billion parameters, on chain.
/// @dev The shape is that of Llama 3 8B: 32 blocks of 31 operations and 7 more, width 4096, feed-forward 14336,
/// vocabulary 128,256, in Q8_0: 8.5 GB or 8.3 million leaves of weights. Only the hashes beside the way down exist; they
/// are drawn, so that no calldata is cheap by zeros. The longest ways: to a logit (4,008 leaves, a chain of 128
/// blocks), and to an output of the last matrix of a block (128 leaves, a chain of 448).
contract DisputeGasTest is DisputeFixture {
    uint256 private constant OPS = 999;
    uint256 private constant POSITIONS = 999;
    uint256 private constant WEIGHT_LEAVES = 8_300_000;

    ITrial.Case private content;
    bytes32 private id;
    uint256 private total;

    // What the provider reveals, from the top.
    bytes32[][] private reveals;
    bytes private numbers;

    struct Plan {
        uint256 position;
        uint256 op;
        uint256 word;
        uint256 leaf;
        uint256 slot;
        uint256 leaves;
        string name;
    }

    function _random(string memory what, uint256 i) private pure returns (bytes32) {
        return keccak256(abi.encode(what, i));
    }

    function _bytes(string memory what, uint256 length) private pure returns (bytes memory data) {
        while (data.length < length) {
            data = bytes.concat(data, _random(what, data.length));
        }
        return _slice(data, 0, length);
    }

    function _logits() private pure returns (Plan memory) {
        uint256 word = Graph.PRODUCT | (Graph.FORMAT_Q8_0 << 8) | (uint256(996) << 24) | (uint256(128_256) << 72);
        word |= (uint256(4096) << 96) | (uint256(7_000_000) << 224);
        return Plan(511, 997, word, 2_047, 29, 4_008, "logits");
    }

    function _down() private pure returns (Plan memory) {
        uint256 word = Graph.PRODUCT | (Graph.FORMAT_Q8_0 << 8) | (uint256(964) << 24) | (uint256(4096) << 72);
        word |= (uint256(14_336) << 96) | (uint256(7_000_000) << 224);
        return Plan(511, 965, word, 127, 31, 128, "down");
    }

    /// @dev Descends a tree of `n` nodes to number `index`, which is `node`; the reveals are pushed from the bottom.
    function _pushReveals(uint256 n, uint256 index, bytes32 node, uint256 height, bytes32[][] memory out, uint256 used)
        private
        pure
        returns (bytes32, uint256)
    {
        // From the top there are five levels each; what is left over is at the bottom.
        uint256 remaining = TraceTree.heightOf(n) - height;
        uint256 levels = remaining % 5 == 0 ? 5 : remaining % 5;
        for (; remaining > 0; levels = 5) {
            uint256 inUse = (n + (1 << height) - 1) >> height;
            uint256 first = index >> levels << levels;
            uint256 count = inUse - first < 1 << levels ? inUse - first : 1 << levels;
            bytes32[] memory children = new bytes32[](count);
            bytes32[] memory scratch = new bytes32[](1 << levels);
            for (uint256 i = 0; i < count; ++i) {
                children[i] = i == index - first ? node : _random("child", (n << 40) + (height << 30) + i);
                scratch[i] = children[i];
            }
            out[used++] = children;
            node = TraceTree.fold(scratch, count, levels, height);
            (index, height, remaining) = (index >> levels, height + levels, remaining - levels);
        }
        return (node, used);
    }

    /// @dev Hashes beside the way of a leaf of the model, and the root that they give.
    function _modelPath(bytes memory leaf, uint256 index) private pure returns (bytes32 root, bytes32[] memory path) {
        path = new bytes32[](24);
        uint256 used;
        root = TraceTree.leafHash(leaf);
        for (uint256 n = WEIGHT_LEAVES; n > 1; n = (n + 1) / 2) {
            if (index ^ 1 < n) {
                bytes32 sibling = path[used++] = _random("model", n);
                root = index & 1 == 0 ? TraceTree.nodeHash(root, sibling) : TraceTree.nodeHash(sibling, root);
            }
            index >>= 1;
        }
        assembly ("memory-safe") {
            mstore(path, used)
        }
    }

    function _plan(Plan memory plan) private {
        bytes32[][] memory out = new bytes32[][](16);
        uint256 used;
        uint256 first = plan.leaf & ~uint256(7);
        uint256 count = plan.leaves - first < 8 ? plan.leaves - first : 8;
        bytes32[] memory hashes = new bytes32[](8);
        numbers = "";
        for (uint256 i = 0; i < count; ++i) {
            bytes memory leaf = _bytes(string.concat("leaf", vm.toString(i)), 128);
            hashes[i] = TraceTree.leafHash(leaf);
            numbers = bytes.concat(numbers, leaf);
        }
        bytes32 node = TraceTree.fold(hashes, count, 3, 0);
        (node, used) = _pushReveals(plan.leaves, plan.leaf >> 3, node, 3, out, used);
        (node, used) = _pushReveals(OPS, plan.op, node, 0, out, used);
        (node, used) = _pushReveals(POSITIONS, plan.position, node, 0, out, used);
        delete reveals;
        for (uint256 i = used; i > 0; --i) {
            reveals.push(out[i - 1]);
        }
    }

    function _count(string memory name) private {
        total += vm.snapshotGasLastCall(name);
    }

    function _open(bytes32[] memory wordPath, Plan memory plan, bytes32 weightsRoot) private {
        content.weightsRoot = weightsRoot;
        content.rotationRoot = _random("rotation", 0);
        content.opsRoot = TraceTree.leafHash(abi.encode(plan.word));
        for (uint256 i = 0; i < wordPath.length; ++i) {
            bool left = (plan.op >> i) & 1 == 0;
            (bytes32 a, bytes32 b) = left ? (content.opsRoot, wordPath[i]) : (wordPath[i], content.opsRoot);
            content.opsRoot = TraceTree.nodeHash(a, b);
        }
        (content.ops, content.weightLeaves, content.rotationLeaves) = (uint32(OPS), uint32(WEIGHT_LEAVES), 65_537);
        bytes32 graphHash = keccak256(
            abi.encodePacked(
                "assay/graph/1",
                content.ops,
                content.weightLeaves,
                content.rotationLeaves,
                content.rotationRoot,
                content.opsRoot
            )
        );
        bytes memory manifest = bytes.concat(_manifest(weightsRoot, graphHash), _bytes("name and licence", 40));
        bytes32 request = _random("request", 0);
        ReceiptLib.Receipt memory receipt =
            _receipt(request, _random("response", 0), keccak256(manifest), 500, uint64(POSITIONS + 1 - 500));
        (content.requestHash, content.responseHash) = (receipt.requestHash, receipt.responseHash);
        content.receiptHash = ReceiptLib.structHash(receipt);
        bytes memory signature = _signed(receipt);
        vm.prank(challenger);
        id = trial.challenge(receipt, signature, manifest, content);
        _count(string.concat(plan.name, "_01_challenge"));
    }

    function _descend(Plan memory plan, bytes32[] memory wordPath) private {
        for (uint256 round = 0; round < reveals.length; ++round) {
            ITrial.Dispute memory d = trial.dispute(id);
            bytes32[] memory children = reveals[round];
            vm.prank(provider);
            trial.reveal(id, children);
            string memory label = string.concat(plan.name, "_", vm.toString(10 + round));
            _count(string.concat(label, "_reveal"));
            uint256 levels = d.remaining < 5 ? d.remaining : 5;
            uint256 index = d.phase == ITrial.Phase.RevealPositions
                ? plan.position
                : d.phase == ITrial.Phase.RevealOps ? plan.op : plan.leaf >> 3;
            index = (index >> (d.remaining - levels)) & ((1 << levels) - 1);
            uint256 height = d.remaining - levels + (d.phase == ITrial.Phase.RevealLeaves ? 3 : 0);
            bytes32[] memory path = new bytes32[](levels);
            for (uint256 i = 0; i < levels; ++i) {
                path[i] = _above(children, height, i, (index >> i) ^ 1);
            }
            vm.prank(challenger);
            if (d.phase == ITrial.Phase.RevealOps && d.remaining == levels) {
                trial.pickOp(id, index, children[index], path, plan.word, wordPath, content);
            } else {
                trial.pick(id, index, children[index], path);
            }
            _count(string.concat(label, "_pick"));
        }
    }

    /// @dev Node `index`, `level` above children that stand at `height`.
    function _above(bytes32[] memory children, uint256 height, uint256 level, uint256 index)
        private
        pure
        returns (bytes32)
    {
        if (level == 0) return index < children.length ? children[index] : _empty(height);
        return TraceTree.nodeHash(
            _above(children, height, level - 1, 2 * index), _above(children, height, level - 1, 2 * index + 1)
        );
    }

    function _numbersAndSteps(Plan memory plan) private {
        vm.prank(provider);
        trial.revealNumbers(id, numbers);
        _count(string.concat(plan.name, "_20_revealNumbers"));
        ITrial.Opening memory opening;
        uint256 i = plan.leaf & 7;
        opening.leaf = _slice(numbers, 128 * i, 128);
        opening.path = new bytes32[](3);
        bytes32[] memory hashes = new bytes32[](numbers.length / 128);
        for (uint256 j = 0; j < hashes.length; ++j) {
            hashes[j] = TraceTree.leafHash(_slice(numbers, 128 * j, 128));
        }
        opening.path = _path(hashes, 0, 3, i);
        vm.prank(challenger);
        trial.pickNumber(id, i, plan.slot, opening);
        _count(string.concat(plan.name, "_21_pickNumber"));
        for (uint256 round = 0;; ++round) {
            ITrial.Dispute memory d = trial.dispute(id);
            if (d.phase == ITrial.Phase.RevealOperands) break;
            uint256 steps = d.spot.high - d.spot.low;
            uint256 width = (steps + 127) / 128;
            uint256 parts = (steps + width - 1) / width;
            bytes memory values = _bytes("steps", 4 * (parts - 1));
            string memory label = string.concat(plan.name, "_", vm.toString(22 + round));
            vm.prank(provider);
            trial.revealSteps(id, values);
            _count(string.concat(label, "_revealSteps"));
            vm.prank(challenger);
            trial.pickStep(id, parts / 2, values);
            _count(string.concat(label, "_pickStep"));
        }
    }

    /// @dev An auditor with an account and a sink that has received before, as in daily use.
    function setUp() public override {
        super.setUp();
        vm.prank(challenger);
        court.deposit(10 * BOND);
        vm.prank(address(trial));
        court.open(challenger, provider, 0, BOND);
        vm.prank(address(trial));
        court.convict(provider, 0, challenger, 1, 0);
    }

    function _measure(Plan memory plan) private {
        _plan(plan);
        bytes32[] memory wordPath = new bytes32[](10);
        for (uint256 i = 0; i < 10; ++i) {
            wordPath[i] = _random("word", i);
        }
        // The block of the step that will be in dispute, which is half way along the chain.
        uint256 chain = Graph.cols(plan.word) / 32;
        uint256 step = chain == 448 ? 56 * 4 + 2 : 64;
        uint256 offset = ((32 * plan.leaf + plan.slot) * chain + step) * 34;
        bytes memory leaf = _bytes("weights", 1024);
        (bytes32 weightsRoot, bytes32[] memory path) = _modelPath(leaf, Graph.tensor(plan.word) + offset / 1024);
        _open(wordPath, plan, weightsRoot);
        _descend(plan, wordPath);
        _numbersAndSteps(plan);
        vm.assertEq(trial.dispute(id).spot.low, step, "the step");
        bytes memory stated = _bytes("stated", 70);
        // A scale that is finite.
        (stated[1], stated[66]) = (0x20, 0x3c);
        vm.prank(provider);
        trial.revealOperands(id, stated);
        _count(string.concat(plan.name, "_30_revealOperands"));
        bytes memory judged =
            abi.encodeCall(trial.convictOperand, (id, stated, 0, 0, ITrial.Opening(leaf, path), content));
        _judgeAlone(plan, judged);
        bytes[] memory calls = new bytes[](2);
        (calls[0], calls[1]) = (judged, abi.encodeCall(trial.punish, (id, content)));
        vm.prank(challenger);
        trial.batch(calls);
        _count(string.concat(plan.name, "_32_convictAndPunish"));
        vm.assertTrue(court.convicted(court.offenceOf(provider, content.requestHash)), "convicted");
        vm.snapshotValue(string.concat(plan.name, "_total"), total);
        vm.assertLe(total, 1_300_000, "goal for a whole dispute");
    }

    /// @dev The step that is judged, by itself; what it changes is taken back.
    function _judgeAlone(Plan memory plan, bytes memory judged) private {
        uint256 before = vm.snapshotState();
        vm.prank(challenger);
        (bool ok,) = address(trial).call(judged);
        vm.assertTrue(ok, "judged");
        uint256 gas_ = vm.snapshotGasLastCall(string.concat(plan.name, "_31_convictOperand"));
        vm.assertLe(gas_, 150_000, "goal for a step that is judged");
        vm.assertTrue(vm.revertToState(before), "taken back");
    }

    function test_gas_longestDisputeToALogit() public {
        _measure(_logits());
    }

    function test_gas_longestDisputeInABlock() public {
        _measure(_down());
    }
}
