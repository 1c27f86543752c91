// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {IBatchSettlement} from "../src/interfaces/IBatchSettlement.sol";
import {ChannelFixture} from "./ChannelFixture.sol";

/// @notice Whole transactions, intrinsic cost and calldata included, on cold storage; the figures are in snapshots/.
/// @dev Channels were claimed from before and receivers were settled before, as in daily use: only `first` is not.
contract GasTest is ChannelFixture {
    uint128 private constant DEPOSIT = 1_000e6;

    /// @dev Fifty payers with a channel each to one receiver.
    function _usedChannels(uint256 n) private returns (IBatchSettlement.VoucherClaim[] memory rows) {
        rows = new IBatchSettlement.VoucherClaim[](n);
        for (uint256 i = 0; i < n; ++i) {
            uint256 key = PAYER_KEY + 1_000 + i;
            IBatchSettlement.ChannelConfig memory config = _config();
            config.payer = vm.addr(key);
            config.payerAuthorizer = config.payer;
            config.salt = keccak256(abi.encode(i));
            _depositFrom(config, key, DEPOSIT);
            IBatchSettlement.VoucherClaim[] memory first = _rows(_row(config, key, 1_234_567, 1_234_567));
            vm.prank(receiver);
            settlement.claim(first);
            rows[i] = _row(config, key, 98_765_432, 87_654_321);
        }
        settlement.settle(receiver, address(token));
    }

    function _measureClaim(uint256 n, string memory name) private returns (uint256) {
        IBatchSettlement.VoucherClaim[] memory rows = _usedChannels(n);
        vm.prank(receiver);
        settlement.claim(rows);
        return vm.snapshotGasLastCall(name);
    }

    function test_gas_claimOneRow() public {
        vm.assertLe(_measureClaim(1, "claim_1"), 55_000, "goal for a single claim");
    }

    function test_gas_claimFiftyRows() public {
        vm.assertLe(_measureClaim(50, "claim_50") / 50, 22_000, "goal for a row of fifty");
    }

    function test_gas_claimWithSignatureFiftyRows() public {
        IBatchSettlement.VoucherClaim[] memory rows = _usedChannels(50);
        bytes memory signature = _sign(RECEIVER_AUTHORIZER_KEY, settlement.getClaimBatchDigest(rows));
        vm.prank(stranger);
        settlement.claimWithSignature(rows, signature);
        vm.assertLe(vm.snapshotGasLastCall("claimWithSignature_50") / 50, 22_000, "goal for a row of fifty");
    }

    function test_gas_depositSettleAndTheWaysBack() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        token.mint(payer, 2 * DEPOSIT);
        bytes memory data = _collectorData(config, PAYER_KEY, DEPOSIT, 1);
        settlement.deposit(config, DEPOSIT, collector, data);
        vm.snapshotGasLastCall("deposit_first");
        data = _collectorData(config, PAYER_KEY, DEPOSIT, 2);
        settlement.deposit(config, DEPOSIT, collector, data);
        vm.snapshotGasLastCall("deposit_again");

        _claim(config, 100, 100);
        settlement.settle(receiver, address(token));
        _claim(config, 200, 200);
        settlement.settle(receiver, address(token));
        vm.snapshotGasLastCall("settle");

        vm.prank(receiver);
        settlement.refund(config, 100);
        vm.snapshotGasLastCall("refund");
        vm.prank(payer);
        settlement.initiateWithdraw(config, 100);
        vm.snapshotGasLastCall("initiateWithdraw");
        vm.warp(START + DELAY);
        vm.prank(payer);
        settlement.finalizeWithdraw(config);
        vm.snapshotGasLastCall("finalizeWithdraw");
    }

    function test_gas_registerAndStake() public {
        ProviderRegistry registry = _newRegistry(token, 100e6, 7 days, stranger, 10_000);
        token.mint(payer, 1_000e6);
        vm.prank(payer);
        token.approve(address(registry), type(uint256).max);
        vm.prank(payer);
        registry.register("provider.example:7443", bytes32(uint256(1)), bytes32(uint256(2)));
        vm.snapshotGasLastCall("register");
        vm.prank(payer);
        registry.stake(500e6);
        vm.snapshotGasLastCall("stake_first");
        vm.prank(stranger);
        registry.slash(payer, 1e6, receiver);
        vm.snapshotGasLastCall("slash_first");
    }
}
