// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Graph} from "../src/Graph.sol";
import {ReceiptLib} from "../src/ReceiptLib.sol";
import {TraceTree} from "../src/TraceTree.sol";
import {ITrial} from "../src/interfaces/ITrial.sol";
import {DisputeFixture} from "./DisputeFixture.sol";
import {TraceBuilder} from "./mocks/TraceBuilder.sol";

/// @notice A provider that lies as it is told, and a challenger that knows the truth and plays by the book.
abstract contract DisputePlayers is DisputeFixture {
    TraceBuilder internal builder;
    ITrial.Case internal content;
    bytes internal manifest;
    bytes32 internal modelId;
    uint256[] internal words;
    uint32[] internal tokens;
    uint256 internal input;
    uint256 internal positions;
    bytes32[] private _wordLeaves;
    mapping(uint256 position => bytes32[]) private _opNodes;

    function setUp() public virtual override {
        super.setUp();
        builder = new TraceBuilder(judge);
        uint32[] memory prompt = new uint32[](3);
        (prompt[0], prompt[1], prompt[2]) = (3, 17, 39);
        builder.build(prompt, 2);
        (words, tokens) = (builder.words(), builder.tokens());
        (input, positions) = (builder.inputTokens(), builder.positions());
        Lie memory none;
        for (uint256 p = 0; p < positions; ++p) {
            for (uint256 op = 0; op < words.length; ++op) {
                bytes32[] memory leaves = _leafHashes(p, op, none);
                _opNodes[p].push(leaves.length == 0 ? bytes32(0) : _root(leaves));
            }
        }
        for (uint256 op = 0; op < words.length; ++op) {
            _wordLeaves.push(TraceTree.leafHash(abi.encode(words[op])));
        }
        (content.weightsRoot,) = _modelTree(builder.weights(), 0);
        (content.rotationRoot,) = _modelTree(builder.rotation(), 0);
        content.opsRoot = _root(_wordLeaves);
        content.ops = uint32(words.length);
        content.weightLeaves = uint32(builder.weights().length);
        content.rotationLeaves = uint32(builder.rotation().length);
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
        manifest = _manifest(content.weightsRoot, graphHash);
        modelId = keccak256(manifest);
    }

    // ------------------------------------------------------------------ a request

    function _jobOf(bytes32 nonce) internal view returns (bytes memory) {
        return _job(modelId, tokens, input, 1, 0, nonce);
    }

    function _answer() internal view returns (bytes memory) {
        return _response(tokens, input, tokens.length - input);
    }

    function _receiptOf(bytes memory job, bytes memory response) internal view returns (ReceiptLib.Receipt memory) {
        uint64 outputs = uint64(tokens.length - input);
        return _receipt(keccak256(job), keccak256(response), modelId, uint64(input), outputs);
    }

    function _challenge(bytes memory job, bytes memory response) internal returns (bytes32) {
        ReceiptLib.Receipt memory receipt = _receiptOf(job, response);
        (content.requestHash, content.responseHash) = (receipt.requestHash, receipt.responseHash);
        content.receiptHash = ReceiptLib.structHash(receipt);
        bytes memory signature = _signed(receipt);
        vm.prank(challenger);
        return trial.challenge(receipt, signature, manifest, content);
    }

    // ------------------------------------------------------------------ what is in a trace

    function _leaves(uint256 p, uint256 op, Lie memory lie) internal view returns (bytes[] memory leaves) {
        bytes memory data = builder.values(p, op);
        uint256 length = Graph.leafLength(words[op]);
        leaves = new bytes[](data.length / length);
        for (uint256 i = 0; i < leaves.length; ++i) {
            leaves[i] = _slice(data, i * length, length);
        }
        if (lie.flip != 0 && p == lie.position && op == lie.op) {
            (uint256 at, uint256 size) = _slotAt(words[op], lie.slot);
            for (uint256 i = 0; i < size; ++i) {
                leaves[lie.leaf][at + i] ^= bytes1(uint8(lie.flip >> (8 * (size - 1 - i))));
            }
        }
    }

    /// @dev Where in a leaf a number is, and its bytes.
    function _slotAt(uint256 word, uint256 slot) internal pure returns (uint256 at, uint256 size) {
        if (!Graph.isQuantizer(word)) return (4 * slot, 4);
        return (slot, slot + 4 == Graph.leafLength(word) ? 4 : 1);
    }

    function _leafHashes(uint256 p, uint256 op, Lie memory lie) internal view returns (bytes32[] memory hashes) {
        bytes[] memory leaves = _leaves(p, op, lie);
        hashes = new bytes32[](leaves.length);
        for (uint256 i = 0; i < leaves.length; ++i) {
            hashes[i] = TraceTree.leafHash(leaves[i]);
        }
    }

    function _ops(uint256 p, Lie memory lie) internal view returns (bytes32[] memory nodes) {
        nodes = _opNodes[p];
        if (lie.flip != 0 && p == lie.position) nodes[lie.op] = _root(_leafHashes(p, lie.op, lie));
    }

    function _positionNodes(Lie memory lie) internal view returns (bytes32[] memory nodes) {
        nodes = new bytes32[](positions);
        for (uint256 p = 0; p < positions; ++p) {
            nodes[p] = _root(_ops(p, lie));
        }
    }

    /// @dev A leaf of the trace with its way to the root.
    function _open(uint256 p, uint256 op, uint256 leaf, Lie memory lie)
        internal
        view
        returns (ITrial.Opening memory opening)
    {
        bytes32[] memory hashes = _leafHashes(p, op, lie);
        opening.leaf = _leaves(p, op, lie)[leaf];
        opening.path = _path(hashes, 0, TraceTree.heightOf(hashes.length), leaf);
        opening.path = _concat(opening.path, _path(_ops(p, lie), 0, TraceTree.heightOf(words.length), op));
        opening.path = _concat(opening.path, _path(_positionNodes(lie), 0, TraceTree.heightOf(positions), p));
    }

    function _wordPath(uint256 op) internal view returns (bytes32[] memory) {
        return _path(_wordLeaves, 0, TraceTree.heightOf(words.length), op);
    }

    // ------------------------------------------------------------------ the game

    /// @dev Plays to the end; returns how often someone moved.
    function _play(bytes32 id, Lie memory lie) internal returns (uint256 moves) {
        for (;; ++moves) {
            ITrial.Dispute memory d = trial.dispute(id);
            if (d.phase == ITrial.Phase.Closed) return moves;
            if (d.phase == ITrial.Phase.Guilty) {
                trial.punish(id, content);
                return moves;
            }
            if (uint8(d.phase) % 2 == 1) _provide(id, d, lie);
            else _attack(id, d, lie);
        }
    }

    function _playUntil(bytes32 id, Lie memory lie, ITrial.Phase phase) internal returns (ITrial.Dispute memory d) {
        for (d = trial.dispute(id); d.phase != phase; d = trial.dispute(id)) {
            require(d.phase < ITrial.Phase.Guilty, "closed before");
            if (uint8(d.phase) % 2 == 1) _provide(id, d, lie);
            else _attack(id, d, lie);
        }
    }

    /// @dev The tree that is descended, the height of the children and the index of the first.
    function _level(ITrial.Dispute memory d, Lie memory lie)
        internal
        view
        returns (bytes32[] memory base, uint256 height, uint256 levels, uint256 first, uint256 count)
    {
        levels = d.remaining < 5 ? d.remaining : 5;
        height = d.remaining - levels;
        if (d.phase <= ITrial.Phase.PickPosition) {
            base = _positionNodes(lie);
        } else if (d.phase <= ITrial.Phase.PickOp) {
            base = _ops(d.spot.position, lie);
        } else {
            base = _leafHashes(d.spot.position, d.spot.op, lie);
            height += 3;
        }
        first = uint256(d.prefix) << levels;
        count = ((base.length + (1 << height) - 1) >> height) - first;
        if (count > 1 << levels) count = 1 << levels;
    }

    function _children(ITrial.Dispute memory d, Lie memory lie) internal view returns (bytes32[] memory children) {
        (bytes32[] memory base, uint256 height,, uint256 first, uint256 count) = _level(d, lie);
        children = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            children[i] = _node(base, height, first + i);
        }
    }

    function _siteOf(ITrial.Dispute memory d) internal pure returns (Graph.Site memory) {
        return Graph.Site(d.word, d.spot.op, d.spot.position, d.spot.leaf, d.spot.slot);
    }

    /// @dev First leaf, count and levels of the group whose numbers are revealed.
    function _group(ITrial.Dispute memory d) internal pure returns (uint256 first, uint256 count, uint256 levels) {
        levels = TraceTree.heightOf(d.spot.leaves);
        if (levels > 3) levels = 3;
        first = uint256(d.prefix) << 3;
        count = d.spot.leaves - first < 1 << levels ? d.spot.leaves - first : 1 << levels;
    }

    function _numbers(ITrial.Dispute memory d, Lie memory lie) internal view returns (bytes memory data) {
        (uint256 first, uint256 count,) = _group(d);
        bytes[] memory leaves = _leaves(d.spot.position, d.spot.op, lie);
        for (uint256 i = 0; i < count; ++i) {
            data = bytes.concat(data, leaves[first + i]);
        }
    }

    /// @dev What a chain gave after each of its steps from `low` on, as the provider has it.
    function _chain(ITrial.Dispute memory d, Lie memory lie) internal view returns (uint256[] memory values) {
        Graph.Site memory site = _siteOf(d);
        (, uint256 steps) = judge.claimOf(site, input, new bytes(Graph.leafLength(d.word)));
        values = builder.chain(site, steps);
        bool here = lie.flip != 0 && d.spot.position == lie.position && d.spot.op == lie.op;
        for (uint256 i = 0; i < steps; ++i) {
            if (here && i >= lie.fromStep) values[i] ^= lie.flip;
        }
    }

    function _partsOf(ITrial.Dispute memory d) internal pure returns (uint256 parts, uint256 width) {
        uint256 steps = d.spot.high - d.spot.low;
        width = (steps + 127) / 128;
        parts = (steps + width - 1) / width;
    }

    function _steps(ITrial.Dispute memory d, Lie memory lie) internal view returns (bytes memory data) {
        uint256[] memory values = _chain(d, lie);
        (uint256 parts, uint256 width) = _partsOf(d);
        for (uint256 i = 1; i < parts; ++i) {
            data = abi.encodePacked(data, uint32(values[d.spot.low + width * i - 1]));
        }
    }

    function _stated(ITrial.Dispute memory d, Lie memory lie) internal view returns (bytes memory stated) {
        stated = builder.statedAt(_siteOf(d), d.spot.low);
        if (lie.operandFlip != 0) {
            uint256 at = (lie.operandFlip - 1) % stated.length;
            stated[at] ^= 0x10;
        }
    }

    function _provide(bytes32 id, ITrial.Dispute memory d, Lie memory lie) internal {
        if (d.phase == ITrial.Phase.RevealNumbers) {
            bytes memory data = _numbers(d, lie);
            vm.prank(provider);
            trial.revealNumbers(id, data);
        } else if (d.phase == ITrial.Phase.RevealSteps) {
            bytes memory data = _steps(d, lie);
            vm.prank(provider);
            trial.revealSteps(id, data);
        } else if (d.phase == ITrial.Phase.RevealOperands) {
            bytes memory data = _stated(d, lie);
            vm.prank(provider);
            trial.revealOperands(id, data);
        } else {
            bytes32[] memory children = _children(d, lie);
            vm.prank(provider);
            trial.reveal(id, children);
        }
    }

    function _attack(bytes32 id, ITrial.Dispute memory d, Lie memory lie) internal {
        if (d.phase == ITrial.Phase.PickNumber) _pickNumber(id, d, lie);
        else if (d.phase == ITrial.Phase.PickStep) _pickStep(id, d, lie);
        else if (d.phase == ITrial.Phase.Convict) _convict(id, d, lie);
        else _pick(id, d, lie);
    }

    function _pick(bytes32 id, ITrial.Dispute memory d, Lie memory lie) private {
        Lie memory none;
        bytes32[] memory theirs = _children(d, lie);
        bytes32[] memory ours = _children(d, none);
        uint256 i;
        while (i + 1 < theirs.length && theirs[i] == ours[i]) ++i;
        _pickAt(id, d, lie, i);
    }

    function _pickAt(bytes32 id, ITrial.Dispute memory d, Lie memory lie, uint256 i) internal {
        (bytes32[] memory base, uint256 height, uint256 levels, uint256 first,) = _level(d, lie);
        bytes32 child = _node(base, height, first + i);
        bytes32[] memory path = _path(base, height, height + levels, first + i);
        if (d.phase == ITrial.Phase.PickOp && d.remaining == levels) {
            uint256 op = first + i;
            bytes32[] memory wordPath = _wordPath(op);
            vm.prank(challenger);
            trial.pickOp(id, i, child, path, words[op], wordPath, content);
        } else {
            vm.prank(challenger);
            trial.pick(id, i, child, path);
        }
    }

    function _pickNumber(bytes32 id, ITrial.Dispute memory d, Lie memory lie) private {
        Lie memory none;
        bytes memory theirs = _numbers(d, lie);
        bytes memory ours = _numbers(d, none);
        uint256 at;
        while (at + 1 < theirs.length && theirs[at] == ours[at]) ++at;
        uint256 length = Graph.leafLength(d.word);
        uint256 slot = at % length;
        if (!Graph.isQuantizer(d.word)) slot /= 4;
        else if (slot + 4 > length) slot = length - 4;
        _pickNumberAt(id, d, lie, at / length, slot);
    }

    function _pickNumberAt(bytes32 id, ITrial.Dispute memory d, Lie memory lie, uint256 i, uint256 slot) internal {
        (uint256 first,, uint256 levels) = _group(d);
        ITrial.Opening memory opening;
        opening.leaf = _leaves(d.spot.position, d.spot.op, lie)[first + i];
        opening.path = _path(_leafHashes(d.spot.position, d.spot.op, lie), 0, levels, first + i);
        vm.prank(challenger);
        trial.pickNumber(id, i, slot, opening);
    }

    function _pickStep(bytes32 id, ITrial.Dispute memory d, Lie memory lie) private {
        Lie memory none;
        bytes memory theirs = _steps(d, lie);
        bytes memory ours = _steps(d, none);
        uint256 at;
        while (at < theirs.length && theirs[at] == ours[at]) ++at;
        vm.prank(challenger);
        trial.pickStep(id, at / 4, theirs);
    }

    function _convict(bytes32 id, ITrial.Dispute memory d, Lie memory lie) internal {
        Lie memory none;
        if (Graph.kind(d.word) == Graph.CHOOSE) return _convictChoice(id, d, lie);
        bytes memory theirs = _stated(d, lie);
        bytes memory ours = _stated(d, none);
        if (keccak256(theirs) == keccak256(ours)) {
            vm.prank(challenger);
            trial.convictStep(id, theirs);
            return;
        }
        uint256 wrong;
        while (theirs[wrong] == ours[wrong]) ++wrong;
        _convictOperand(id, d, lie, theirs, wrong);
    }

    /// @dev By the operand that has byte `wrong` of what was stated.
    function _convictOperand(bytes32 id, ITrial.Dispute memory d, Lie memory lie, bytes memory stated, uint256 wrong)
        internal
    {
        uint256 i;
        (Graph.Operand memory o, uint256 at) = judge.operandOf(_siteOf(d), d.spot.low, stated, i);
        while (at + o.length <= wrong) (o, at) = judge.operandOf(_siteOf(d), d.spot.low, stated, ++i);
        ITrial.Opening memory opening;
        uint256 part;
        if (o.source == Graph.Source.Tokens) {
            _show(id, uint32(o.position));
        } else if (o.source == Graph.Source.Trace) {
            opening = _open(o.position, o.op, o.leaf, lie);
        } else {
            part = (o.offset + wrong - at) / 1024 - o.offset / 1024;
            bytes[] memory leaves = o.source == Graph.Source.Weights ? builder.weights() : builder.rotation();
            uint256 leaf = o.leaf + o.offset / 1024 + part;
            opening.leaf = leaves[leaf];
            (, opening.path) = _modelTree(leaves, leaf);
        }
        vm.prank(challenger);
        trial.convictOperand(id, stated, i, part, opening, content);
    }

    /// @dev Shows the token at a position of the request of nonce zero.
    function _show(bytes32 id, uint32 position) internal {
        bytes memory data = position < input ? _jobShown : _answer();
        vm.prank(challenger);
        if (position < input) trial.showInput(id, position, data, content);
        else trial.showOutput(id, position, data, content);
    }

    /// @dev The job of the dispute that is played.
    bytes internal _jobShown;

    function _convictChoice(bytes32 id, ITrial.Dispute memory d, Lie memory lie) private {
        _show(id, 0);
        uint256 chosen = d.spot.afterwards;
        uint256 better = uint32(bytes4(builder.values(d.spot.position, d.spot.op)));
        uint256 logits = Graph.a(d.word);
        ITrial.Opening memory ofChosen;
        if (chosen < Graph.cols(d.word)) ofChosen = _open(d.spot.position, logits, chosen / 32, lie);
        ITrial.Opening memory ofBetter = _open(d.spot.position, logits, better / 32, lie);
        vm.prank(challenger);
        trial.convictChoice(id, better, ofChosen, ofBetter);
    }
}
