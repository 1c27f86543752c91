// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

import {F32} from "./F32.sol";
import {Graph} from "./Graph.sol";
import {ReceiptLib} from "./ReceiptLib.sol";
import {TraceTree} from "./TraceTree.sol";
import {ICourt} from "./interfaces/ICourt.sol";
import {IJudge} from "./interfaces/IJudge.sol";
import {IParameters} from "./interfaces/IParameters.sol";
import {ITrial} from "./interfaces/ITrial.sol";

// Casts are of indexes and counts that were checked to be below the number of leaves, operations or positions.
// The literal in every shift is what is shifted.
// forge-lint: disable-start(unsafe-typecast, incorrect-shift)

/// @title Trial
/// @notice See ITrial, and docs/COURT.md for why the game finds the culprit.
/// @dev The provider's trace is one tree, in an order in which a number follows what it is made of: positions, operations,
/// leaves. The provider reveals, the challenger picks the first child that differs from its own, until a number is
/// found; then the same along the chain of steps that made it. What the last step reads comes before it in the tree,
/// and both agree on all of that: so if the provider states it rightly the result is wrong, and if not the
/// challenger can open it.
contract Trial is ITrial {
    /// @dev A reveal shows this many levels of a tree: 32 children.
    uint256 private constant LEVELS = 5;
    /// @dev The lowest levels of a trace are revealed as numbers: 8 leaves.
    uint256 private constant NUMBER_LEVELS = 3;
    /// @dev Parts of a chain in one reveal.
    uint256 private constant PARTS = 128;
    uint256 private constant POSITIONS_MAX = 1 << 20;
    uint256 private constant OPS_MAX = 1 << 15;
    uint256 private constant LEAVES_MAX = 1 << 26;
    uint256 private constant STEPS_MAX = 1 << 16;

    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant MOVE_TYPEHASH = keccak256("Move(bytes32 dispute,uint16 turn,bytes call)");
    bytes32 private constant STATE_TYPEHASH = keccak256("State(bytes32 dispute,bytes state)");

    /// @notice Most moves of one dispute: two for each five levels of three trees and each seven of a chain, and the last.
    uint256 public constant MOVES_MAX = 48;

    IJudge public immutable judge;
    ICourt public immutable court;
    IParameters private immutable PARAMETERS;
    uint32 public immutable moveWindow;
    bytes32 private immutable RECEIPT_DOMAIN;
    bytes32 private immutable DOMAIN;

    mapping(bytes32 id => Dispute) private _disputes;
    mapping(bytes32 id => Shown) private _shown;
    /// @dev Who signed the move that is being relayed.
    address private transient _signer;

    /// @param court_ Deployed before, with the address that this contract gets as its trial.
    constructor(IJudge judge_, ICourt court_) {
        if (address(judge_).code.length == 0) revert BadParameter("judge");
        if (court_.trial() != address(this)) revert BadParameter("court");
        judge = judge_;
        court = court_;
        PARAMETERS = court_.parameters();
        moveWindow = court_.moveWindow();
        RECEIPT_DOMAIN = court_.receiptDomain();
        DOMAIN = keccak256(
            abi.encode(DOMAIN_TYPEHASH, keccak256("Assay Trial"), keccak256("1"), block.chainid, address(this))
        );
    }

    // ------------------------------------------------------------------ opening

    /// @inheritdoc ITrial
    function challenge(
        ReceiptLib.Receipt calldata receipt,
        bytes calldata signature,
        bytes calldata manifest,
        Case calldata content
    ) external returns (bytes32 id) {
        address provider = ReceiptLib.recover(receipt, RECEIPT_DOMAIN, signature);
        uint256 positions = uint256(receipt.promptTokens) + receipt.outputTokens;
        if (receipt.promptTokens == 0 || receipt.outputTokens == 0 || positions > POSITIONS_MAX) {
            revert NoTrace(receipt.promptTokens, receipt.outputTokens);
        }
        _requireModel(receipt, manifest, content);

        id = keccak256(abi.encode(msg.sender, content));
        Dispute storage d = _disputes[id];
        if (d.phase != Phase.None) revert AlreadyChallenged(id);
        d.challenger = msg.sender;
        d.deadline = _deadline();
        d.turn = 1;
        d.phase = Phase.RevealPositions;
        // The last token of the answer was not fed to the model any more.
        d.remaining = uint8(TraceTree.heightOf(positions - 1));
        d.provider = provider;
        d.inputTokens = uint32(receipt.promptTokens);
        d.positions = uint32(positions - 1);
        d.ops = uint16(content.ops);
        IParameters.Terms memory terms = PARAMETERS.current();
        d.version = terms.version;
        emit Challenged(id, msg.sender, provider, content);
        court.open(msg.sender, provider, receipt.requestHash, terms.bond);
    }

    function _requireModel(ReceiptLib.Receipt calldata receipt, bytes calldata manifest, Case calldata content)
        private
        view
    {
        (bytes32 weightsRoot, bytes32 graphHash) = judge.modelOf(manifest, receipt.modelId);
        bytes32 graph = keccak256(
            abi.encodePacked(
                "assay/graph/1",
                content.ops,
                content.weightLeaves,
                content.rotationLeaves,
                content.rotationRoot,
                content.opsRoot
            )
        );
        bool same = content.receiptHash == ReceiptLib.structHash(receipt) && content.requestHash == receipt.requestHash
            && content.responseHash == receipt.responseHash && content.weightsRoot == weightsRoot && graph == graphHash;
        if (!same || content.ops == 0 || content.ops > OPS_MAX) revert NotTheCase();
    }

    // ------------------------------------------------------------------ down the tree

    /// @inheritdoc ITrial
    function reveal(bytes32 id, bytes32[] calldata children) external {
        Dispute storage d = _disputes[id];
        Phase phase = d.phase;
        if (phase != Phase.RevealPositions && phase != Phase.RevealOps && phase != Phase.RevealLeaves) {
            revert WrongPhase(phase);
        }
        _requireProvider(d);
        (uint256 levels, uint256 count, uint256 height) = _below(d, phase);
        if (children.length != count) revert WrongCount(children.length, count);

        bytes32[] memory nodes = new bytes32[](1 << levels);
        assembly ("memory-safe") {
            calldatacopy(add(nodes, 32), children.offset, shl(5, count))
        }
        bytes32 hash = TraceTree.fold(nodes, count, levels, height);
        if (d.root == 0) {
            d.root = hash;
            d.node = hash;
        } else if (hash != d.node) {
            revert WrongHash(hash, d.node);
        }
        _moved(id, d, Phase(uint8(phase) + 1));
    }

    /// @inheritdoc ITrial
    function pick(bytes32 id, uint256 index, bytes32 child, bytes32[] calldata path) external {
        Dispute storage d = _disputes[id];
        Phase phase = d.phase;
        if (phase != Phase.PickPosition && phase != Phase.PickOp && phase != Phase.PickLeaf) revert WrongPhase(phase);
        _requireChallenger(d);
        (uint256 remaining, uint256 prefix) = _pick(d, phase, index, child, path);
        d.node = child;
        if (remaining != 0) {
            d.remaining = uint8(remaining);
            d.prefix = uint32(prefix);
            return _moved(id, d, Phase(uint8(phase) - 1));
        }
        // Only `pickOp` says what the operation is.
        if (phase == Phase.PickOp) revert WrongPhase(phase);
        if (phase == Phase.PickLeaf) {
            d.remaining = 0;
            d.prefix = uint32(prefix);
            return _moved(id, d, Phase.RevealNumbers);
        }
        d.spot.position = uint32(prefix);
        d.prefix = 0;
        d.remaining = uint8(TraceTree.heightOf(d.ops));
        _moved(id, d, Phase.RevealOps);
    }

    /// @inheritdoc ITrial
    function pickOp(
        bytes32 id,
        uint256 index,
        bytes32 child,
        bytes32[] calldata path,
        uint256 word,
        bytes32[] calldata wordPath,
        Case calldata content
    ) external {
        Dispute storage d = _disputes[id];
        if (d.phase != Phase.PickOp) revert WrongPhase(d.phase);
        _requireChallenger(d);
        (uint256 remaining, uint256 op) = _pick(d, Phase.PickOp, index, child, path);
        if (remaining != 0) revert WrongPhase(Phase.PickOp);
        _requireWord(id, d, op, word, wordPath, content);

        (uint256 leaves,) = judge.layout(word, d.spot.position, d.inputTokens);
        if (leaves > LEAVES_MAX) revert OutOfRange(leaves, LEAVES_MAX);
        if (leaves == 0) {
            if (child == 0) revert NoFault();
            return _convictIn(id, d);
        }
        d.node = child;
        d.word = word;
        d.spot.op = uint16(op);
        d.spot.leaves = uint32(leaves);
        uint256 height = TraceTree.heightOf(leaves);
        d.prefix = 0;
        d.remaining = height > NUMBER_LEVELS ? uint8(height - NUMBER_LEVELS) : 0;
        _moved(id, d, height > NUMBER_LEVELS ? Phase.RevealLeaves : Phase.RevealNumbers);
    }

    /// @inheritdoc ITrial
    function revealNumbers(bytes32 id, bytes calldata leaves) external {
        Dispute storage d = _disputes[id];
        if (d.phase != Phase.RevealNumbers) revert WrongPhase(d.phase);
        _requireProvider(d);
        (uint256 levels, uint256 count) = _numbers(d);
        uint256 length = Graph.leafLength(d.word);
        if (leaves.length != count * length) revert WrongCount(leaves.length, count * length);

        bytes32[] memory nodes = new bytes32[](1 << levels);
        for (uint256 i = 0; i < count; ++i) {
            nodes[i] = TraceTree.leafHashOfCalldata(leaves[i * length:(i + 1) * length]);
        }
        bytes32 hash = TraceTree.fold(nodes, count, levels, 0);
        if (hash != d.node) revert WrongHash(hash, d.node);
        _moved(id, d, Phase.PickNumber);
    }

    /// @inheritdoc ITrial
    function pickNumber(bytes32 id, uint256 index, uint256 slot, Opening calldata opening) external {
        Dispute storage d = _disputes[id];
        if (d.phase != Phase.PickNumber) revert WrongPhase(d.phase);
        _requireChallenger(d);
        (uint256 levels, uint256 count) = _numbers(d);
        if (index >= count) revert OutOfRange(index, count);
        if (opening.path.length != levels) revert WrongCount(opening.path.length, levels);
        bytes32 hash = TraceTree.climb(TraceTree.leafHashOfCalldata(opening.leaf), index, opening.path);
        if (hash != d.node) revert WrongHash(hash, d.node);

        d.spot.leaf = uint32((uint256(d.prefix) << NUMBER_LEVELS) + index);
        d.spot.slot = uint16(slot);
        (uint256 value, uint256 steps) = judge.claimOf(_site(d), d.inputTokens, opening.leaf);
        if (steps > STEPS_MAX) revert OutOfRange(steps, STEPS_MAX);
        if (steps == 0) {
            if (value == 0) revert NoFault();
            return _convictIn(id, d);
        }
        d.spot.low = 0;
        d.spot.high = uint24(steps);
        d.spot.before = 0;
        d.spot.afterwards = uint32(value);
        // A choice has no operands to state; any better token refutes it.
        if (Graph.kind(d.word) == Graph.CHOOSE) return _moved(id, d, Phase.Convict);
        _moved(id, d, steps == 1 ? Phase.RevealOperands : Phase.RevealSteps);
    }

    // ------------------------------------------------------------------ down the chain

    /// @inheritdoc ITrial
    function revealSteps(bytes32 id, bytes calldata values) external {
        Dispute storage d = _disputes[id];
        if (d.phase != Phase.RevealSteps) revert WrongPhase(d.phase);
        _requireProvider(d);
        (uint256 parts,) = _parts(d.spot);
        // The last part ends with what the number is said to be.
        if (values.length != 4 * (parts - 1)) revert WrongCount(values.length, 4 * (parts - 1));
        d.node = keccak256(values);
        _moved(id, d, Phase.PickStep);
    }

    /// @inheritdoc ITrial
    function pickStep(bytes32 id, uint256 part, bytes calldata values) external {
        Dispute storage d = _disputes[id];
        if (d.phase != Phase.PickStep) revert WrongPhase(d.phase);
        _requireChallenger(d);
        if (keccak256(values) != d.node) revert WrongHash(keccak256(values), d.node);
        Spot memory spot = d.spot;
        (uint256 parts, uint256 width) = _parts(spot);
        if (part >= parts) revert OutOfRange(part, parts);
        if (part != 0) spot.before = uint32(bytes4(values[4 * (part - 1):]));
        if (part + 1 != parts) {
            spot.afterwards = uint32(bytes4(values[4 * part:]));
            spot.high = uint24(spot.low + width * (part + 1));
        }
        spot.low = uint24(spot.low + width * part);
        d.spot = spot;
        _moved(id, d, spot.high - spot.low == 1 ? Phase.RevealOperands : Phase.RevealSteps);
    }

    /// @inheritdoc ITrial
    function revealOperands(bytes32 id, bytes calldata stated) external {
        Dispute storage d = _disputes[id];
        if (d.phase != Phase.RevealOperands) revert WrongPhase(d.phase);
        _requireProvider(d);
        uint256 length = judge.statedLength(_site(d), d.spot.low, stated);
        if (stated.length != length) revert WrongCount(stated.length, length);
        d.node = keccak256(stated);
        _moved(id, d, Phase.Convict);
    }

    // ------------------------------------------------------------------ judgement

    /// @inheritdoc ITrial
    function convictStep(bytes32 id, bytes calldata stated) external {
        Dispute storage d = _toConvict(id, stated);
        Spot memory spot = d.spot;
        uint256 value = judge.evaluate(_site(d), spot.low, spot.before, stated);
        // An overflow is as IEEE says; NaN is in no honest trace.
        if (value == spot.afterwards && !F32.isNan(value)) revert NoFault();
        _convictIn(id, d);
    }

    /// @inheritdoc ITrial
    function convictOperand(
        bytes32 id,
        bytes calldata stated,
        uint256 index,
        uint256 part,
        Opening calldata opening,
        Case calldata content
    ) external {
        Dispute storage d = _toConvict(id, stated);
        (Graph.Operand memory operand, uint256 at) = judge.operandOf(_site(d), d.spot.low, stated, index);
        bytes calldata claimed = stated[at:at + operand.length];

        bool same;
        if (operand.source == Graph.Source.Tokens) {
            Shown memory token_ = _shown[id];
            if (!token_.hasToken || token_.position != operand.position) revert NotShown();
            same = uint32(bytes4(claimed)) == token_.token;
        } else if (operand.source == Graph.Source.Trace) {
            _requireInTrace(d, operand.position, operand.op, operand.leaf, opening);
            same = keccak256(opening.leaf[operand.offset:operand.offset + operand.length]) == keccak256(claimed);
        } else {
            _requireCase(id, d, content);
            same = _sameInModel(operand, part, claimed, opening, content);
        }
        if (same) revert NoFault();
        _convictIn(id, d);
    }

    /// @inheritdoc ITrial
    function convictChoice(bytes32 id, uint256 better, Opening calldata ofChosen, Opening calldata ofBetter) external {
        Dispute storage d = _disputes[id];
        uint256 word = d.word;
        if (d.phase != Phase.Convict || Graph.kind(word) != Graph.CHOOSE) revert WrongPhase(d.phase);
        _requireChallenger(d);
        uint256 chosen = d.spot.afterwards;
        if (chosen < Graph.cols(word)) {
            if (!_shown[id].hasSampling) revert NotShown();
            if (!_shown[id].greedy) revert NotJudged();
            if (better >= Graph.cols(word)) revert OutOfRange(better, Graph.cols(word));
            uint256 logit = _orderOf(d, word, chosen, ofChosen);
            uint256 betterLogit = _orderOf(d, word, better, ofBetter);
            if (betterLogit < logit || (betterLogit == logit && better >= chosen)) revert NoFault();
        }
        _convictIn(id, d);
    }

    /// @inheritdoc ITrial
    function convictAnswer(
        bytes32 id,
        uint256 op,
        uint256 word,
        bytes32[] calldata wordPath,
        Opening calldata opening,
        Case calldata content
    ) external {
        Dispute storage d = _disputes[id];
        if (!_isOpen(d.phase) || d.root == 0) revert WrongPhase(d.phase);
        _requireChallenger(d);
        _requireWord(id, d, op, word, wordPath, content);
        if (Graph.kind(word) != Graph.CHOOSE) revert NotJudged();
        Shown memory token_ = _shown[id];
        if (!token_.hasToken || token_.position < d.inputTokens) revert NotShown();
        _requireInTrace(d, token_.position - 1, op, 0, opening);
        if (uint32(bytes4(opening.leaf)) == token_.token) revert NoFault();
        _convictIn(id, d);
    }

    /// @inheritdoc ITrial
    function showInput(bytes32 id, uint32 position, bytes calldata job, Case calldata content) external {
        _requireChallenger(_disputes[id]);
        _requireCase(id, _disputes[id], content);
        (uint256 token, bool greedy) = judge.inputToken(job, content.requestHash, position);
        _shown[id] = Shown(position, uint32(token), true, true, greedy);
    }

    /// @inheritdoc ITrial
    function showOutput(bytes32 id, uint32 position, bytes calldata response, Case calldata content) external {
        Dispute storage d = _disputes[id];
        _requireChallenger(d);
        _requireCase(id, d, content);
        if (position < d.inputTokens) revert OutOfRange(position, d.inputTokens);
        Shown storage s = _shown[id];
        uint256 token = judge.outputToken(response, content.responseHash, position - d.inputTokens);
        (s.position, s.token, s.hasToken) = (position, uint32(token), true);
    }

    // ------------------------------------------------------------------ ends

    /// @inheritdoc ITrial
    function concede(bytes32 id) external {
        Dispute storage d = _disputes[id];
        if (!_isOpen(d.phase)) revert WrongPhase(d.phase);
        if (_caller() == d.provider) return _convictIn(id, d);
        if (_caller() != d.challenger) revert NotYourMove(_caller());
        _acquit(id, d);
    }

    /// @inheritdoc ITrial
    function timeout(bytes32 id) external {
        Dispute storage d = _disputes[id];
        Phase phase = d.phase;
        if (!_isOpen(phase)) revert WrongPhase(phase);
        if (block.timestamp <= d.deadline) revert NotLate(d.deadline);
        if (uint8(phase) % 2 == 1) _convictIn(id, d);
        else _acquit(id, d);
    }

    /// @inheritdoc ITrial
    function punish(bytes32 id, Case calldata content) external {
        Dispute storage d = _disputes[id];
        if (d.phase != Phase.Guilty) revert WrongPhase(d.phase);
        _requireCase(id, d, content);
        (address provider, address challenger) = (d.provider, d.challenger);
        d.phase = Phase.Closed;
        emit Convicted(id, provider, challenger);
        court.convict(provider, content.requestHash, challenger, d.version, content.receiptHash);
    }

    /// @inheritdoc ITrial
    function advance(bytes32 id, State calldata state, bytes calldata ofChallenger, bytes calldata ofProvider)
        external
    {
        Dispute storage d = _disputes[id];
        if (!_isOpen(d.phase)) revert WrongPhase(d.phase);
        if (!_isOpen(state.phase)) revert WrongPhase(state.phase);
        if (state.turn <= d.turn || state.turn > MOVES_MAX) revert OldState(state.turn, d.turn);
        bytes32 digest = getStateDigest(id, state);
        if (ECDSA.recover(digest, ofChallenger) != d.challenger || ECDSA.recover(digest, ofProvider) != d.provider) {
            revert NotSigned();
        }
        d.deadline = _deadline();
        (d.turn, d.phase, d.remaining, d.prefix) = (state.turn, state.phase, state.remaining, state.prefix);
        (d.node, d.root, d.word, d.spot) = (state.node, state.root, state.word, state.spot);
        emit Moved(id);
    }

    /// @inheritdoc ITrial
    /// @dev The call goes to this very contract, which reads `_signer` meanwhile: that is what both writes are for.
    // slither-disable-start write-after-write,reentrancy-benign
    function relay(bytes calldata call, bytes calldata signature) external {
        // Every move has the dispute as its first argument.
        if (call.length < 36) revert NotSigned();
        bytes32 id = bytes32(call[4:]);
        Dispute storage d = _disputes[id];
        if (!_isOpen(d.phase)) revert WrongPhase(d.phase);
        _signer = ECDSA.recover(getMoveDigest(id, d.turn, call), signature);
        _delegate(call);
        _signer = address(0);
    }

    // slither-disable-end write-after-write,reentrancy-benign

    /// @inheritdoc ITrial
    function batch(bytes[] calldata calls) external {
        for (uint256 i = 0; i < calls.length; ++i) {
            _delegate(calls[i]);
        }
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc ITrial
    function dispute(bytes32 id) external view returns (Dispute memory) {
        return _disputes[id];
    }

    /// @inheritdoc ITrial
    function shown(bytes32 id) external view returns (Shown memory) {
        return _shown[id];
    }

    /// @inheritdoc ITrial
    function getStateDigest(bytes32 id, State calldata state) public view returns (bytes32) {
        bytes32 hash = keccak256(abi.encode(STATE_TYPEHASH, id, keccak256(abi.encode(state))));
        return MessageHashUtils.toTypedDataHash(DOMAIN, hash);
    }

    /// @inheritdoc ITrial
    function getMoveDigest(bytes32 id, uint16 turn, bytes calldata call) public view returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(DOMAIN, keccak256(abi.encode(MOVE_TYPEHASH, id, turn, keccak256(call))));
    }

    // ------------------------------------------------------------------ private

    function _delegate(bytes calldata call) private {
        // slither-disable-next-line low-level-calls,calls-loop (to itself; the caller pays for its own batch)
        (bool ok, bytes memory reason) = address(this).delegatecall(call);
        if (!ok) {
            assembly ("memory-safe") {
                revert(add(reason, 32), mload(reason))
            }
        }
    }

    function _isOpen(Phase phase) private pure returns (bool) {
        return phase != Phase.None && phase < Phase.Guilty;
    }

    function _caller() private view returns (address) {
        return _signer == address(0) ? msg.sender : _signer;
    }

    function _requireProvider(Dispute storage d) private view {
        if (_caller() != d.provider) revert NotYourMove(_caller());
        if (block.timestamp > d.deadline) revert TooLate(d.deadline);
    }

    function _requireChallenger(Dispute storage d) private view {
        if (_caller() != d.challenger) revert NotYourMove(_caller());
        if (block.timestamp > d.deadline) revert TooLate(d.deadline);
    }

    function _requireCase(bytes32 id, Dispute storage d, Case calldata content) private view {
        if (keccak256(abi.encode(d.challenger, content)) != id) revert NotTheCase();
    }

    /// @dev Operation number `op` of the case's graph is `word`.
    function _requireWord(
        bytes32 id,
        Dispute storage d,
        uint256 op,
        uint256 word,
        bytes32[] calldata path,
        Case calldata content
    ) private view {
        _requireCase(id, d, content);
        if (op >= content.ops) revert OutOfRange(op, content.ops);
        uint256 height = TraceTree.heightOf(content.ops);
        if (path.length != height) revert WrongCount(path.length, height);
        bytes32 hash = TraceTree.climb(TraceTree.leafHash(abi.encode(word)), op, path);
        if (hash != content.opsRoot) revert WrongHash(hash, content.opsRoot);
    }

    /// @dev Of the node where the descent stands: levels of the next reveal, how many nodes there are in use, and
    /// their height in their tree.
    function _below(Dispute storage d, Phase phase)
        private
        view
        returns (uint256 levels, uint256 count, uint256 height)
    {
        unchecked {
            (uint256 remaining, uint256 prefix) = (d.remaining, d.prefix);
            levels = remaining < LEVELS ? remaining : LEVELS;
            height = remaining - levels;
            uint256 total = d.positions;
            if (phase == Phase.RevealOps || phase == Phase.PickOp) total = d.ops;
            if (phase == Phase.RevealLeaves || phase == Phase.PickLeaf) {
                total = d.spot.leaves;
                height += NUMBER_LEVELS;
            }
            uint256 inUse = (total + (1 << height) - 1) >> height;
            uint256 first = prefix << levels;
            count = inUse - first < 1 << levels ? inUse - first : 1 << levels;
        }
    }

    function _pick(Dispute storage d, Phase phase, uint256 index, bytes32 child, bytes32[] calldata path)
        private
        view
        returns (uint256 remaining, uint256 prefix)
    {
        (uint256 levels, uint256 count,) = _below(d, phase);
        if (index >= count) revert OutOfRange(index, count);
        if (path.length != levels) revert WrongCount(path.length, levels);
        bytes32 hash = TraceTree.climb(child, index, path);
        if (hash != d.node) revert WrongHash(hash, d.node);
        return (d.remaining - levels, (uint256(d.prefix) << levels) + index);
    }

    /// @dev Levels and leaves below the node whose numbers are revealed.
    function _numbers(Dispute storage d) private view returns (uint256 levels, uint256 count) {
        uint256 leaves = d.spot.leaves;
        levels = TraceTree.heightOf(leaves);
        if (levels > NUMBER_LEVELS) levels = NUMBER_LEVELS;
        count = leaves - (uint256(d.prefix) << NUMBER_LEVELS);
        if (count > 1 << levels) count = 1 << levels;
    }

    /// @dev Into how many parts of how many steps the chain is cut; the last may be shorter.
    function _parts(Spot memory spot) private pure returns (uint256 parts, uint256 width) {
        uint256 steps = spot.high - spot.low;
        width = (steps + PARTS - 1) / PARTS;
        parts = (steps + width - 1) / width;
    }

    function _site(Dispute storage d) private view returns (Graph.Site memory) {
        Spot memory spot = d.spot;
        return Graph.Site(d.word, spot.op, spot.position, spot.leaf, spot.slot);
    }

    function _toConvict(bytes32 id, bytes calldata stated) private view returns (Dispute storage d) {
        d = _disputes[id];
        if (d.phase != Phase.Convict) revert WrongPhase(d.phase);
        _requireChallenger(d);
        if (keccak256(stated) != d.node) revert WrongHash(keccak256(stated), d.node);
    }

    /// @dev The opened leaf is what the provider's trace has there. How many leaves the operation has does not matter:
    /// leaves and nodes are hashed differently, so a path of another length leads nowhere.
    function _requireInTrace(Dispute storage d, uint256 position, uint256 op, uint256 leaf, Opening calldata opening)
        private
        view
    {
        uint256 above = TraceTree.heightOf(d.ops) + TraceTree.heightOf(d.positions);
        if (opening.path.length < above) revert WrongCount(opening.path.length, above);
        uint256 within = opening.path.length - above;
        if (leaf >> within != 0) revert OutOfRange(leaf, 1 << within);
        uint256 index = (((position << TraceTree.heightOf(d.ops)) + op) << within) + leaf;
        bytes32 hash = TraceTree.climb(TraceTree.leafHashOfCalldata(opening.leaf), index, opening.path);
        if (hash != d.root) revert WrongHash(hash, d.root);
    }

    /// @dev Whether the claimed bytes agree with a leaf of the model, as far as it has any of them.
    function _sameInModel(
        Graph.Operand memory operand,
        uint256 part,
        bytes calldata claimed,
        Opening calldata opening,
        Case calldata content
    ) private pure returns (bool) {
        uint256 start = (operand.offset / 1024 + part) * 1024;
        uint256 end = start + opening.leaf.length;
        uint256 index = operand.leaf + start / 1024;
        bytes32 hash = TraceTree.leafHashOfCalldata(opening.leaf);
        bool rotation = operand.source == Graph.Source.Rotation;
        (bytes32 root, uint256 leaves) =
            rotation ? (content.rotationRoot, content.rotationLeaves) : (content.weightsRoot, content.weightLeaves);
        bytes32 found = TraceTree.rootOfModel(hash, index, leaves, opening.path);
        if (found != root) revert WrongHash(found, root);

        uint256 low = operand.offset > start ? operand.offset : start;
        uint256 high = operand.offset + operand.length < end ? operand.offset + operand.length : end;
        if (low >= high) revert OutOfRange(part, operand.length);
        return keccak256(opening.leaf[low - start:high - start])
            == keccak256(claimed[low - operand.offset:high - operand.offset]);
    }

    /// @dev A logit of the trace as an integer with the order of IEEE totalOrder.
    function _orderOf(Dispute storage d, uint256 word, uint256 token_, Opening calldata opening)
        private
        view
        returns (uint256)
    {
        _requireInTrace(d, d.spot.position, Graph.a(word), token_ / 32, opening);
        uint256 logit = uint32(bytes4(opening.leaf[4 * (token_ % 32):]));
        return logit & F32.SIGN == 0 ? logit | F32.SIGN : logit ^ 0xffffffff;
    }

    function _deadline() private view returns (uint32) {
        // Good until 2106.
        return uint32(block.timestamp) + moveWindow;
    }

    function _moved(bytes32 id, Dispute storage d, Phase phase) private {
        d.deadline = _deadline();
        d.turn += 1;
        d.phase = phase;
        emit Moved(id);
    }

    function _convictIn(bytes32 id, Dispute storage d) private {
        d.phase = Phase.Guilty;
        emit Moved(id);
    }

    function _acquit(bytes32 id, Dispute storage d) private {
        d.phase = Phase.Closed;
        emit Acquitted(id, d.provider, d.challenger);
        court.acquit(d.provider, d.version);
    }
}
// forge-lint: disable-end(unsafe-typecast, incorrect-shift)
