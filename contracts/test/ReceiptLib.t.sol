// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {ReceiptLib} from "../src/ReceiptLib.sol";
import {Base} from "./Base.sol";

contract ReceiptLibTest is Base {
    function _domain(uint256 chainId, address registry) private pure returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Assay"),
                keccak256("1"),
                chainId,
                registry
            )
        );
    }

    function testFuzz_digestIsTheTypedDataHash(ReceiptLib.Receipt memory r, uint256 chainId, address registry)
        public
        pure
    {
        bytes32 typehash = keccak256(
            "Receipt(bytes32 channelId,bytes32 requestHash,bytes32 responseHash,bytes32 modelId,uint64 promptTokens,uint64 outputTokens,uint128 charged,uint128 chargedTotal,uint64 issuedAt)"
        );
        bytes32 structHash = keccak256(
            bytes.concat(
                abi.encode(typehash, r.channelId, r.requestHash, r.responseHash, r.modelId),
                abi.encode(r.promptTokens, r.outputTokens, r.charged, r.chargedTotal, r.issuedAt)
            )
        );
        bytes32 domain = ReceiptLib.domainSeparator(chainId, registry);
        vm.assertEq(domain, _domain(chainId, registry), "domain");
        vm.assertEq(ReceiptLib.digest(r, domain), keccak256(abi.encodePacked(hex"1901", domain, structHash)), "digest");
    }

    function testFuzz_recoversTheSigner(ReceiptLib.Receipt memory r, uint256 key) public pure {
        key = _bound(key, 1, CURVE_ORDER - 1);
        bytes32 domain = ReceiptLib.domainSeparator(1, address(1));
        bytes memory signature = _sign(key, ReceiptLib.digest(r, domain));
        vm.assertEq(ReceiptLib.recover(r, domain, signature), vm.addr(key), "signer");

        r.charged ^= 1;
        vm.assertTrue(ReceiptLib.recover(r, domain, signature) != vm.addr(key), "another receipt");
        r.charged ^= 1;
        bytes32 elsewhere = ReceiptLib.domainSeparator(2, address(1));
        vm.assertTrue(ReceiptLib.recover(r, elsewhere, signature) != vm.addr(key), "another chain");
    }

    function recover(bytes calldata signature) external pure returns (address) {
        ReceiptLib.Receipt memory r;
        return ReceiptLib.recover(r, bytes32(0), signature);
    }

    function test_revert_malformedSignature() public {
        ReceiptLib.Receipt memory r;
        bytes memory good = _sign(1, ReceiptLib.digest(r, bytes32(0)));
        vm.assertEq(this.recover(good), vm.addr(1), "the good one");
        (, bytes32 s,) = _split(good);
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, 0));
        this.recover("");
        vm.expectRevert(
            abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureS.selector, bytes32(CURVE_ORDER - uint256(s)))
        );
        this.recover(_malleate(good));
    }
}
