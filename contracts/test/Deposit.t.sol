// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {Erc3009Collector} from "../src/Erc3009Collector.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {IBatchSettlement} from "../src/interfaces/IBatchSettlement.sol";
import {ChannelFixture} from "./ChannelFixture.sol";
import {ReenteringCollector, SkewedCollector} from "./mocks/Collectors.sol";
import {Wallet} from "./mocks/Wallet.sol";

contract DepositTest is ChannelFixture {
    function testFuzz_depositsAddUpAndOnlyTheFirstCreates(uint256 seedA, uint256 seedB) public {
        uint128 a = _amount(seedA, 1, type(uint128).max / 2);
        uint128 b = _amount(seedB, 1, type(uint128).max / 2);
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        token.mint(payer, uint256(a) + b);

        bytes memory first = _collectorData(config, PAYER_KEY, a, 1);
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.ChannelCreated(id, config);
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.Deposited(id, stranger, a, a);
        vm.prank(stranger);
        settlement.deposit(config, a, collector, first);
        _assertChannel(id, a, 0);
        vm.assertEq(token.balanceOf(payer), b, "payer after the first deposit");
        vm.assertEq(token.balanceOf(address(settlement)), a, "escrow after the first deposit");

        bytes memory second = _collectorData(config, PAYER_KEY, b, 2);
        vm.recordLogs();
        vm.expectEmit(address(settlement));
        emit IBatchSettlement.Deposited(id, stranger, b, a + b);
        vm.prank(stranger);
        settlement.deposit(config, b, collector, second);
        vm.assertEq(_countLogs(vm.getRecordedLogs(), IBatchSettlement.ChannelCreated.selector), 0, "created again");
        _assertChannel(id, uint256(a) + b, 0);
        vm.assertEq(token.balanceOf(payer), 0, "payer after the second deposit");
        vm.assertEq(token.balanceOf(address(settlement)), uint256(a) + b, "escrow after the second deposit");
        vm.assertEq(token.balanceOf(collector), 0, "nothing stays with the collector");
    }

    function testFuzz_withdrawDelayIsAcceptedExactlyInItsRange(uint40 delay) public {
        IBatchSettlement.ChannelConfig memory config = _config();
        // Half of the runs land near the range, where the boundaries are.
        config.withdrawDelay = delay % 2 == 0 ? delay : uint40(_bound(delay, 0, 31 days));
        token.mint(payer, 1);
        bytes memory data = _collectorData(config, PAYER_KEY, 1, 1);
        bool inRange = config.withdrawDelay >= 15 minutes && config.withdrawDelay <= 30 days;
        if (!inRange) vm.expectRevert(IBatchSettlement.WithdrawDelayOutOfRange.selector);
        settlement.deposit(config, 1, collector, data);
        _assertChannel(_id(config), inRange ? 1 : 0, 0);
    }

    function test_withdrawDelayBoundaries() public {
        uint40[2] memory good = [uint40(15 minutes), 30 days];
        uint40[3] memory bad = [uint40(0), 15 minutes - 1, 30 days + 1];
        IBatchSettlement.ChannelConfig memory config = _config();
        for (uint256 i = 0; i < good.length; ++i) {
            config.withdrawDelay = good[i];
            _deposit(config, 1);
            _assertChannel(_id(config), 1, 0);
        }
        for (uint256 i = 0; i < bad.length; ++i) {
            config.withdrawDelay = bad[i];
            vm.expectRevert(IBatchSettlement.WithdrawDelayOutOfRange.selector);
            settlement.deposit(config, 1, collector, "");
        }
    }

    function test_contractWalletPaysByItsOwnersSignature() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        config.payer = address(new Wallet(payer));
        _deposit(config, 5e6);
        _assertChannel(_id(config), 5e6, 0);
    }

    function test_revert_zeroAddressInChannel() public {
        IBatchSettlement.ChannelConfig[4] memory configs = [_config(), _config(), _config(), _config()];
        configs[0].payer = address(0);
        configs[1].receiver = address(0);
        configs[2].receiverAuthorizer = address(0);
        configs[3].token = address(0);
        for (uint256 i = 0; i < configs.length; ++i) {
            vm.expectRevert(IBatchSettlement.InvalidChannel.selector);
            settlement.deposit(configs[i], 1, collector, "");
        }
    }

    function test_revert_zeroDeposit() public {
        vm.expectRevert(IBatchSettlement.ZeroDeposit.selector);
        settlement.deposit(_config(), 0, collector, "");
    }

    function test_revert_noCollector() public {
        vm.expectRevert(IBatchSettlement.InvalidCollector.selector);
        settlement.deposit(_config(), 1, address(0), "");
    }

    function test_revert_balanceOverflows() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, type(uint128).max);
        vm.expectRevert(IBatchSettlement.DepositOverflow.selector);
        settlement.deposit(config, 1, collector, "");
    }

    function test_revert_collectorBringsTooLittleTooMuchOrNothing() public {
        SkewedCollector skewed = new SkewedCollector();
        token.mint(address(skewed), 1_000);
        IBatchSettlement.ChannelConfig memory config = _config();
        int256[3] memory skews = [int256(-1), 1, -100];
        for (uint256 i = 0; i < skews.length; ++i) {
            vm.expectRevert(IBatchSettlement.DepositCollectionFailed.selector);
            settlement.deposit(config, 100, address(skewed), abi.encode(skews[i]));
        }
        _assertChannel(_id(config), 0, 0);
        settlement.deposit(config, 100, address(skewed), abi.encode(int256(0)));
        _assertChannel(_id(config), 100, 0);
    }

    function test_revert_collectorReenters() public {
        ReenteringCollector reentering = new ReenteringCollector();
        token.mint(address(reentering), 100);
        IBatchSettlement.ChannelConfig memory config = _config();
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(config, PAYER_AUTHORIZER_KEY, 1, 1));
        bytes[] memory inner = new bytes[](1);
        inner[0] = abi.encodeCall(settlement.settle, (receiver, address(token)));

        bytes[9] memory calls = [
            abi.encodeCall(settlement.deposit, (config, 1, collector, "")),
            abi.encodeCall(settlement.claim, (rows)),
            abi.encodeCall(settlement.claimWithSignature, (rows, "")),
            abi.encodeCall(settlement.settle, (receiver, address(token))),
            abi.encodeCall(settlement.initiateWithdraw, (config, 1)),
            abi.encodeCall(settlement.finalizeWithdraw, (config)),
            abi.encodeCall(settlement.refund, (config, 1)),
            abi.encodeCall(settlement.refundWithSignature, (config, 1, 0, "")),
            abi.encodeCall(settlement.multicall, (inner))
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            vm.expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
            settlement.deposit(config, 100, address(reentering), calls[i]);
        }
    }
}

contract Erc3009CollectorTest is ChannelFixture {
    function test_settlementAddressIsTheWellKnownOne() public view {
        vm.assertEq(Erc3009Collector(collector).x402BatchSettlement(), address(settlement), "address");
    }

    function test_revert_onlyTheSettlementCollects() public {
        token.mint(payer, 100);
        bytes memory data = _collectorData(_config(), PAYER_KEY, 100, 1);
        bytes32 id = _id(_config());
        vm.expectRevert(Erc3009Collector.OnlyX402BatchSettlement.selector);
        vm.prank(payer);
        Erc3009Collector(collector).collect(payer, address(token), 100, id, data);
    }

    function testFuzz_authorizationFitsOnlyTheChannelItNames(bytes32 otherSalt) public {
        vm.assume(otherSalt != 0);
        IBatchSettlement.ChannelConfig memory config = _config();
        token.mint(payer, 100);
        bytes memory data = _collectorData(config, PAYER_KEY, 100, 1);
        config.salt = otherSalt;
        vm.expectRevert(TestUSD.InvalidSignature.selector);
        settlement.deposit(config, 100, collector, data);
    }

    function testFuzz_authorizationFitsOnlyTheAmountItNames(uint128 otherAmount) public {
        vm.assume(otherAmount != 100 && otherAmount != 0);
        IBatchSettlement.ChannelConfig memory config = _config();
        token.mint(payer, type(uint128).max);
        bytes memory data = _collectorData(config, PAYER_KEY, 100, 1);
        vm.expectRevert(TestUSD.InvalidSignature.selector);
        settlement.deposit(config, otherAmount, collector, data);
    }

    function test_revert_authorizationUsedTwice() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        token.mint(payer, 200);
        bytes memory data = _collectorData(config, PAYER_KEY, 100, 7);
        settlement.deposit(config, 100, collector, data);
        bytes32 nonce = keccak256(abi.encode(_id(config), uint256(7)));
        vm.expectRevert(abi.encodeWithSelector(TestUSD.AuthorizationUsedOrCanceled.selector, payer, nonce));
        settlement.deposit(config, 100, collector, data);
    }

    function test_revert_strangerSignsForThePayer() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        token.mint(payer, 100);
        bytes memory data = _collectorData(config, STRANGER_KEY, 100, 1);
        vm.expectRevert(TestUSD.InvalidSignature.selector);
        settlement.deposit(config, 100, collector, data);
    }
}
