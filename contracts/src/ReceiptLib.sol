// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

/// @title ReceiptLib
/// @notice The typed-data hash of a provider's receipt, and who signed it.
/// @dev Domain: name "Assay", version "1", the chain's id, and the ProviderRegistry as verifying contract, because
/// the signer is a registered operator. Pure, so that a court can judge a receipt with nothing but its bytes.
library ReceiptLib {
    /// @param channelId The payment channel that was charged.
    /// @param requestHash Commitment to everything that was asked.
    /// @param responseHash Commitment to the first `outputTokens` tokens of the answer: a provider may sign several
    /// receipts for one request as it goes on, but only one for each length.
    /// @param charged Token base units for this request so far.
    /// @param chargedTotal Token base units for the channel so far, this request included.
    /// @param issuedAt Unix seconds.
    struct Receipt {
        bytes32 channelId;
        bytes32 requestHash;
        bytes32 responseHash;
        bytes32 modelId;
        uint64 promptTokens;
        uint64 outputTokens;
        uint128 charged;
        uint128 chargedTotal;
        uint64 issuedAt;
    }

    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(bytes32 channelId,bytes32 requestHash,bytes32 responseHash,bytes32 modelId,uint64 promptTokens,uint64 outputTokens,uint128 charged,uint128 chargedTotal,uint64 issuedAt)"
    );
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");

    function domainSeparator(uint256 chainId, address registry) internal pure returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPEHASH, keccak256("Assay"), keccak256("1"), chainId, registry));
    }

    function structHash(Receipt memory receipt) internal pure returns (bytes32) {
        return keccak256(abi.encode(RECEIPT_TYPEHASH, receipt));
    }

    function digest(Receipt memory receipt, bytes32 domain) internal pure returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(domain, structHash(receipt));
    }

    /// @notice The operator that signed.
    /// @dev Reverts with ECDSA's error on a signature that is not 65 bytes, has a high `s`, or recovers to nobody.
    function recover(Receipt memory receipt, bytes32 domain, bytes memory signature) internal pure returns (address) {
        return ECDSA.recover(digest(receipt, domain), signature);
    }
}
