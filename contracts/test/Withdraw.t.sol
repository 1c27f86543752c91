// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IBatchSettlement} from "../src/interfaces/IBatchSettlement.sol";
import {ChannelFixture} from "./ChannelFixture.sol";
import {Vm} from "./Vm.sol";

contract WithdrawTest is ChannelFixture {
    uint128 private constant DEPOSIT = 1_000e6;

    function _initiate(IBatchSettlement.ChannelConfig memory config, uint128 amount) private {
        vm.prank(config.payer);
        settlement.initiateWithdraw(config, amount);
    }

    function testFuzz_payerGetsBackWhatNobodyClaimed(uint256 seedA, uint256 seedB, uint256 seedC) public {
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        _deposit(config, DEPOSIT);
        uint128 before = _amount(seedA, 0, DEPOSIT - 1);
        if (before > 0) _claim(config, before, before);
        uint128 asked = _amount(seedB, 1, DEPOSIT - before);

        vm.expectEmit(address(settlement));
        emit IBatchSettlement.WithdrawInitiated(id, asked, uint40(START) + DELAY);
        vm.prank(payerAuthorizer);
        settlement.initiateWithdraw(config, asked);
        _assertWithdrawal(id, asked, START);
        vm.assertEq(token.balanceOf(payer), 0, "payer while waiting");

        uint128 claimed = _amount(seedC, before, DEPOSIT);
        if (claimed > before) _claim(config, claimed, claimed);
        uint128 left = DEPOSIT - claimed;
        uint128 paid = asked < left ? asked : left;

        vm.warp(START + DELAY);
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.WithdrawFinalized(id, payerAuthorizer, paid);
        vm.prank(payerAuthorizer);
        settlement.finalizeWithdraw(config);
        _assertWithdrawal(id, 0, 0);
        _assertChannel(id, DEPOSIT - paid, claimed);
        vm.assertEq(token.balanceOf(payer), paid, "payer");
        vm.assertEq(token.balanceOf(address(settlement)), DEPOSIT - paid, "escrow");
    }

    function test_fullWithdrawalClosesAndTheChannelCanOpenAgain() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        _deposit(config, DEPOSIT);
        _initiate(config, DEPOSIT);
        vm.warp(START + DELAY);
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.ChannelClosed(id, config);
        vm.prank(payer);
        settlement.finalizeWithdraw(config);

        token.mint(payer, 5);
        bytes memory data = _collectorData(config, PAYER_KEY, 5, 99);
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.ChannelCreated(id, config);
        settlement.deposit(config, 5, collector, data);
        _assertChannel(id, 5, 0);
    }

    function test_channelWithClaimsIsNeitherClosedNorCreatedAgain() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, DEPOSIT);
        _claim(config, 10, 10);
        _initiate(config, DEPOSIT - 10);
        vm.warp(START + DELAY);
        vm.recordLogs();
        vm.prank(payer);
        settlement.finalizeWithdraw(config);
        _deposit(config, 5);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        vm.assertEq(_countLogs(logs, IBatchSettlement.ChannelClosed.selector), 0, "closed");
        vm.assertEq(_countLogs(logs, IBatchSettlement.ChannelCreated.selector), 0, "created");
        vm.assertEq(_countLogs(logs, IBatchSettlement.Deposited.selector), 1, "deposited");
        _assertChannel(_id(config), 15, 10);
    }

    function test_withdrawnChannelPaysNobody() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, DEPOSIT);
        _claim(config, 10, 10);
        IBatchSettlement.VoucherClaim[] memory late = _rows(_row(config, PAYER_AUTHORIZER_KEY, 20, 20));
        _initiate(config, DEPOSIT - 10);
        vm.warp(START + DELAY);
        vm.prank(payer);
        settlement.finalizeWithdraw(config);

        vm.expectRevert(IBatchSettlement.ClaimExceedsBalance.selector);
        vm.prank(receiver);
        settlement.claim(late);
        vm.expectRevert(IBatchSettlement.NothingToWithdraw.selector);
        vm.prank(payer);
        settlement.initiateWithdraw(config, 0);
        vm.expectRevert(IBatchSettlement.WithdrawAmountExceedsAvailable.selector);
        vm.prank(payer);
        settlement.initiateWithdraw(config, 1);
        vm.prank(receiver);
        settlement.refund(config, 1);
        vm.assertEq(token.balanceOf(payer), DEPOSIT - 10, "payer");
        vm.assertEq(token.balanceOf(address(settlement)), 10, "only what was claimed is left");
    }

    function test_finalizeWithNothingLeftEndsTheWithdrawal() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        _deposit(config, DEPOSIT);
        _initiate(config, DEPOSIT);
        _claim(config, DEPOSIT, DEPOSIT);
        vm.warp(START + DELAY);
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.WithdrawFinalized(id, payer, 0);
        vm.prank(payer);
        settlement.finalizeWithdraw(config);
        _assertWithdrawal(id, 0, 0);
        vm.assertEq(token.balanceOf(payer), 0, "payer");
    }

    function testFuzz_revert_onlyThePayerSideWithdraws(address caller) public {
        vm.assume(caller != payer && caller != payerAuthorizer);
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, DEPOSIT);
        vm.expectRevert(IBatchSettlement.InvalidChannel.selector);
        vm.prank(caller);
        settlement.initiateWithdraw(config, 1);

        _initiate(config, 1);
        vm.warp(START + DELAY);
        vm.expectRevert(IBatchSettlement.NotAuthorizedToFinalizeWithdraw.selector);
        vm.prank(caller);
        settlement.finalizeWithdraw(config);
    }

    function test_revert_zeroPayerAuthorizerGivesNobodyTheRight() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        config.payerAuthorizer = address(0);
        _deposit(config, DEPOSIT);
        vm.expectRevert(IBatchSettlement.InvalidChannel.selector);
        vm.prank(stranger);
        settlement.initiateWithdraw(config, 1);
    }

    function test_revert_secondWithdrawalWhileOnePends() public {
        _deposit(_config(), DEPOSIT);
        _initiate(_config(), 1);
        vm.expectRevert(IBatchSettlement.WithdrawalAlreadyPending.selector);
        vm.prank(payer);
        settlement.initiateWithdraw(_config(), 1);
    }

    function testFuzz_revert_moreThanIsUnclaimed(uint256 seedA, uint256 seedB) public {
        uint128 claimed = _amount(seedA, 1, DEPOSIT);
        uint128 asked = _amount(seedB, DEPOSIT - claimed + 1, type(uint128).max);
        _deposit(_config(), DEPOSIT);
        _claim(_config(), claimed, claimed);
        vm.expectRevert(IBatchSettlement.WithdrawAmountExceedsAvailable.selector);
        vm.prank(payer);
        settlement.initiateWithdraw(_config(), asked);
    }

    function test_revert_finalizeWithoutWithdrawal() public {
        _deposit(_config(), DEPOSIT);
        vm.expectRevert(IBatchSettlement.WithdrawalNotPending.selector);
        vm.prank(payer);
        settlement.finalizeWithdraw(_config());
    }

    function testFuzz_revert_finalizeBeforeTheDelay(uint256 seed) public {
        _deposit(_config(), DEPOSIT);
        _initiate(_config(), 1);
        vm.warp(_bound(seed, START, START + DELAY - 1));
        vm.expectRevert(IBatchSettlement.WithdrawDelayNotElapsed.selector);
        vm.prank(payer);
        settlement.finalizeWithdraw(_config());
    }
}

contract RefundTest is ChannelFixture {
    uint128 private constant DEPOSIT = 1_000e6;

    function testFuzz_refundGivesBackAtMostWhatIsUnclaimed(uint256 seedA, uint256 seedB) public {
        uint128 claimed = _amount(seedA, 0, DEPOSIT - 1);
        uint128 asked = _amount(seedB, 1, 2 * DEPOSIT);
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        _deposit(config, DEPOSIT);
        if (claimed > 0) _claim(config, claimed, claimed);
        uint128 left = DEPOSIT - claimed;
        uint128 paid = asked < left ? asked : left;

        vm.expectEmit(address(settlement));
        emit IBatchSettlement.Refunded(id, receiver, paid);
        vm.prank(receiver);
        settlement.refund(config, asked);
        _assertChannel(id, DEPOSIT - paid, claimed);
        vm.assertEq(settlement.refundNonce(id), 1, "nonce");
        vm.assertEq(token.balanceOf(payer), paid, "payer");
        vm.assertEq(token.balanceOf(address(settlement)), DEPOSIT - paid, "escrow");
    }

    function testFuzz_anyoneRelaysASignedRefund(address relay, uint256 seed) public {
        uint128 amount = _amount(seed, 1, DEPOSIT);
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        _deposit(config, DEPOSIT);
        bytes memory signature = _sign(RECEIVER_AUTHORIZER_KEY, settlement.getRefundDigest(id, 0, amount));
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.Refunded(id, relay, amount);
        vm.prank(relay);
        settlement.refundWithSignature(config, amount, 0, signature);
        _assertChannel(id, DEPOSIT - amount, 0);
        vm.assertEq(settlement.refundNonce(id), 1, "nonce");
        vm.assertEq(token.balanceOf(payer), amount, "payer");

        vm.expectRevert(IBatchSettlement.InvalidRefundNonce.selector);
        vm.prank(relay);
        settlement.refundWithSignature(config, amount, 0, signature);
    }

    function test_fullRefundCloses() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, DEPOSIT);
        bytes32 id = _id(config);
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.ChannelClosed(id, config);
        vm.prank(receiverAuthorizer);
        settlement.refund(config, DEPOSIT);
        _assertChannel(id, 0, 0);
    }

    function testFuzz_refundShrinksAPendingWithdrawal(uint256 seedA, uint256 seedB) public {
        uint128 asked = _amount(seedA, 1, DEPOSIT);
        uint128 refunded = _amount(seedB, 1, DEPOSIT);
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        _deposit(config, DEPOSIT);
        vm.prank(payer);
        settlement.initiateWithdraw(config, asked);
        vm.prank(receiver);
        settlement.refund(config, refunded);
        bool over = refunded >= asked;
        _assertWithdrawal(id, over ? 0 : asked - refunded, over ? 0 : START);
        _assertChannel(id, DEPOSIT - refunded, 0);
    }

    function test_refundOfExactlyThePendingWithdrawalEndsIt() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, DEPOSIT);
        vm.prank(payer);
        settlement.initiateWithdraw(config, 10);
        vm.prank(receiver);
        settlement.refund(config, 10);
        _assertWithdrawal(_id(config), 0, 0);
        vm.prank(payer);
        settlement.initiateWithdraw(config, 5);
    }

    function test_emptyRefundUsesUpTheNonceAndMovesNothing() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        _deposit(config, DEPOSIT);
        _claim(config, DEPOSIT, DEPOSIT);
        vm.recordLogs();
        vm.prank(receiver);
        settlement.refund(config, 1);
        vm.assertEq(vm.getRecordedLogs().length, 0, "events");
        vm.assertEq(settlement.refundNonce(id), 1, "nonce");
        _assertChannel(id, DEPOSIT, DEPOSIT);
    }

    function test_directRefundVoidsASignedOne() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, DEPOSIT);
        bytes memory signature = _sign(RECEIVER_AUTHORIZER_KEY, settlement.getRefundDigest(_id(config), 0, 5));
        vm.prank(receiver);
        settlement.refund(config, 1);
        vm.expectRevert(IBatchSettlement.InvalidRefundNonce.selector);
        settlement.refundWithSignature(config, 5, 0, signature);
    }

    function testFuzz_revert_onlyTheReceiverSideRefunds(address caller) public {
        vm.assume(caller != receiver && caller != receiverAuthorizer);
        _deposit(_config(), DEPOSIT);
        vm.expectRevert(IBatchSettlement.NotAuthorizedToRefund.selector);
        vm.prank(caller);
        settlement.refund(_config(), 1);
    }

    function test_revert_zeroRefund() public {
        _deposit(_config(), DEPOSIT);
        vm.expectRevert(IBatchSettlement.ZeroRefund.selector);
        vm.prank(receiver);
        settlement.refund(_config(), 0);
        vm.assertEq(settlement.refundNonce(_id(_config())), 0, "nonce");
    }

    function test_revert_refundSignedForSomethingElse() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        _deposit(config, DEPOSIT);
        bytes[3] memory wrong = [
            _sign(RECEIVER_AUTHORIZER_KEY, settlement.getRefundDigest(id, 0, 6)),
            _sign(RECEIVER_AUTHORIZER_KEY, settlement.getRefundDigest(id, 1, 5)),
            _sign(RECEIVER_KEY, settlement.getRefundDigest(id, 0, 5))
        ];
        for (uint256 i = 0; i < wrong.length; ++i) {
            vm.expectRevert(IBatchSettlement.InvalidSignature.selector);
            settlement.refundWithSignature(config, 5, 0, wrong[i]);
        }
    }
}
