// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {IBatchSettlement} from "../src/interfaces/IBatchSettlement.sol";
import {Base} from "./Base.sol";

/// @notice The contracts as genesis has them: runtime code put at the well-known addresses, no constructor run.
abstract contract ChannelFixture is Base {
    BatchSettlement internal constant settlement = BatchSettlement(0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003);
    address internal constant collector = 0x4020806089470a89826cB9fB1f4059150b550004;

    uint256 internal constant PAYER_KEY = 0xa11ce;
    uint256 internal constant PAYER_AUTHORIZER_KEY = 0xa11ce2;
    uint256 internal constant RECEIVER_KEY = 0xb0b;
    uint256 internal constant RECEIVER_AUTHORIZER_KEY = 0xb0b2;
    uint256 internal constant STRANGER_KEY = 0xbad;

    uint40 internal constant DELAY = 1 days;
    /// @dev Constants, because the optimizer takes time and chain id for fixed within a test's one transaction.
    uint256 internal constant START = 1_800_000_000;
    uint256 internal constant CHAIN_ID = 31_337;

    address internal payer = vm.addr(PAYER_KEY);
    address internal payerAuthorizer = vm.addr(PAYER_AUTHORIZER_KEY);
    address internal receiver = vm.addr(RECEIVER_KEY);
    address internal receiverAuthorizer = vm.addr(RECEIVER_AUTHORIZER_KEY);
    address internal stranger = vm.addr(STRANGER_KEY);

    TestUSD internal token;
    uint256 private _authorizations;

    function setUp() public virtual {
        vm.warp(START);
        vm.chainId(CHAIN_ID);
        vm.etch(address(settlement), vm.getDeployedCode("BatchSettlement.sol:BatchSettlement"));
        vm.etch(collector, vm.getDeployedCode("Erc3009Collector.sol:Erc3009Collector"));
        token = _newToken();
    }

    function _config() internal view returns (IBatchSettlement.ChannelConfig memory) {
        return IBatchSettlement.ChannelConfig({
            payer: payer,
            payerAuthorizer: payerAuthorizer,
            receiver: receiver,
            receiverAuthorizer: receiverAuthorizer,
            token: address(token),
            withdrawDelay: DELAY,
            salt: bytes32(0)
        });
    }

    function _id(IBatchSettlement.ChannelConfig memory config) internal view returns (bytes32) {
        return settlement.getChannelId(config);
    }

    /// @dev What a payer hands to a relay: a signed authorization that names the channel.
    function _collectorData(
        IBatchSettlement.ChannelConfig memory config,
        uint256 payerKey,
        uint256 amount,
        uint256 salt
    ) internal view returns (bytes memory) {
        bytes32 nonce = keccak256(abi.encode(_id(config), salt));
        bytes32 structHash = keccak256(
            abi.encode(
                token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH(),
                config.payer,
                collector,
                amount,
                uint256(0),
                type(uint256).max,
                nonce
            )
        );
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash));
        return abi.encode(uint256(0), type(uint256).max, salt, _sign(payerKey, digest));
    }

    function _deposit(IBatchSettlement.ChannelConfig memory config, uint128 amount) internal {
        _depositFrom(config, PAYER_KEY, amount);
    }

    function _depositFrom(IBatchSettlement.ChannelConfig memory config, uint256 payerKey, uint128 amount) internal {
        token.mint(config.payer, amount);
        bytes memory data = _collectorData(config, payerKey, amount, ++_authorizations);
        settlement.deposit(config, amount, collector, data);
    }

    function _row(
        IBatchSettlement.ChannelConfig memory config,
        uint256 signerKey,
        uint128 ceiling,
        uint128 totalClaimed
    ) internal view returns (IBatchSettlement.VoucherClaim memory) {
        bytes32 digest = settlement.getVoucherDigest(_id(config), ceiling);
        return IBatchSettlement.VoucherClaim({
            voucher: IBatchSettlement.Voucher({channel: config, maxClaimableAmount: ceiling}),
            signature: _sign(signerKey, digest),
            totalClaimed: totalClaimed
        });
    }

    function _rows(IBatchSettlement.VoucherClaim memory row)
        internal
        pure
        returns (IBatchSettlement.VoucherClaim[] memory rows)
    {
        rows = new IBatchSettlement.VoucherClaim[](1);
        rows[0] = row;
    }

    /// @dev One channel's claim, signed by the payer's authorizer, submitted by the receiver.
    function _claim(IBatchSettlement.ChannelConfig memory config, uint128 ceiling, uint128 totalClaimed) internal {
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(config, PAYER_AUTHORIZER_KEY, ceiling, totalClaimed));
        vm.prank(config.receiver);
        settlement.claim(rows);
    }

    function _assertChannel(bytes32 channelId, uint256 balance, uint256 totalClaimed) internal view {
        (uint128 actualBalance, uint128 actualClaimed) = settlement.channels(channelId);
        vm.assertEq(actualBalance, balance, "channel balance");
        vm.assertEq(actualClaimed, totalClaimed, "channel totalClaimed");
    }

    function _assertReceiver(uint256 totalClaimed, uint256 totalSettled) internal view {
        (uint128 actualClaimed, uint128 actualSettled) = settlement.receivers(receiver, address(token));
        vm.assertEq(actualClaimed, totalClaimed, "receiver totalClaimed");
        vm.assertEq(actualSettled, totalSettled, "receiver totalSettled");
    }

    function _assertWithdrawal(bytes32 channelId, uint256 amount, uint256 initiatedAt) internal view {
        (uint128 actualAmount, uint40 actualAt) = settlement.pendingWithdrawals(channelId);
        vm.assertEq(actualAmount, amount, "withdrawal amount");
        vm.assertEq(actualAt, initiatedAt, "withdrawal initiatedAt");
    }
}
