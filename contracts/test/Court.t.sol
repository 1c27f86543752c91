// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Preimages} from "../src/Preimages.sol";
import {ReceiptLib} from "../src/ReceiptLib.sol";
import {IBatchSettlement} from "../src/interfaces/IBatchSettlement.sol";
import {ICourt} from "../src/interfaces/ICourt.sol";
import {IParameters} from "../src/interfaces/IParameters.sol";
import {DisputeFixture} from "./DisputeFixture.sol";

contract CourtTest is DisputeFixture {
    uint256 private constant OTHER_KEY = 0xbad;
    bytes32 private constant MODEL = keccak256("model");
    address private constant HUNTER = address(0x417);

    uint32[] private tokens;

    function setUp() public override {
        super.setUp();
        for (uint32 i = 1; i < 8; ++i) {
            tokens.push(i * 1000);
        }
    }

    function _plain(bytes32 request, bytes32 response) private pure returns (ReceiptLib.Receipt memory) {
        return _receipt(request, response, MODEL, 5, 2);
    }

    function _reward() private pure returns (uint256) {
        return uint256(PENALTY) * REWARD_BPS / 10_000;
    }

    /// @dev Deploys a court by a deployer of its own, whose first contract a fresh registry expects.
    function _tryDeploy(
        string memory bad,
        bool isSlasher,
        address trial_,
        address settlement_,
        address sink,
        address parameters_
    ) private {
        Deployer deployer = new Deployer();
        address expected = vm.computeCreateAddress(address(deployer), 1);
        if (sink == address(court)) sink = expected;
        address registry_ = address(_newRegistry(token, 1, 7 days, isSlasher ? expected : SINK, 5_000));
        bytes memory args = abi.encode(registry_, trial_, settlement_, sink, parameters_);
        bytes memory code = bytes.concat(vm.getCode("Court.sol:Court"), args);
        if (bytes(bad).length > 0) vm.expectRevert(abi.encodeWithSelector(ICourt.BadParameter.selector, bad));
        deployer.deploy(code);
    }

    // ------------------------------------------------------------------ constructor

    function test_revert_constructor() public {
        address t = address(0x1234);
        address s = address(settlement);
        uint32 longest = uint32(7 days) / 49;
        address p = address(_newParameters(longest));
        _tryDeploy("", true, t, s, SINK, p);
        _tryDeploy("registry", false, t, s, SINK, p);
        _tryDeploy("trial", true, address(0), s, SINK, p);
        _tryDeploy("settlement", true, t, address(0x5678), SINK, p);
        _tryDeploy("sink", true, t, s, address(0), p);
        _tryDeploy("sink", true, t, s, address(court), p);
        _tryDeploy("parameters", true, t, s, SINK, address(0x5678));
        _tryDeploy("moveWindow", true, t, s, SINK, address(_newParameters(longest + 1)));
    }

    // ------------------------------------------------------------------ refunds

    /// @dev A receipt over PAYER's channel that was convicted of equivocation.
    function _convictedReceipt(bytes32 request, uint128 charged)
        private
        returns (ReceiptLib.Receipt memory a, bytes32 offence)
    {
        a = _plain(request, keccak256("a"));
        ReceiptLib.Receipt memory b = _plain(request, keccak256("b"));
        (a.channelId, a.charged) = (settlement.getChannelId(_paid()), charged);
        (bytes memory signatureA, bytes memory signatureB) = (_signed(a), _signed(b));
        vm.prank(HUNTER);
        court.convictEquivocation(a, signatureA, b, signatureB);
        offence = court.offenceOf(provider, request);
    }

    function testFuzz_payerIsPaidBackWhatItWasCharged(bytes32 request, uint128 charged) public {
        (ReceiptLib.Receipt memory a, bytes32 offence) = _convictedReceipt(request, charged);
        (bool isPaid, uint128 amount) = court.refunded(offence);
        vm.assertTrue(!isPaid && amount == 0, "held");
        uint256 most = uint256(PENALTY) * REFUND_BPS / 10_000;
        uint256 expected = charged < most ? charged : most;
        vm.expectEmit(address(court));
        emit ICourt.Refunded(offence, PAYER, a.channelId, uint128(expected));
        vm.assertEq(court.refund(a, provider, _paid(), PENALTY, 1), expected, "returned");
        vm.assertEq(court.owed(PAYER), expected, "payer");
        vm.assertEq(court.owed(HUNTER), _reward(), "reward");
        vm.assertEq(court.owed(SINK), PENALTY - _reward() - expected, "the rest is the sink's");
        (isPaid, amount) = court.refunded(offence);
        vm.assertTrue(isPaid && amount == expected, "paid");
        vm.assertTrue(court.convicted(offence), "still convicted");
        vm.expectRevert(abi.encodeWithSelector(ICourt.NothingHeld.selector, offence));
        court.refund(a, provider, _paid(), PENALTY, 1);
        if (expected == 0) return;
        vm.prank(PAYER);
        vm.assertEq(court.withdraw(), expected, "withdrawn");
    }

    function test_revert_refund() public {
        (ReceiptLib.Receipt memory a, bytes32 offence) = _convictedReceipt(keccak256("q"), 5);
        bytes memory nothing = abi.encodeWithSelector(ICourt.NothingHeld.selector, offence);
        vm.expectRevert(nothing);
        court.refund(a, provider, _paid(), PENALTY - 1, 1);
        vm.expectRevert(nothing);
        court.refund(a, provider, _paid(), PENALTY, 2);
        // A provider cannot have its own stake paid out to it by signing a dearer receipt for another channel.
        a.charged = type(uint128).max;
        vm.expectRevert(nothing);
        court.refund(a, provider, _paid(), PENALTY, 1);
        a.charged = 5;
        IBatchSettlement.ChannelConfig memory other = _paid();
        other.payer = HUNTER;
        vm.expectRevert(abi.encodeWithSelector(ICourt.NotTheChannel.selector, a.channelId));
        court.refund(a, provider, other, PENALTY, 1);
        a = _plain(keccak256("never"), keccak256("a"));
        vm.expectRevert(
            abi.encodeWithSelector(ICourt.NothingHeld.selector, court.offenceOf(provider, keccak256("never")))
        );
        court.refund(a, provider, _paid(), 0, 1);
    }

    /// @dev Whoever convicts itself, as its own challenger and its own payer, loses a part of its stake all the same.
    function testFuzz_selfConvictionCosts(uint128 charged) public {
        (ReceiptLib.Receipt memory a,) = _convictedReceipt(keccak256("q"), charged);
        court.refund(a, provider, _paid(), PENALTY, 1);
        vm.assertLe(court.owed(HUNTER) + court.owed(PAYER), PENALTY * 9 / 10, "a tenth is lost");
    }

    // ------------------------------------------------------------------ terms that change

    function test_disputeKeepsTheTermsOfItsOpening() public {
        vm.prank(address(trial));
        court.open(challenger, provider, keccak256("q"), BOND);
        IParameters.Terms memory next = _terms();
        (next.bond, next.penalty, next.rewardBps) = (2 * BOND, 2 * PENALTY, 1_000);
        parameters.propose(next, _policy());
        vm.warp(START + DELAY);
        parameters.enact();
        vm.prank(address(trial));
        court.convict(provider, keccak256("q"), challenger, 1, keccak256("receipt"));
        vm.assertEq(court.owed(challenger), BOND + _reward(), "the bond that was taken, the reward that was promised");
        vm.assertEq(registry.stakeOf(provider), STAKE - PENALTY, "the old penalty");
        (ReceiptLib.Receipt memory a, bytes32 offence) = _convictedReceipt(keccak256("new"), 5);
        vm.assertEq(court.owed(HUNTER), 2 * PENALTY / 10, "what begins later is under the new terms");
        court.refund(a, provider, _paid(), 2 * PENALTY, 2);
        (bool isPaid,) = court.refunded(offence);
        vm.assertTrue(isPaid, "refunded under its own version");
    }

    // ------------------------------------------------------------------ equivocation

    function testFuzz_equivocationConvictsAtOnce(bytes32 request, bytes32 one, bytes32 other, uint64 outputs) public {
        vm.assume(one != other);
        ReceiptLib.Receipt memory a = _receipt(request, one, MODEL, 5, outputs);
        ReceiptLib.Receipt memory b = _receipt(request, other, MODEL, 6, outputs);
        bytes32 offence = court.offenceOf(provider, request);
        (bytes memory signatureA, bytes memory signatureB) = (_signed(a), _signed(b));
        vm.expectEmit(address(court));
        emit ICourt.Convicted(provider, offence, HUNTER, PENALTY, 1);
        vm.prank(HUNTER);
        court.convictEquivocation(a, signatureA, b, signatureB);
        vm.assertTrue(court.convicted(offence), "convicted");
        vm.assertEq(court.owed(HUNTER), _reward(), "reward");
        vm.assertEq(court.owed(SINK), 0, "the rest is held for the payer and the sink");
        vm.assertEq(registry.stakeOf(provider), STAKE - PENALTY, "stake");
        vm.assertEq(token.balanceOf(address(court)), PENALTY, "held");

        vm.expectRevert(abi.encodeWithSelector(ICourt.AlreadyConvicted.selector, offence));
        court.convictEquivocation(a, signatureA, b, signatureB);
    }

    function test_revert_notEquivocation() public {
        ReceiptLib.Receipt memory a = _plain(keccak256("q"), keccak256("a"));
        ReceiptLib.Receipt memory b = _plain(keccak256("q"), keccak256("b"));
        bytes memory signature = _signed(a);
        bytes memory stranger = _sign(OTHER_KEY, ReceiptLib.digest(b, court.receiptDomain()));
        vm.expectRevert(ICourt.NotEquivocation.selector);
        court.convictEquivocation(a, signature, b, stranger);
        vm.expectRevert(ICourt.NotEquivocation.selector);
        court.convictEquivocation(a, signature, a, signature);
        b.outputTokens += 1;
        bytes memory other = _signed(b);
        vm.expectRevert(ICourt.NotEquivocation.selector);
        court.convictEquivocation(a, signature, b, other);
        b = _plain(keccak256("another"), keccak256("b"));
        other = _signed(b);
        vm.expectRevert(ICourt.NotEquivocation.selector);
        court.convictEquivocation(a, signature, b, other);
    }

    function test_revert_nothingAtStake() public {
        ReceiptLib.Receipt memory a = _plain(keccak256("q"), keccak256("a"));
        ReceiptLib.Receipt memory b = _plain(keccak256("q"), keccak256("b"));
        bytes32 domain = court.receiptDomain();
        bytes memory signatureA = _sign(OTHER_KEY, ReceiptLib.digest(a, domain));
        bytes memory signatureB = _sign(OTHER_KEY, ReceiptLib.digest(b, domain));
        vm.expectRevert(abi.encodeWithSelector(ICourt.NothingAtStake.selector, vm.addr(OTHER_KEY)));
        court.convictEquivocation(a, signatureA, b, signatureB);
    }

    // ------------------------------------------------------------------ counts

    function testFuzz_inflatedInputIsConvicted(uint256 prefix, uint64 claimed) public {
        prefix = _bound(prefix, 0, 5);
        bytes memory job = _job(MODEL, tokens, 5, prefix, 0, bytes32(uint256(9)));
        ReceiptLib.Receipt memory receipt = _receipt(keccak256(job), keccak256("r"), MODEL, claimed, 2);
        bytes memory signature = _signed(receipt);
        if (claimed == 5) vm.expectRevert(ICourt.NoFault.selector);
        vm.prank(HUNTER);
        court.convictInput(receipt, signature, job);
        vm.assertEq(court.owed(HUNTER), claimed == 5 ? 0 : _reward(), "reward");
    }

    function test_anotherModelIsConvicted() public {
        bytes memory job = _job(MODEL, tokens, 5, 0, 0, bytes32(uint256(9)));
        ReceiptLib.Receipt memory receipt = _receipt(keccak256(job), keccak256("r"), keccak256("other"), 5, 2);
        bytes memory signature = _signed(receipt);
        court.convictInput(receipt, signature, job);
        vm.assertTrue(court.convicted(court.offenceOf(provider, keccak256(job))), "convicted");
    }

    function testFuzz_inflatedOutputIsConvicted(uint64 claimed) public {
        bytes memory response = _response(tokens, 0, 6);
        ReceiptLib.Receipt memory receipt = _receipt(keccak256("q"), keccak256(response), MODEL, 5, claimed);
        bytes memory signature = _signed(receipt);
        if (claimed == 6) vm.expectRevert(ICourt.NoFault.selector);
        vm.prank(HUNTER);
        court.convictOutput(receipt, signature, response);
        vm.assertEq(court.owed(HUNTER), claimed == 6 ? 0 : _reward(), "reward");
    }

    function test_revert_wrongPreimages() public {
        bytes memory job = _job(MODEL, tokens, 5, 0, 0, bytes32(uint256(9)));
        bytes memory response = _response(tokens, 0, 6);
        ReceiptLib.Receipt memory receipt = _receipt(keccak256(job), keccak256(response), MODEL, 4, 2);
        bytes memory signature = _signed(receipt);
        vm.expectRevert(abi.encodeWithSelector(Preimages.NotThePreimage.selector, keccak256(job)));
        court.convictInput(receipt, signature, response);
        vm.expectRevert(abi.encodeWithSelector(Preimages.NotThePreimage.selector, keccak256(response)));
        court.convictOutput(receipt, signature, job);

        // What was hashed is neither a job nor an answer, or ends too early.
        (receipt.requestHash, receipt.responseHash) = (keccak256(response), keccak256(job));
        signature = _signed(receipt);
        vm.expectRevert(Preimages.UnknownFormat.selector);
        court.convictInput(receipt, signature, response);
        vm.expectRevert(Preimages.UnknownFormat.selector);
        court.convictOutput(receipt, signature, job);
        bytes memory short = _slice(job, 0, 60);
        receipt.requestHash = keccak256(short);
        signature = _signed(receipt);
        vm.expectRevert(Preimages.UnknownFormat.selector);
        court.convictInput(receipt, signature, short);
        short = "assay/job/1";
        receipt.requestHash = keccak256(short);
        signature = _signed(receipt);
        vm.expectRevert(Preimages.UnknownFormat.selector);
        court.convictInput(receipt, signature, short);
    }

    // ------------------------------------------------------------------ claims

    function _config() private view returns (IBatchSettlement.ChannelConfig memory config) {
        config.receiverAuthorizer = provider;
        config.salt = keccak256("channel");
    }

    function _claimReceipt(uint128 total) private view returns (ReceiptLib.Receipt memory receipt) {
        receipt = _plain(keccak256("q"), keccak256("a"));
        receipt.channelId = settlement.getChannelId(_config());
        receipt.chargedTotal = total;
    }

    function _challengeClaim(uint128 claimed) private returns (bytes32 channelId) {
        settlement.set(_config(), claimed);
        channelId = settlement.getChannelId(_config());
        vm.prank(challenger);
        court.challengeClaim(_config());
    }

    function testFuzz_claimIsJustified(uint128 claimed, uint128 total) public {
        claimed = _amount(claimed, 1, type(uint128).max);
        total = _amount(total, claimed, type(uint128).max);
        settlement.set(_config(), claimed);
        bytes32 channelId = settlement.getChannelId(_config());
        vm.expectEmit(address(court));
        emit ICourt.ClaimChallenged(channelId, challenger, provider, claimed);
        vm.prank(challenger);
        court.challengeClaim(_config());
        vm.assertEq(token.balanceOf(address(court)), BOND, "bond is held");
        ReceiptLib.Receipt memory receipt = _claimReceipt(total);
        bytes memory signature = _signed(receipt);
        vm.warp(START + WINDOW);
        vm.expectEmit(address(court));
        emit ICourt.Acquitted(provider, BOND);
        court.justifyClaim(channelId, receipt, signature);
        vm.assertEq(court.owed(provider), BOND, "bond is the provider's");
        vm.assertEq(registry.stakeOf(provider), STAKE, "stake");
    }

    function test_claimWithoutReceiptIsConvictedOnceForEachAmount() public {
        bytes32 channelId = _challengeClaim(100);
        vm.warp(START + WINDOW + 1);
        court.convictClaim(channelId);
        vm.assertEq(court.owed(challenger), BOND + _reward(), "bond and reward");
        vm.assertEq(registry.stakeOf(provider), STAKE - PENALTY, "stake");
        _challengeClaim(100);
        vm.warp(START + 2 * WINDOW + 2);
        court.convictClaim(channelId);
        vm.assertEq(court.owed(challenger), BOND + _reward(), "the same claim only gives the bond back");
        _challengeClaim(101);
        vm.warp(START + 3 * WINDOW + 3);
        court.convictClaim(channelId);
        vm.assertEq(court.owed(challenger), BOND + 2 * _reward(), "more was claimed");
        vm.assertEq(registry.stakeOf(provider), STAKE - 2 * PENALTY, "stake");
    }

    function test_revert_challengeClaim() public {
        vm.expectRevert(ICourt.NoFault.selector);
        court.challengeClaim(_config());
        bytes32 channelId = _challengeClaim(100);
        vm.expectRevert(abi.encodeWithSelector(ICourt.AlreadyChallenged.selector, channelId));
        court.challengeClaim(_config());
        IBatchSettlement.ChannelConfig memory config = _config();
        config.receiverAuthorizer = HUNTER;
        vm.expectRevert(abi.encodeWithSelector(ICourt.NothingAtStake.selector, HUNTER));
        court.challengeClaim(config);
    }

    function test_revert_justifyClaim() public {
        bytes32 channelId = settlement.getChannelId(_config());
        ReceiptLib.Receipt memory receipt = _claimReceipt(99);
        bytes memory signature = _signed(receipt);
        vm.expectRevert(abi.encodeWithSelector(ICourt.NotChallenged.selector, channelId));
        court.justifyClaim(channelId, receipt, signature);
        _challengeClaim(100);
        vm.expectRevert(ICourt.NoFault.selector);
        court.justifyClaim(channelId, receipt, signature);
        receipt.chargedTotal = 100;
        signature = _sign(OTHER_KEY, ReceiptLib.digest(receipt, court.receiptDomain()));
        vm.expectRevert(ICourt.NotSigned.selector);
        court.justifyClaim(channelId, receipt, signature);
        receipt.channelId = keccak256("other");
        signature = _signed(receipt);
        vm.expectRevert(ICourt.NotSigned.selector);
        court.justifyClaim(channelId, receipt, signature);
        receipt.channelId = channelId;
        signature = _signed(receipt);
        vm.warp(START + WINDOW + 1);
        vm.expectRevert(abi.encodeWithSelector(ICourt.TooLate.selector, uint32(START) + WINDOW));
        court.justifyClaim(channelId, receipt, signature);
    }

    function test_revert_convictClaim() public {
        bytes32 channelId = settlement.getChannelId(_config());
        vm.expectRevert(abi.encodeWithSelector(ICourt.NotChallenged.selector, channelId));
        court.convictClaim(channelId);
        _challengeClaim(100);
        vm.warp(START + WINDOW);
        vm.expectRevert(abi.encodeWithSelector(ICourt.NotLate.selector, uint32(START) + WINDOW));
        court.convictClaim(channelId);
    }

    // ------------------------------------------------------------------ money

    function test_onlyTheTrialOpensConvictsAndAcquits() public {
        bytes memory error = abi.encodeWithSelector(ICourt.NotTrial.selector, address(this));
        vm.expectRevert(error);
        court.open(challenger, provider, keccak256("q"), BOND);
        vm.expectRevert(error);
        court.convict(provider, keccak256("q"), challenger, 1, keccak256("receipt"));
        vm.expectRevert(error);
        court.acquit(provider, 1);
    }

    function test_whatIsOwedIsPaidOnce() public {
        vm.prank(address(trial));
        court.open(challenger, provider, keccak256("q"), BOND);
        vm.prank(address(trial));
        court.convict(provider, keccak256("q"), challenger, 1, 0);
        uint256 before = token.balanceOf(challenger);
        vm.expectEmit(address(court));
        emit ICourt.Paid(challenger, BOND + _reward());
        vm.prank(challenger);
        vm.assertEq(court.withdraw(), BOND + _reward(), "amount");
        vm.assertEq(token.balanceOf(challenger), before + BOND + _reward(), "paid");
        vm.expectRevert(abi.encodeWithSelector(ICourt.NothingOwed.selector, challenger));
        vm.prank(challenger);
        court.withdraw();
        vm.prank(SINK);
        court.withdraw();
        vm.assertEq(token.balanceOf(address(court)), 0, "nothing is left");
    }

    function testFuzz_aBondIsTakenFromTheAccountFirst(uint128 amount) public {
        amount = _amount(amount, 0, 10 * BOND);
        vm.expectEmit(address(court));
        emit ICourt.Deposited(challenger, amount);
        vm.prank(challenger);
        court.deposit(amount);
        vm.assertEq(court.owed(challenger), amount, "deposited");
        uint256 before = token.balanceOf(challenger);
        vm.prank(address(trial));
        court.open(challenger, provider, keccak256("q"), BOND);
        bool enough = amount >= BOND;
        vm.assertEq(court.owed(challenger), enough ? amount - BOND : amount, "account");
        vm.assertEq(token.balanceOf(challenger), enough ? before : before - BOND, "wallet");
        vm.prank(address(trial));
        court.acquit(provider, 1);
        vm.assertEq(court.owed(provider), BOND, "the provider's");
    }

    function testFuzz_aPenaltyStaysWithinTheCap(uint256 n) public {
        // Most of the stake leaves; what remains is worth two penalties and a bit, at half of it a window.
        vm.prank(provider);
        registry.requestUnstake(STAKE - 5 * PENALTY / 2);
        vm.warp(START + 7 days);
        vm.prank(provider);
        registry.withdrawUnstaked();
        n = _bound(n, 1, 5);
        for (uint256 i = 0; i < n; ++i) {
            vm.prank(address(trial));
            court.convict(provider, bytes32(i), challenger, 1, 0);
        }
        uint256 cap = uint256(5 * PENALTY / 2) * SLASH_BPS / 10_000;
        uint256 taken = n * PENALTY < cap ? n * PENALTY : cap;
        vm.assertEq(registry.stakeOf(provider), 5 * PENALTY / 2 - taken, "stake");
        vm.assertEq(token.balanceOf(address(court)), taken, "received");
        vm.assertEq(court.owed(challenger) + court.owed(SINK), taken + n * BOND, "owed");
    }
}

/// @notice Makes contracts at addresses that are known before.
contract Deployer {
    function deploy(bytes memory code) external {
        assembly ("memory-safe") {
            if iszero(create(0, add(code, 32), mload(code))) {
                returndatacopy(0, 0, returndatasize())
                revert(0, returndatasize())
            }
        }
    }
}
