// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {IDepositCollector} from "./interfaces/IDepositCollector.sol";
import {IERC3009} from "./interfaces/IERC3009.sol";

/// @title Erc3009Collector
/// @notice Pulls a deposit by a `receiveWithAuthorization` that the payer signed: the payer needs no gas.
/// @dev ERC-3009 lets only the recipient deliver such an authorization, so the tokens come here and are passed
/// on in the same call. The authorization's nonce is `keccak256(abi.encode(channelId, salt))`: the payer's
/// signature names the channel, and a relay cannot send the tokens into another one.
///
/// Assumption: the code at `x402BatchSettlement` is the scheme's. It is a constant and not an immutable so that
/// this contract's runtime code, too, can be placed in a genesis block.
contract Erc3009Collector is IDepositCollector {
    using SafeERC20 for IERC20;

    /// @notice The only caller: the scheme's well-known address, the same on every chain.
    address public constant x402BatchSettlement = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003;

    error OnlyX402BatchSettlement();

    /// @inheritdoc IDepositCollector
    /// @param collectorData `abi.encode(uint256 validAfter, uint256 validBefore, uint256 salt, bytes signature)`.
    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata collectorData)
        external
    {
        if (msg.sender != x402BatchSettlement) revert OnlyX402BatchSettlement();

        (uint256 validAfter, uint256 validBefore, uint256 salt, bytes memory signature) =
            abi.decode(collectorData, (uint256, uint256, uint256, bytes));
        bytes32 nonce = keccak256(abi.encode(channelId, salt));
        IERC3009(token)
            .receiveWithAuthorization(payer, address(this), amount, validAfter, validBefore, nonce, signature);
        IERC20(token).safeTransfer(msg.sender, amount);
    }
}
