// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title Transfers by signed authorization (ERC-3009), in both signature forms of USDC 2.2
/// @dev Validity is exclusive at both ends: `validAfter < block.timestamp < validBefore`, in Unix seconds.
/// A nonce is 32 arbitrary bytes and is used at most once per signer.
interface IERC3009 {
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
    event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);

    /// @notice True once the nonce was used or cancelled.
    function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);

    /// @notice Anyone may deliver the authorization.
    /// Warning: who relays it decides when within the window it happens.
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;

    /// @dev As above; a contract wallet's signature is accepted too (ERC-1271).
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external;

    /// @notice Only `to` may deliver the authorization, so nobody can run ahead of the recipient's own call.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;

    /// @dev As above; a contract wallet's signature is accepted too (ERC-1271).
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external;

    /// @notice Uses up a nonce without a transfer.
    function cancelAuthorization(address authorizer, bytes32 nonce, uint8 v, bytes32 r, bytes32 s) external;

    /// @dev As above; a contract wallet's signature is accepted too (ERC-1271).
    function cancelAuthorization(address authorizer, bytes32 nonce, bytes memory signature) external;
}
