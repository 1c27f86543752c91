// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {IBatchSettlement} from "../src/interfaces/IBatchSettlement.sol";
import {ChannelFixture} from "./ChannelFixture.sol";
import {ReenteringToken, SkewedCollector} from "./mocks/Collectors.sol";
import {Wallet} from "./mocks/Wallet.sol";

contract ClaimTest is ChannelFixture {
    uint128 private constant DEPOSIT = 1_000e6;

    function testFuzz_claimsAreCumulativeAndMoveNoToken(uint256 seedA, uint256 seedB, uint256 seedC) public {
        uint128 balance = _amount(seedA, 2, type(uint128).max);
        uint128 first = _amount(seedB, 1, balance - 1);
        uint128 second = _amount(seedC, first + 1, balance);
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        _deposit(config, balance);

        vm.expectEmit(address(settlement));
        emit IBatchSettlement.Claimed(id, receiver, first, first);
        _claim(config, first, first);
        _assertChannel(id, balance, first);
        _assertReceiver(first, 0);

        // The receiver may take less than the payer allowed.
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.Claimed(id, receiver, second - first, second);
        _claim(config, type(uint128).max, second);
        _assertChannel(id, balance, second);
        _assertReceiver(second, 0);
        vm.assertEq(token.balanceOf(address(settlement)), balance, "escrow");
        vm.assertEq(token.balanceOf(receiver), 0, "receiver before settle");
    }

    function testFuzz_batchBooksEveryChannelOnce(uint256 seed) public {
        uint256 n = _bound(seed, 1, 8);
        IBatchSettlement.VoucherClaim[] memory rows = new IBatchSettlement.VoucherClaim[](n);
        uint256 sum;
        for (uint256 i = 0; i < n; ++i) {
            IBatchSettlement.ChannelConfig memory config = _config();
            config.salt = bytes32(i);
            _deposit(config, DEPOSIT);
            uint128 amount = _amount(uint256(keccak256(abi.encode(seed, i))), 1, DEPOSIT);
            rows[i] = _row(config, PAYER_AUTHORIZER_KEY, amount, amount);
            sum += amount;
        }
        vm.prank(receiverAuthorizer);
        settlement.claim(rows);
        for (uint256 i = 0; i < n; ++i) {
            _assertChannel(_id(rows[i].voucher.channel), DEPOSIT, rows[i].totalClaimed);
        }
        _assertReceiver(sum, 0);
    }

    function testFuzz_staleRowIsSkippedWhateverItsSignature(uint256 seed, bytes memory signature) public {
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, DEPOSIT);
        _claim(config, DEPOSIT, 500);
        // Half of the runs repeat exactly what is booked.
        uint128 stalest = seed % 2 == 0 ? 500 : _amount(seed, 0, 500);
        IBatchSettlement.VoucherClaim memory stale = _row(config, PAYER_AUTHORIZER_KEY, DEPOSIT, stalest);
        stale.signature = signature;
        vm.recordLogs();
        vm.prank(receiver);
        settlement.claim(_rows(stale));
        vm.assertEq(vm.getRecordedLogs().length, 0, "events");
        _assertChannel(_id(config), DEPOSIT, 500);
        _assertReceiver(500, 0);
    }

    function test_sameRowTwiceInOneBatchCountsOnce() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows = new IBatchSettlement.VoucherClaim[](2);
        rows[0] = _row(config, PAYER_AUTHORIZER_KEY, 70, 70);
        rows[1] = rows[0];
        vm.recordLogs();
        vm.prank(receiver);
        settlement.claim(rows);
        vm.assertEq(_countLogs(vm.getRecordedLogs(), IBatchSettlement.Claimed.selector), 1, "events");
        _assertReceiver(70, 0);
    }

    function test_payerWithoutAuthorizerSignsItself() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        config.payerAuthorizer = address(0);
        _deposit(config, DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(config, PAYER_KEY, 9, 9));
        vm.prank(receiver);
        settlement.claim(rows);
        _assertChannel(_id(config), DEPOSIT, 9);
    }

    function test_contractWalletSignsByItsOwner() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        config.payerAuthorizer = address(0);
        config.payer = address(new Wallet(payer));
        _deposit(config, DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(config, PAYER_KEY, 9, 9));
        vm.prank(receiver);
        settlement.claim(rows);
        _assertChannel(_id(config), DEPOSIT, 9);

        rows[0] = _row(config, STRANGER_KEY, 10, 10);
        vm.expectRevert(IBatchSettlement.InvalidSignature.selector);
        vm.prank(receiver);
        settlement.claim(rows);
    }

    function test_revert_emptyBatch() public {
        IBatchSettlement.VoucherClaim[] memory none = new IBatchSettlement.VoucherClaim[](0);
        vm.expectRevert(IBatchSettlement.EmptyBatch.selector);
        settlement.claim(none);
        vm.expectRevert(IBatchSettlement.EmptyBatch.selector);
        settlement.claimWithSignature(none, "");
    }

    function testFuzz_revert_onlyTheReceiverSideClaims(address caller) public {
        vm.assume(caller != receiver && caller != receiverAuthorizer);
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(config, PAYER_AUTHORIZER_KEY, 1, 1));
        vm.expectRevert(IBatchSettlement.NotAuthorizedToClaim.selector);
        vm.prank(caller);
        settlement.claim(rows);
    }

    function test_revert_oneForeignRowFailsTheBatch() public {
        IBatchSettlement.ChannelConfig memory own = _config();
        IBatchSettlement.ChannelConfig memory foreign = _config();
        foreign.receiver = stranger;
        foreign.receiverAuthorizer = stranger;
        _deposit(own, DEPOSIT);
        _deposit(foreign, DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows = new IBatchSettlement.VoucherClaim[](2);
        rows[0] = _row(own, PAYER_AUTHORIZER_KEY, 1, 1);
        rows[1] = _row(foreign, PAYER_AUTHORIZER_KEY, 1, 1);
        vm.expectRevert(IBatchSettlement.NotAuthorizedToClaim.selector);
        vm.prank(receiver);
        settlement.claim(rows);
        _assertChannel(_id(own), DEPOSIT, 0);
    }

    function testFuzz_revert_aboveTheCeiling(uint256 seedA, uint256 seedB) public {
        uint128 ceiling = _amount(seedA, 0, DEPOSIT - 1);
        uint128 claimed = _amount(seedB, ceiling + 1, DEPOSIT);
        _deposit(_config(), DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(_config(), PAYER_AUTHORIZER_KEY, ceiling, claimed));
        vm.expectRevert(IBatchSettlement.ClaimExceedsCeiling.selector);
        vm.prank(receiver);
        settlement.claim(rows);
    }

    function testFuzz_revert_aboveTheBalance(uint256 seed) public {
        uint128 claimed = _amount(seed, DEPOSIT + 1, type(uint128).max);
        _deposit(_config(), DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows =
            _rows(_row(_config(), PAYER_AUTHORIZER_KEY, type(uint128).max, claimed));
        vm.expectRevert(IBatchSettlement.ClaimExceedsBalance.selector);
        vm.prank(receiver);
        settlement.claim(rows);
    }

    function testFuzz_revert_voucherFromAnotherKey(uint256 key) public {
        key = _bound(key, 1, CURVE_ORDER - 1);
        vm.assume(key != PAYER_AUTHORIZER_KEY);
        _deposit(_config(), DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(_config(), key, 5, 5));
        vm.expectRevert(IBatchSettlement.InvalidSignature.selector);
        vm.prank(receiver);
        settlement.claim(rows);
    }

    function test_revert_payersOwnKeyDoesNotSignWhereAnAuthorizerIsNamed() public {
        _deposit(_config(), DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(_config(), PAYER_KEY, 5, 5));
        vm.expectRevert(IBatchSettlement.InvalidSignature.selector);
        vm.prank(receiver);
        settlement.claim(rows);
    }

    function test_revert_otherKeySignsForPayerWithoutAuthorizer() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        config.payerAuthorizer = address(0);
        _deposit(config, DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(config, STRANGER_KEY, 5, 5));
        vm.expectRevert(IBatchSettlement.InvalidSignature.selector);
        vm.prank(receiver);
        settlement.claim(rows);
    }

    function testFuzz_revert_voucherOfAnotherChannel(bytes32 salt) public {
        vm.assume(salt != 0);
        IBatchSettlement.ChannelConfig memory other = _config();
        other.salt = salt;
        _deposit(_config(), DEPOSIT);
        IBatchSettlement.VoucherClaim memory row = _row(other, PAYER_AUTHORIZER_KEY, 5, 5);
        row.voucher.channel = _config();
        vm.expectRevert(IBatchSettlement.InvalidSignature.selector);
        vm.prank(receiver);
        settlement.claim(_rows(row));
    }

    function test_revert_voucherOfAnotherChain() public {
        _deposit(_config(), DEPOSIT);
        bytes32 id = _id(_config());
        vm.chainId(CHAIN_ID + 1);
        bytes memory signature = _sign(PAYER_AUTHORIZER_KEY, settlement.getVoucherDigest(id, 5));
        vm.chainId(CHAIN_ID);
        IBatchSettlement.VoucherClaim memory row = _row(_config(), PAYER_AUTHORIZER_KEY, 5, 5);
        row.signature = signature;
        vm.expectRevert(IBatchSettlement.InvalidSignature.selector);
        vm.prank(receiver);
        settlement.claim(_rows(row));
    }

    function test_revert_malformedVoucherSignatures() public {
        _deposit(_config(), DEPOSIT);
        IBatchSettlement.VoucherClaim memory row = _row(_config(), PAYER_AUTHORIZER_KEY, 5, 5);
        bytes memory good = row.signature;
        (bytes32 r, bytes32 s,) = _split(good);

        row.signature = abi.encodePacked(good, uint8(0));
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, 66));
        vm.prank(receiver);
        settlement.claim(_rows(row));

        row.signature = _malleate(good);
        vm.expectRevert(
            abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureS.selector, bytes32(CURVE_ORDER - uint256(s)))
        );
        vm.prank(receiver);
        settlement.claim(_rows(row));

        row.signature = abi.encodePacked(r, s, uint8(1));
        vm.expectRevert(ECDSA.ECDSAInvalidSignature.selector);
        vm.prank(receiver);
        settlement.claim(_rows(row));
        _assertChannel(_id(_config()), DEPOSIT, 0);
    }
}

contract ClaimWithSignatureTest is ChannelFixture {
    uint128 private constant DEPOSIT = 1_000e6;

    function _twoRows() private returns (IBatchSettlement.VoucherClaim[] memory rows) {
        rows = new IBatchSettlement.VoucherClaim[](2);
        for (uint256 i = 0; i < 2; ++i) {
            IBatchSettlement.ChannelConfig memory config = _config();
            config.salt = bytes32(i);
            _deposit(config, DEPOSIT);
            rows[i] = _row(config, PAYER_AUTHORIZER_KEY, 50, 50);
        }
    }

    function testFuzz_anyoneRelaysASignedBatch(address relay, uint256 seedA, uint256 seedB) public {
        IBatchSettlement.VoucherClaim[] memory rows = _twoRows();
        uint128 a = _amount(seedA, 1, DEPOSIT);
        uint128 b = _amount(seedB, 1, DEPOSIT);
        rows[0] = _row(rows[0].voucher.channel, PAYER_AUTHORIZER_KEY, DEPOSIT, a);
        rows[1] = _row(rows[1].voucher.channel, PAYER_AUTHORIZER_KEY, b, b);
        bytes memory signature = _sign(RECEIVER_AUTHORIZER_KEY, settlement.getClaimBatchDigest(rows));
        bytes32 id = _id(rows[0].voucher.channel);
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.Claimed(id, relay, a, a);
        vm.prank(relay);
        settlement.claimWithSignature(rows, signature);
        _assertChannel(id, DEPOSIT, a);
        _assertChannel(_id(rows[1].voucher.channel), DEPOSIT, b);
        _assertReceiver(uint256(a) + b, 0);

        // A second delivery is without effect.
        vm.prank(relay);
        settlement.claimWithSignature(rows, signature);
        _assertReceiver(uint256(a) + b, 0);
    }

    function test_contractAuthorizerSignsByItsOwner() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        config.receiverAuthorizer = address(new Wallet(receiverAuthorizer));
        _deposit(config, DEPOSIT);
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(config, PAYER_AUTHORIZER_KEY, 3, 3));
        bytes memory signature = _sign(RECEIVER_AUTHORIZER_KEY, settlement.getClaimBatchDigest(rows));
        settlement.claimWithSignature(rows, signature);
        _assertChannel(_id(config), DEPOSIT, 3);
    }

    function testFuzz_revert_batchSignedByAnotherKey(uint256 key) public {
        key = _bound(key, 1, CURVE_ORDER - 1);
        vm.assume(key != RECEIVER_AUTHORIZER_KEY);
        IBatchSettlement.VoucherClaim[] memory rows = _twoRows();
        bytes memory signature = _sign(key, settlement.getClaimBatchDigest(rows));
        vm.expectRevert(IBatchSettlement.InvalidSignature.selector);
        settlement.claimWithSignature(rows, signature);
    }

    function test_revert_batchChangedAfterSigning() public {
        IBatchSettlement.VoucherClaim[] memory rows = _twoRows();
        bytes memory signature = _sign(RECEIVER_AUTHORIZER_KEY, settlement.getClaimBatchDigest(rows));
        rows[1].totalClaimed -= 1;
        vm.expectRevert(IBatchSettlement.InvalidSignature.selector);
        settlement.claimWithSignature(rows, signature);

        rows[1].totalClaimed += 1;
        (rows[0], rows[1]) = (rows[1], rows[0]);
        vm.expectRevert(IBatchSettlement.InvalidSignature.selector);
        settlement.claimWithSignature(rows, signature);
    }

    function test_revert_rowsOfTwoAuthorizers() public {
        IBatchSettlement.VoucherClaim[] memory rows = _twoRows();
        IBatchSettlement.ChannelConfig memory foreign = _config();
        foreign.receiverAuthorizer = stranger;
        _deposit(foreign, DEPOSIT);
        rows[1] = _row(foreign, PAYER_AUTHORIZER_KEY, 50, 50);
        bytes memory signature = _sign(RECEIVER_AUTHORIZER_KEY, settlement.getClaimBatchDigest(rows));
        vm.expectRevert(IBatchSettlement.NotReceiverAuthorizer.selector);
        settlement.claimWithSignature(rows, signature);
        _assertReceiver(0, 0);
    }
}

contract SettleTest is ChannelFixture {
    uint128 private constant DEPOSIT = 1_000e6;

    function testFuzz_settlePaysWhatWasClaimedOnce(address caller, uint256 seedA, uint256 seedB) public {
        uint128 a = _amount(seedA, 1, DEPOSIT);
        uint128 b = _amount(seedB, 1, DEPOSIT);
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, DEPOSIT);
        _claim(config, a, a);
        config.salt = bytes32(uint256(1));
        _deposit(config, DEPOSIT);
        _claim(config, b, b);

        vm.expectEmit(address(settlement));
        emit IBatchSettlement.Settled(receiver, address(token), caller, a + b);
        vm.prank(caller);
        settlement.settle(receiver, address(token));
        _assertReceiver(uint256(a) + b, uint256(a) + b);
        vm.assertEq(token.balanceOf(receiver), uint256(a) + b, "receiver");
        vm.assertEq(token.balanceOf(address(settlement)), 2 * uint256(DEPOSIT) - a - b, "escrow");

        vm.recordLogs();
        settlement.settle(receiver, address(token));
        vm.assertEq(vm.getRecordedLogs().length, 0, "events of an empty settle");
        vm.assertEq(token.balanceOf(receiver), uint256(a) + b, "receiver after an empty settle");
    }

    function test_oneTokensClaimsNeverPayOutAnother() public {
        _deposit(_config(), DEPOSIT);
        _claim(_config(), 40, 40);
        ReenteringToken other = new ReenteringToken();
        other.mint(address(settlement), 100);
        settlement.settle(receiver, address(other));
        vm.assertEq(other.balanceOf(receiver), 0, "other token");
        _assertReceiver(40, 0);
    }

    function test_revert_tokenReentersOnPayout() public {
        ReenteringToken hostile = new ReenteringToken();
        SkewedCollector pull = new SkewedCollector();
        hostile.mint(address(pull), 100);
        IBatchSettlement.ChannelConfig memory config = _config();
        config.token = address(hostile);
        settlement.deposit(config, 100, address(pull), abi.encode(int256(0)));
        _claim(config, 60, 60);
        hostile.arm(abi.encodeCall(settlement.settle, (receiver, address(hostile))));
        vm.expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        settlement.settle(receiver, address(hostile));
        vm.prank(receiver);
        vm.expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        settlement.refund(config, 40);
    }
}
