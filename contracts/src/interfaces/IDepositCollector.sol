// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title Deposit collector of the x402 `batch-settlement` scheme
/// @notice Knows one way of pulling a payer's tokens: a signed authorization, an allowance, a permit.
/// @dev Assumption: after `collect` returns, the caller's balance of `token` has grown by exactly
/// `amount`. The caller measures that itself, so a collector is never trusted with more than the payer
/// authorised it to move.
interface IDepositCollector {
    /// @notice Moves `amount` of `token` from `payer` to the caller.
    /// @param amount Token base units.
    /// @param channelId The channel that is credited; a collector binds it into what the payer signed.
    /// @param collectorData Whatever this collector needs, ABI-encoded.
    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata collectorData)
        external;
}
