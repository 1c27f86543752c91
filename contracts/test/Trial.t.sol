// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Graph} from "../src/Graph.sol";
import {Preimages} from "../src/Preimages.sol";
import {ReceiptLib} from "../src/ReceiptLib.sol";
import {ICourt} from "../src/interfaces/ICourt.sol";
import {IJudge} from "../src/interfaces/IJudge.sol";
import {ITrial} from "../src/interfaces/ITrial.sol";
import {DisputePlayers} from "./DisputePlayers.sol";

/// @notice What the trial refuses, move by move, and how a dispute ends without a conviction by arithmetic.
contract TrialTest is DisputePlayers {
    uint256 private constant LOGITS = 32;
    uint256 private constant CHOOSE = 33;
    /// @dev A product of 256 columns in Q8_0: a chain of 8 steps.
    uint256 private constant PRODUCT = 8;

    bytes32 private id;
    Lie private lie;

    function setUp() public override {
        super.setUp();
        _jobShown = _jobOf(0);
        id = _challenge(_jobShown, _answer());
        lie = Lie(1, PRODUCT, 0, 5, 1, 3, 0);
    }

    function _at(ITrial.Phase phase) private returns (ITrial.Dispute memory) {
        return _playUntil(id, lie, phase);
    }

    function _wrongPhase(ITrial.Phase phase) private {
        vm.expectRevert(abi.encodeWithSelector(ITrial.WrongPhase.selector, phase));
    }

    function _wrongCount(uint256 found, uint256 expected) private {
        vm.expectRevert(abi.encodeWithSelector(ITrial.WrongCount.selector, found, expected));
    }

    function _outOfRange(uint256 index, uint256 count) private {
        vm.expectRevert(abi.encodeWithSelector(ITrial.OutOfRange.selector, index, count));
    }

    function _notYours(address who) private {
        vm.expectRevert(abi.encodeWithSelector(ITrial.NotYourMove.selector, who));
    }

    function _offence() private view returns (bytes32) {
        return court.offenceOf(provider, content.requestHash);
    }

    function _punish(bytes32 dispute) private {
        vm.assertTrue(trial.dispute(dispute).phase == ITrial.Phase.Guilty, "guilty");
        trial.punish(dispute, content);
        vm.assertTrue(court.convicted(_offence()), "convicted");
        vm.assertTrue(trial.dispute(dispute).phase == ITrial.Phase.Closed, "closed");
    }

    // ------------------------------------------------------------------ opening

    function deployTrial(address judge_, address court_) external {
        bytes memory code = bytes.concat(vm.getCode("Trial.sol:Trial"), abi.encode(judge_, court_));
        assembly ("memory-safe") {
            let at := create(0, add(code, 32), mload(code))
            if iszero(at) {
                returndatacopy(0, 0, returndatasize())
                revert(0, returndatasize())
            }
        }
    }

    function test_revert_constructor() public {
        vm.expectRevert(abi.encodeWithSelector(ITrial.BadParameter.selector, "judge"));
        this.deployTrial(address(0x1234), address(court));
        vm.expectRevert(abi.encodeWithSelector(ITrial.BadParameter.selector, "court"));
        this.deployTrial(address(judge), address(court));
    }

    function test_challengeIsRecorded() public view {
        ITrial.Dispute memory d = trial.dispute(id);
        vm.assertEq(d.challenger, challenger, "challenger");
        vm.assertEq(d.provider, provider, "provider");
        vm.assertEq(d.deadline, START + WINDOW, "deadline");
        vm.assertEq(d.turn, 1, "turn");
        vm.assertTrue(d.phase == ITrial.Phase.RevealPositions, "phase");
        vm.assertEq(d.positions, positions, "positions");
        vm.assertEq(d.inputTokens, input, "input");
        vm.assertEq(id, keccak256(abi.encode(challenger, content)), "case");
        vm.assertEq(token.balanceOf(address(court)), BOND, "bond");
    }

    function test_revert_challenge() public {
        ReceiptLib.Receipt memory receipt = _receiptOf(_jobShown, _answer());
        bytes memory signature = _signed(receipt);
        vm.expectRevert(abi.encodeWithSelector(ITrial.AlreadyChallenged.selector, id));
        vm.prank(challenger);
        trial.challenge(receipt, signature, manifest, content);

        uint64[2][3] memory counts = [[uint64(0), 2], [uint64(3), 0], [uint64(1 << 20), 1]];
        for (uint256 i = 0; i < 3; ++i) {
            (receipt.promptTokens, receipt.outputTokens) = (counts[i][0], counts[i][1]);
            signature = _signed(receipt);
            vm.expectRevert(abi.encodeWithSelector(ITrial.NoTrace.selector, counts[i][0], counts[i][1]));
            trial.challenge(receipt, signature, manifest, content);
        }
        receipt = _receiptOf(_jobShown, _answer());
        receipt.issuedAt += 1;
        signature = _signed(receipt);
        vm.expectRevert(abi.encodeWithSelector(Preimages.NotThePreimage.selector, modelId));
        trial.challenge(receipt, signature, bytes.concat(manifest, hex"00"), content);

        content.receiptHash = ReceiptLib.structHash(receipt);
        ITrial.Case memory other = content;
        for (uint256 i = 0; i < 9; ++i) {
            other = content;
            if (i == 8) other.receiptHash ^= bytes32(uint256(1));
            if (i == 0) other.requestHash ^= bytes32(uint256(1));
            if (i == 1) other.responseHash ^= bytes32(uint256(1));
            if (i == 2) other.weightsRoot ^= bytes32(uint256(1));
            if (i == 3) other.rotationRoot ^= bytes32(uint256(1));
            if (i == 4) other.opsRoot ^= bytes32(uint256(1));
            if (i == 5) other.ops += 1;
            if (i == 6) other.weightLeaves += 1;
            if (i == 7) other.rotationLeaves += 1;
            vm.expectRevert(ITrial.NotTheCase.selector);
            trial.challenge(receipt, signature, manifest, other);
        }

        bytes memory old = bytes.concat("assay/manifest/1", _slice(manifest, 16, manifest.length - 16));
        receipt.modelId = keccak256(old);
        signature = _signed(receipt);
        vm.expectRevert(Preimages.UnknownFormat.selector);
        trial.challenge(receipt, signature, old, content);
        old = _slice(manifest, 0, 100);
        receipt.modelId = keccak256(old);
        signature = _signed(receipt);
        vm.expectRevert(Preimages.UnknownFormat.selector);
        trial.challenge(receipt, signature, old, content);
    }

    function test_revert_challengeOfWhatTheCourtRefuses() public {
        ReceiptLib.Receipt memory receipt = _receiptOf(_jobShown, _answer());
        bytes memory signature = _sign(CHALLENGER_KEY, ReceiptLib.digest(receipt, court.receiptDomain()));
        vm.expectRevert(abi.encodeWithSelector(ICourt.NothingAtStake.selector, challenger));
        trial.challenge(receipt, signature, manifest, content);
        vm.prank(provider);
        trial.concede(id);
        _punish(id);
        receipt.issuedAt += 1;
        content.receiptHash = ReceiptLib.structHash(receipt);
        signature = _signed(receipt);
        vm.expectRevert(abi.encodeWithSelector(ICourt.AlreadyConvicted.selector, _offence()));
        vm.prank(challenger);
        trial.challenge(receipt, signature, manifest, content);
    }

    // ------------------------------------------------------------------ down the tree

    function test_revert_reveal() public {
        ITrial.Dispute memory d = trial.dispute(id);
        bytes32[] memory children = _children(d, lie);
        _notYours(challenger);
        vm.prank(challenger);
        trial.reveal(id, children);
        vm.prank(provider);
        _wrongCount(5, 4);
        trial.reveal(id, new bytes32[](5));
        vm.warp(START + WINDOW + 1);
        vm.prank(provider);
        vm.expectRevert(abi.encodeWithSelector(ITrial.TooLate.selector, d.deadline));
        trial.reveal(id, children);
        vm.warp(START);
        d = _at(ITrial.Phase.PickPosition);
        vm.prank(provider);
        _wrongPhase(ITrial.Phase.PickPosition);
        trial.reveal(id, children);
        d = _at(ITrial.Phase.RevealOps);
        children = _children(d, lie);
        children[0] ^= bytes32(uint256(1));
        vm.prank(provider);
        (bool ok, bytes memory reason) = address(trial).call(abi.encodeCall(trial.reveal, (id, children)));
        vm.assertTrue(!ok && bytes4(reason) == ITrial.WrongHash.selector, "children of another node");
    }

    function test_revert_pick() public {
        bytes32[] memory path = new bytes32[](2);
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.pick(id, 0, 0, path);
        ITrial.Dispute memory d = _at(ITrial.Phase.PickPosition);
        _notYours(provider);
        vm.prank(provider);
        trial.pick(id, 0, 0, path);
        vm.prank(challenger);
        _outOfRange(4, 4);
        trial.pick(id, 4, 0, path);
        vm.prank(challenger);
        _wrongCount(1, 2);
        trial.pick(id, 0, 0, new bytes32[](1));
        vm.prank(challenger);
        (bool ok, bytes memory reason) =
            address(trial).call(abi.encodeCall(trial.pick, (id, 0, bytes32(uint256(1)), path)));
        vm.assertTrue(!ok && bytes4(reason) == ITrial.WrongHash.selector, "a child that is none");
        vm.warp(START + WINDOW + 1);
        vm.prank(challenger);
        vm.expectRevert(abi.encodeWithSelector(ITrial.TooLate.selector, d.deadline));
        trial.pick(id, 0, 0, path);
    }

    /// @dev At the last reveal of the operations' tree: operation `op` with its way.
    function _lastOps(uint256 op)
        private
        returns (ITrial.Dispute memory d, uint256 i, bytes32 child, bytes32[] memory path)
    {
        lie.flip = 0;
        for (d = trial.dispute(id);; d = trial.dispute(id)) {
            if (uint8(d.phase) % 2 == 1) _provide(id, d, lie);
            else if (d.phase == ITrial.Phase.PickPosition) _pickAt(id, d, lie, lie.position);
            else if (d.remaining > 5) _pickAt(id, d, lie, op >> (d.remaining - 5));
            else break;
        }
        (bytes32[] memory base, uint256 height, uint256 levels, uint256 first,) = _level(d, lie);
        i = op - first;
        (child, path) = (_node(base, height, op), _path(base, height, height + levels, op));
    }

    function test_revert_pickOp() public {
        bytes32[] memory none;
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.pickOp(id, 0, 0, none, 0, none, content);
        lie.flip = 0;
        ITrial.Dispute memory d = _at(ITrial.Phase.PickOp);
        // There are two rounds among the operations: the first is not the last.
        bytes32 child = _children(d, lie)[0];
        (bytes32[] memory base, uint256 height, uint256 levels,,) = _level(d, lie);
        bytes32[] memory path = _path(base, height, height + levels, 0);
        vm.prank(challenger);
        _wrongPhase(ITrial.Phase.PickOp);
        trial.pickOp(id, 0, child, path, 0, none, content);

        uint256 i;
        (d, i, child, path) = _lastOps(PRODUCT);
        bytes32[] memory wordPath = _wordPath(PRODUCT);
        vm.prank(challenger);
        _wrongPhase(ITrial.Phase.PickOp);
        trial.pick(id, i, child, path);
        _notYours(provider);
        vm.prank(provider);
        trial.pickOp(id, i, child, path, words[PRODUCT], wordPath, content);
        ITrial.Case memory other = content;
        other.opsRoot = 0;
        vm.prank(challenger);
        vm.expectRevert(ITrial.NotTheCase.selector);
        trial.pickOp(id, i, child, path, words[PRODUCT], wordPath, other);
        vm.prank(challenger);
        _wrongCount(0, 6);
        trial.pickOp(id, i, child, path, words[PRODUCT], none, content);
        vm.prank(challenger);
        bytes memory call = abi.encodeCall(trial.pickOp, (id, i, child, path, words[PRODUCT] + 1, wordPath, content));
        (bool ok, bytes memory reason) = address(trial).call(call);
        vm.assertTrue(!ok && bytes4(reason) == ITrial.WrongHash.selector, "another operation");
    }

    function test_revert_anOperationThatIsRightlyAbsent() public {
        (, uint256 i, bytes32 child, bytes32[] memory path) = _lastOps(LOGITS);
        vm.assertEq(child, bytes32(0), "no logits of a prompt's token");
        bytes32[] memory wordPath = _wordPath(LOGITS);
        vm.prank(challenger);
        vm.expectRevert(ITrial.NoFault.selector);
        trial.pickOp(id, i, child, path, words[LOGITS], wordPath, content);
    }

    function test_revert_numbers() public {
        bytes memory numbers;
        ITrial.Opening memory opening;
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.revealNumbers(id, numbers);
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.pickNumber(id, 0, 0, opening);
        ITrial.Dispute memory d = _at(ITrial.Phase.RevealNumbers);
        numbers = _numbers(d, lie);
        _notYours(challenger);
        vm.prank(challenger);
        trial.revealNumbers(id, numbers);
        vm.prank(provider);
        _wrongCount(0, numbers.length);
        trial.revealNumbers(id, "");
        numbers[0] ^= 0x01;
        vm.prank(provider);
        (bool ok, bytes memory reason) = address(trial).call(abi.encodeCall(trial.revealNumbers, (id, numbers)));
        vm.assertTrue(!ok && bytes4(reason) == ITrial.WrongHash.selector, "other numbers");

        d = _at(ITrial.Phase.PickNumber);
        opening.leaf = _leaves(1, PRODUCT, lie)[0];
        _notYours(provider);
        vm.prank(provider);
        trial.pickNumber(id, 0, 5, opening);
        vm.prank(challenger);
        _outOfRange(1, 1);
        trial.pickNumber(id, 1, 5, opening);
        vm.prank(challenger);
        vm.expectRevert(abi.encodeWithSelector(IJudge.NoSuchSlot.selector, 32));
        trial.pickNumber(id, 0, 32, opening);
        // The matrix has 16 rows; what is behind them is zero, as it must be.
        vm.prank(challenger);
        vm.expectRevert(ITrial.NoFault.selector);
        trial.pickNumber(id, 0, 16, opening);
        opening.path = new bytes32[](1);
        vm.prank(challenger);
        _wrongCount(1, 0);
        trial.pickNumber(id, 0, 5, opening);
        opening.path = new bytes32[](0);
        opening.leaf[0] ^= 0x01;
        vm.prank(challenger);
        (ok, reason) = address(trial).call(abi.encodeCall(trial.pickNumber, (id, 0, 5, opening)));
        vm.assertTrue(!ok && bytes4(reason) == ITrial.WrongHash.selector, "another leaf");
    }

    // ------------------------------------------------------------------ down the chain

    function test_revert_steps() public {
        bytes memory values;
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.revealSteps(id, values);
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.pickStep(id, 0, values);
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.revealOperands(id, values);
        ITrial.Dispute memory d = _at(ITrial.Phase.RevealSteps);
        values = _steps(d, lie);
        vm.assertEq(values.length, 28, "seven of eight steps");
        _notYours(challenger);
        vm.prank(challenger);
        trial.revealSteps(id, values);
        vm.prank(provider);
        _wrongCount(27, 28);
        trial.revealSteps(id, _slice(values, 0, 27));

        _at(ITrial.Phase.PickStep);
        _notYours(provider);
        vm.prank(provider);
        trial.pickStep(id, 3, values);
        vm.prank(challenger);
        _outOfRange(8, 8);
        trial.pickStep(id, 8, values);
        bytes memory other = bytes.concat(values, hex"00");
        vm.prank(challenger);
        vm.expectRevert(abi.encodeWithSelector(ITrial.WrongHash.selector, keccak256(other), keccak256(values)));
        trial.pickStep(id, 3, other);

        d = _at(ITrial.Phase.RevealOperands);
        vm.assertEq(d.spot.low, 3, "the step from which the chain is wrong");
        vm.assertEq(d.spot.high, 4, "one step");
        bytes memory stated = _stated(d, lie);
        _notYours(challenger);
        vm.prank(challenger);
        trial.revealOperands(id, stated);
        vm.prank(provider);
        _wrongCount(69, 70);
        trial.revealOperands(id, _slice(stated, 0, 69));
    }

    // ------------------------------------------------------------------ judgement

    function test_revert_convict() public {
        bytes memory stated;
        ITrial.Opening memory opening;
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.convictStep(id, stated);
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.convictOperand(id, stated, 0, 0, opening, content);
        ITrial.Dispute memory d = _at(ITrial.Phase.Convict);
        stated = _stated(d, lie);
        _notYours(provider);
        vm.prank(provider);
        trial.convictStep(id, stated);
        bytes memory other = bytes.concat(stated, hex"00");
        vm.expectRevert(abi.encodeWithSelector(ITrial.WrongHash.selector, keccak256(other), keccak256(stated)));
        vm.prank(challenger);
        trial.convictStep(id, other);
        vm.expectRevert(abi.encodeWithSelector(IJudge.NoSuchOperand.selector, 2));
        vm.prank(challenger);
        trial.convictOperand(id, stated, 2, 0, opening, content);

        // The weights are right, and so are the activations.
        (Graph.Operand memory o,) = judge.operandOf(_siteOf(d), d.spot.low, stated, 0);
        bytes[] memory weights = builder.weights();
        opening.leaf = weights[o.leaf + o.offset / 1024];
        (, opening.path) = _modelTree(weights, o.leaf + o.offset / 1024);
        vm.expectRevert(ITrial.NoFault.selector);
        vm.prank(challenger);
        trial.convictOperand(id, stated, 0, 0, opening, content);
        ITrial.Case memory else_ = content;
        else_.weightsRoot = 0;
        vm.expectRevert(ITrial.NotTheCase.selector);
        vm.prank(challenger);
        trial.convictOperand(id, stated, 0, 0, opening, else_);
        _expectWrongHash(stated, 0, 1, opening);
        (o,) = judge.operandOf(_siteOf(d), d.spot.low, stated, 1);
        _expectWrongHash(stated, 1, 0, _open(o.position, o.op, o.leaf + 1, lie));
        opening = _open(o.position, o.op, o.leaf, lie);
        vm.expectRevert(ITrial.NoFault.selector);
        vm.prank(challenger);
        trial.convictOperand(id, stated, 1, 0, opening, content);
        opening.path = new bytes32[](7);
        _wrongCount(7, 8);
        vm.prank(challenger);
        trial.convictOperand(id, stated, 1, 0, opening, content);
        opening.path = new bytes32[](8);
        _outOfRange(3, 1);
        vm.prank(challenger);
        trial.convictOperand(id, stated, 1, 0, opening, content);
    }

    /// @dev To Convict with a number of one step that is claimed to be `value`, as the judge says, too.
    function _claimed(uint256 value) private returns (bytes memory stated) {
        _at(ITrial.Phase.PickNumber);
        bytes memory none;
        vm.mockCall(address(judge), bytes.concat(IJudge.claimOf.selector, none), abi.encode(value, uint256(1)));
        vm.mockCall(address(judge), bytes.concat(IJudge.evaluate.selector, none), abi.encode(value));
        return _stated(_at(ITrial.Phase.Convict), lie);
    }

    function test_revert_aRightOverflowIsNoFault() public {
        bytes memory stated = _claimed(0x7f800000);
        vm.expectRevert(ITrial.NoFault.selector);
        vm.prank(challenger);
        trial.convictStep(id, stated);
    }

    function test_whatIsNoNumberIsConvicted() public {
        bytes memory stated = _claimed(0x7fc00000);
        vm.prank(challenger);
        trial.convictStep(id, stated);
        _punish(id);
    }

    function _expectWrongHash(bytes memory stated, uint256 i, uint256 part, ITrial.Opening memory opening) private {
        bytes memory call = abi.encodeCall(trial.convictOperand, (id, stated, i, part, opening, content));
        vm.prank(challenger);
        (bool ok, bytes memory reason) = address(trial).call(call);
        vm.assertTrue(!ok && bytes4(reason) == ITrial.WrongHash.selector, "a leaf from elsewhere");
    }

    /// @dev A leaf of the model that the operand does not reach.
    function test_revert_aPartThatTheOperandDoesNotReach() public {
        ITrial.Dispute memory d = _at(ITrial.Phase.Convict);
        bytes memory stated = _stated(d, lie);
        (Graph.Operand memory o,) = judge.operandOf(_siteOf(d), d.spot.low, stated, 0);
        vm.assertTrue(o.offset % 1024 + o.length <= 1024, "within one leaf");
        bytes[] memory weights = builder.weights();
        ITrial.Opening memory opening;
        opening.leaf = weights[o.leaf + o.offset / 1024 + 1];
        (, opening.path) = _modelTree(weights, o.leaf + o.offset / 1024 + 1);
        vm.prank(challenger);
        _outOfRange(1, 34);
        trial.convictOperand(id, stated, 0, 1, opening, content);
    }

    function test_revert_tokenThatWasNotShown() public {
        lie = Lie(1, 0, 0, 0, 1, 0, 4);
        ITrial.Dispute memory d = _at(ITrial.Phase.Convict);
        bytes memory stated = _stated(d, lie);
        ITrial.Opening memory opening;
        vm.prank(challenger);
        vm.expectRevert(ITrial.NotShown.selector);
        trial.convictOperand(id, stated, 0, 0, opening, content);
        _show(id, 2);
        vm.prank(challenger);
        vm.expectRevert(ITrial.NotShown.selector);
        trial.convictOperand(id, stated, 0, 0, opening, content);
        _show(id, 1);
        vm.prank(challenger);
        trial.convictOperand(id, stated, 0, 0, opening, content);
        _punish(id);
    }

    function test_revert_choice() public {
        lie = Lie(3, CHOOSE, 0, 0, 1, 0, 0);
        ITrial.Opening memory opening;
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.convictChoice(id, 0, opening, opening);
        ITrial.Dispute memory d = _at(ITrial.Phase.Convict);
        _notYours(provider);
        vm.prank(provider);
        trial.convictChoice(id, 0, opening, opening);
        vm.prank(challenger);
        vm.expectRevert(ITrial.NotShown.selector);
        trial.convictChoice(id, 0, opening, opening);
        _show(id, 0);
        vm.prank(challenger);
        _outOfRange(40, 40);
        trial.convictChoice(id, 40, opening, opening);
        uint256 chosen = d.spot.afterwards;
        opening = _open(3, LOGITS, chosen / 32, lie);
        vm.prank(challenger);
        vm.expectRevert(ITrial.NoFault.selector);
        trial.convictChoice(id, chosen, opening, opening);
        bytes memory none;
        vm.prank(challenger);
        vm.expectRevert(abi.encodeWithSelector(IJudge.NotJudged.selector, Graph.CHOOSE));
        judge.evaluate(_siteOf(d), 0, 0, none);
    }

    /// @dev A provider that claims a token outside the vocabulary needs no better one.
    function test_choiceOfNoToken() public {
        lie = Lie(3, CHOOSE, 0, 0, 1 << 20, 0, 0);
        _at(ITrial.Phase.Convict);
        ITrial.Opening memory none;
        vm.prank(challenger);
        trial.convictChoice(id, 0, none, none);
        _punish(id);
    }

    function test_revert_choiceByChance() public {
        _jobShown = _job(modelId, tokens, input, 0, 700_000, bytes32(uint256(1)));
        id = _challenge(_jobShown, _answer());
        lie = Lie(3, CHOOSE, 0, 0, 1, 0, 0);
        _at(ITrial.Phase.Convict);
        _show(id, 0);
        ITrial.Opening memory none;
        vm.prank(challenger);
        vm.expectRevert(ITrial.NotJudged.selector);
        trial.convictChoice(id, 0, none, none);
    }

    /// @dev Of what follows the bound on tokens: which fields may differ from a plain greedy job's.
    function test_onlyAPlainGreedyJobIsJudged() public view {
        uint256 at = 47 + 4 * input + 4 + 4;
        uint256[10] memory fields = [uint256(0), 4, 8, 12, 16, 20, 24, 28, 36, 37];
        bool[10] memory judged = [false, true, true, true, false, false, false, true, false, false];
        for (uint256 i = 0; i < fields.length; ++i) {
            bytes memory job = _jobOf(0);
            job[at + fields[i] + 3] ^= 0x01;
            (, bool greedy) = judge.inputToken(job, keccak256(job), 0);
            vm.assertTrue(greedy == judged[i], vm.toString(fields[i]));
        }
        // By chance, but among one token.
        bytes memory one = _jobOf(0);
        (one[at + 3], one[at + 11]) = (0x01, 0x01);
        (, bool first) = judge.inputToken(one, keccak256(one), 0);
        vm.assertTrue(first, "top-k 1");
    }

    // ------------------------------------------------------------------ the answer

    function test_anAnswerThatIsNotTheTraceIsConvicted() public {
        uint32[] memory other = tokens;
        other[input + 1] ^= 1;
        bytes memory response = _response(other, input, 2);
        _jobShown = _jobOf(bytes32(uint256(1)));
        id = _challenge(_jobShown, response);
        lie.flip = 0;
        ITrial.Opening memory opening = _open(3, CHOOSE, 0, lie);
        bytes32[] memory wordPath = _wordPath(CHOOSE);
        _wrongPhase(ITrial.Phase.RevealPositions);
        vm.prank(challenger);
        trial.convictAnswer(id, CHOOSE, words[CHOOSE], wordPath, opening, content);
        _at(ITrial.Phase.PickPosition);
        _notYours(provider);
        vm.prank(provider);
        trial.convictAnswer(id, CHOOSE, words[CHOOSE], wordPath, opening, content);
        vm.prank(challenger);
        vm.expectRevert(ITrial.NotShown.selector);
        trial.convictAnswer(id, CHOOSE, words[CHOOSE], wordPath, opening, content);
        _show(id, 0);
        vm.prank(challenger);
        vm.expectRevert(ITrial.NotShown.selector);
        trial.convictAnswer(id, CHOOSE, words[CHOOSE], wordPath, opening, content);
        vm.prank(challenger);
        _outOfRange(34, 34);
        trial.convictAnswer(id, 34, words[CHOOSE], wordPath, opening, content);
        bytes32[] memory otherPath = _wordPath(LOGITS);
        vm.prank(challenger);
        vm.expectRevert(ITrial.NotJudged.selector);
        trial.convictAnswer(id, LOGITS, words[LOGITS], otherPath, opening, content);

        vm.prank(challenger);
        trial.showOutput(id, uint32(input), response, content);
        ITrial.Opening memory first = _open(2, CHOOSE, 0, lie);
        vm.prank(challenger);
        vm.expectRevert(ITrial.NoFault.selector);
        trial.convictAnswer(id, CHOOSE, words[CHOOSE], wordPath, first, content);
        vm.prank(challenger);
        trial.showOutput(id, uint32(input + 1), response, content);
        vm.prank(challenger);
        trial.convictAnswer(id, CHOOSE, words[CHOOSE], wordPath, opening, content);
        _punish(id);
        _wrongPhase(ITrial.Phase.Closed);
        vm.prank(challenger);
        trial.convictAnswer(id, CHOOSE, words[CHOOSE], wordPath, opening, content);
    }

    function test_tokensAreReadFromPromptPrefixAndAnswer() public {
        for (uint32 p = 0; p < tokens.length; ++p) {
            _show(id, p);
            ITrial.Shown memory s = trial.shown(id);
            vm.assertEq(s.token, tokens[p], "token");
            vm.assertEq(s.position, p, "position");
            vm.assertTrue(s.hasToken && s.hasSampling && s.greedy, "known");
        }
    }

    function test_revert_show() public {
        bytes memory answer = _answer();
        _notYours(provider);
        vm.prank(provider);
        trial.showInput(id, 0, _jobShown, content);
        _notYours(provider);
        vm.prank(provider);
        trial.showOutput(id, 3, answer, content);
        vm.prank(challenger);
        vm.expectRevert(abi.encodeWithSelector(Preimages.NoSuchToken.selector, 3));
        trial.showInput(id, 3, _jobShown, content);
        vm.prank(challenger);
        vm.expectRevert(abi.encodeWithSelector(Preimages.NoSuchToken.selector, 2));
        trial.showOutput(id, 5, answer, content);
        vm.prank(challenger);
        _outOfRange(2, 3);
        trial.showOutput(id, 2, answer, content);
        ITrial.Case memory other = content;
        other.requestHash = 0;
        vm.prank(challenger);
        vm.expectRevert(ITrial.NotTheCase.selector);
        trial.showInput(id, 0, _jobShown, other);
        vm.prank(challenger);
        vm.expectRevert(ITrial.NotTheCase.selector);
        trial.showOutput(id, 3, answer, other);
    }

    // ------------------------------------------------------------------ ends

    function test_concede() public {
        _notYours(address(this));
        trial.concede(id);
        vm.prank(challenger);
        trial.concede(id);
        vm.assertEq(court.owed(provider), BOND, "the bond");
        _wrongPhase(ITrial.Phase.Closed);
        trial.concede(id);
        _wrongPhase(ITrial.Phase.None);
        trial.concede(bytes32(uint256(1)));
    }

    /// forge-config: default.fuzz.runs = 32
    function testFuzz_silenceLoses(uint256 moves) public {
        moves = _bound(moves, 0, 11);
        ITrial.Dispute memory d = trial.dispute(id);
        for (uint256 i = 0; i < moves; ++i) {
            if (uint8(d.phase) % 2 == 1) _provide(id, d, lie);
            else _attack(id, d, lie);
            d = trial.dispute(id);
        }
        vm.assertEq(d.turn, moves + 1, "turn");
        vm.warp(d.deadline);
        vm.expectRevert(abi.encodeWithSelector(ITrial.NotLate.selector, d.deadline));
        trial.timeout(id);
        vm.warp(d.deadline + 1);
        trial.timeout(id);
        bool provides = uint8(d.phase) % 2 == 1;
        _wrongPhase(provides ? ITrial.Phase.Guilty : ITrial.Phase.Closed);
        trial.timeout(id);
        if (provides) _punish(id);
        vm.assertTrue(court.convicted(_offence()) == provides, "who was silent");
        vm.assertEq(court.owed(provider), provides ? 0 : BOND, "the provider's");
    }

    function test_revert_punish() public {
        _wrongPhase(ITrial.Phase.RevealPositions);
        trial.punish(id, content);
        vm.prank(provider);
        trial.concede(id);
        ITrial.Case memory other = content;
        other.requestHash = 0;
        vm.expectRevert(ITrial.NotTheCase.selector);
        trial.punish(id, other);
        _punish(id);
        _wrongPhase(ITrial.Phase.Closed);
        trial.punish(id, content);
    }

    function test_revert_timeoutOfNothing() public {
        _wrongPhase(ITrial.Phase.None);
        trial.timeout(bytes32(uint256(1)));
    }

    // ------------------------------------------------------------------ moves off chain

    function _stateOf(ITrial.Dispute memory d) private pure returns (ITrial.State memory) {
        return ITrial.State(d.turn, d.phase, d.remaining, d.prefix, d.node, d.root, d.word, d.spot);
    }

    /// @dev A whole game among two parties, of which only the last state and the conviction reach the chain.
    function test_movesOffChainAreSettledAtOnce() public {
        ITrial.Dispute memory d = _at(ITrial.Phase.Convict);
        bytes memory stated = _stated(d, lie);
        // The same case by another challenger, who signs its way to the same state.
        _jobShown = _jobOf(bytes32(uint256(5)));
        bytes32 other = _challenge(_jobShown, _answer());
        ITrial.State memory state = _stateOf(d);
        bytes32 digest = trial.getStateDigest(other, state);
        (bytes memory ours, bytes memory theirs) = (_sign(CHALLENGER_KEY, digest), _sign(PROVIDER_KEY, digest));
        vm.warp(START + 60);
        trial.advance(other, state, ours, theirs);
        ITrial.Dispute memory now_ = trial.dispute(other);
        vm.assertEq(keccak256(abi.encode(_stateOf(now_))), keccak256(abi.encode(state)), "state");
        vm.assertEq(now_.deadline, START + 60 + WINDOW, "deadline");

        vm.expectRevert(abi.encodeWithSelector(ITrial.OldState.selector, state.turn, state.turn));
        trial.advance(other, state, ours, theirs);
        vm.prank(challenger);
        trial.convictStep(other, stated);
        _punish(other);
        _wrongPhase(ITrial.Phase.Closed);
        trial.advance(other, state, ours, theirs);
    }

    function test_revert_advance() public {
        ITrial.State memory state = _stateOf(trial.dispute(id));
        state.turn = 2;
        bytes32 digest = trial.getStateDigest(id, state);
        (bytes memory ours, bytes memory theirs) = (_sign(CHALLENGER_KEY, digest), _sign(PROVIDER_KEY, digest));
        vm.expectRevert(ITrial.NotSigned.selector);
        trial.advance(id, state, ours, ours);
        vm.expectRevert(ITrial.NotSigned.selector);
        trial.advance(id, state, theirs, theirs);
        state.phase = ITrial.Phase.Closed;
        _wrongPhase(ITrial.Phase.Closed);
        trial.advance(id, state, ours, theirs);
        state.phase = ITrial.Phase.None;
        _wrongPhase(ITrial.Phase.None);
        trial.advance(id, state, ours, theirs);
        (state.phase, state.turn) = (ITrial.Phase.PickOp, 49);
        vm.expectRevert(abi.encodeWithSelector(ITrial.OldState.selector, 49, 1));
        trial.advance(id, state, ours, theirs);
        _wrongPhase(ITrial.Phase.None);
        trial.advance(bytes32(uint256(1)), state, ours, theirs);
    }

    function test_aSignedMoveIsMadeByAnyone() public {
        bytes memory call = abi.encodeCall(trial.reveal, (id, _children(trial.dispute(id), lie)));
        bytes memory signature = _sign(PROVIDER_KEY, trial.getMoveDigest(id, 1, call));
        trial.relay(call, signature);
        vm.assertEq(trial.dispute(id).turn, 2, "moved");
        // The same bytes are worth nothing at the next turn.
        (bool ok,) = address(trial).call(abi.encodeCall(trial.relay, (call, signature)));
        vm.assertTrue(!ok, "replayed");
        call = abi.encodeCall(trial.concede, (id));
        signature = _sign(CHALLENGER_KEY, trial.getMoveDigest(id, 2, call));
        trial.relay(call, signature);
        vm.assertEq(court.owed(provider), BOND, "the challenger gave up");
    }

    function test_aBatchIsAllOrNothing() public {
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(trial.concede, (id));
        calls[1] = abi.encodeCall(trial.punish, (id, content));
        _notYours(address(this));
        trial.batch(calls);
        vm.prank(provider);
        trial.batch(calls);
        vm.assertTrue(court.convicted(_offence()), "convicted");
        (calls[0], calls[1]) = (calls[1], calls[0]);
        _wrongPhase(ITrial.Phase.Closed);
        trial.batch(calls);
    }

    function test_revert_relay() public {
        vm.expectRevert(ITrial.NotSigned.selector);
        trial.relay(new bytes(35), "");
        _wrongPhase(ITrial.Phase.None);
        trial.relay(new bytes(36), "");
        bytes memory call = abi.encodeCall(trial.reveal, (id, _children(trial.dispute(id), lie)));
        bytes memory signature = _sign(CHALLENGER_KEY, trial.getMoveDigest(id, 1, call));
        _notYours(challenger);
        trial.relay(call, signature);
        signature = _sign(PROVIDER_KEY, trial.getMoveDigest(id, 2, call));
        (bool ok, bytes memory reason) = address(trial).call(abi.encodeCall(trial.relay, (call, signature)));
        vm.assertTrue(!ok && bytes4(reason) == ITrial.NotYourMove.selector, "signed for another turn");
        // Who relays is not who moves: nothing is left of the signer afterwards.
        _notYours(address(this));
        trial.concede(id);
    }
}
