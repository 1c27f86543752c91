// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Vectors} from "../script/Vectors.s.sol";
import {BatchSettlement} from "../src/BatchSettlement.sol";
import {ReceiptLib} from "../src/ReceiptLib.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {IBatchSettlement} from "../src/interfaces/IBatchSettlement.sol";

/// @notice Reads vectors/eip712.json back and holds the contracts to it.
contract VectorsTest is Vectors {
    string private json;
    BatchSettlement private constant settlement = BatchSettlement(SETTLEMENT);

    function setUp() public {
        vm.warp(1_800_000_000);
        json = vm.readFile(FILE);
        vm.etch(SETTLEMENT, vm.getDeployedCode("BatchSettlement.sol:BatchSettlement"));
        vm.etch(COLLECTOR, vm.getDeployedCode("Erc3009Collector.sol:Erc3009Collector"));
    }

    function _at(string memory list, uint256 i, string memory key) private pure returns (string memory) {
        return string.concat(".", list, "[", vm.toString(i), "].", key);
    }

    function _config(uint256 i) private view returns (IBatchSettlement.ChannelConfig memory) {
        return IBatchSettlement.ChannelConfig({
            payer: vm.parseJsonAddress(json, _at("channels", i, "config.payer")),
            payerAuthorizer: vm.parseJsonAddress(json, _at("channels", i, "config.payerAuthorizer")),
            receiver: vm.parseJsonAddress(json, _at("channels", i, "config.receiver")),
            receiverAuthorizer: vm.parseJsonAddress(json, _at("channels", i, "config.receiverAuthorizer")),
            token: vm.parseJsonAddress(json, _at("channels", i, "config.token")),
            withdrawDelay: uint40(vm.parseJsonUint(json, _at("channels", i, "config.withdrawDelay"))),
            salt: vm.parseJsonBytes32(json, _at("channels", i, "config.salt"))
        });
    }

    function _uint128(string memory list, uint256 i, string memory key) private view returns (uint128) {
        uint256 value = vm.parseJsonUint(json, _at(list, i, key));
        require(value <= type(uint128).max, "not a uint128");
        return uint128(value);
    }

    /// @dev The signature of `key` over `digest`, where both are fields of the file.
    function _assertSigned(string memory list, uint256 i, string memory key, string memory what) private view {
        bool plain = bytes(what).length == 0;
        bytes32 digest = vm.parseJsonBytes32(json, _at(list, i, plain ? "digest" : string.concat(what, "Digest")));
        bytes memory signature =
            vm.parseJsonBytes(json, _at(list, i, plain ? "signature" : string.concat(what, "Signature")));
        uint256 privateKey = uint256(vm.parseJsonBytes32(json, _at(list, i, key)));
        vm.assertEq(signature, _sign(privateKey, digest), string.concat(list, " signature ", what));
    }

    function test_fileIsWhatTheScriptWrites() public {
        vm.assertTrue(keccak256(bytes(render())) == keccak256(bytes(json)), "stale: run `npm run vectors`");
    }

    function test_channels() public {
        uint256 n;
        for (; vm.keyExistsJson(json, _at("channels", n, "channelId")); ++n) {
            address at = vm.parseJsonAddress(json, _at("channels", n, "verifyingContract"));
            vm.etch(at, SETTLEMENT.code);
            vm.chainId(vm.parseJsonUint(json, _at("channels", n, "chainId")));
            bytes32 id = vm.parseJsonBytes32(json, _at("channels", n, "channelId"));
            vm.assertEq(BatchSettlement(at).getChannelId(_config(n)), id, "channelId");

            uint128 ceiling = _uint128("channels", n, "maxClaimableAmount");
            vm.assertEq(
                BatchSettlement(at).getVoucherDigest(id, ceiling),
                vm.parseJsonBytes32(json, _at("channels", n, "voucherDigest")),
                "voucher"
            );
            uint256 nonce = vm.parseJsonUint(json, _at("channels", n, "refundNonce"));
            vm.assertEq(
                BatchSettlement(at).getRefundDigest(id, nonce, _uint128("channels", n, "refundAmount")),
                vm.parseJsonBytes32(json, _at("channels", n, "refundDigest")),
                "refund"
            );
            IBatchSettlement.VoucherClaim[] memory rows = new IBatchSettlement.VoucherClaim[](1);
            rows[0].voucher = IBatchSettlement.Voucher(_config(n), ceiling);
            rows[0].totalClaimed = _uint128("channels", n, "totalClaimed");
            vm.assertEq(
                BatchSettlement(at).getClaimBatchDigest(rows),
                vm.parseJsonBytes32(json, _at("channels", n, "claimBatchDigest")),
                "claim batch"
            );
            _assertSigned("channels", n, "payerKey", "voucher");
            _assertSigned("channels", n, "receiverAuthorizerKey", "claimBatch");
            _assertSigned("channels", n, "receiverAuthorizerKey", "refund");
        }
        vm.assertEq(n, 4, "channel vectors");
    }

    /// @dev Every deposit of the file, as written, credits the first channel; then its voucher is claimed.
    function test_depositsAndTheVoucherAreAccepted() public {
        vm.chainId(vm.parseJsonUint(json, ".deposits[0].chainId"));
        IBatchSettlement.ChannelConfig memory config = _config(0);
        TestUSD token = TestUSD(config.token);
        vm.etch(address(token), address(_newToken()).code);
        uint256 balance;
        uint256 n;
        for (; vm.keyExistsJson(json, _at("deposits", n, "digest")); ++n) {
            uint128 amount = _uint128("deposits", n, "value");
            // The copied code has empty storage, so nobody is its owner.
            vm.prank(address(0));
            token.mint(config.payer, amount);
            bytes memory data = vm.parseJsonBytes(json, _at("deposits", n, "collectorData"));
            settlement.deposit(config, amount, vm.parseJsonAddress(json, _at("deposits", n, "to")), data);
            bytes32 nonce = vm.parseJsonBytes32(json, _at("deposits", n, "nonce"));
            vm.assertTrue(token.authorizationState(config.payer, nonce), "nonce");
            _assertSigned("deposits", n, "fromKey", "");
            balance += amount;
        }
        vm.assertEq(n, 2, "deposit vectors");

        IBatchSettlement.VoucherClaim[] memory rows = new IBatchSettlement.VoucherClaim[](1);
        rows[0] = IBatchSettlement.VoucherClaim({
            voucher: IBatchSettlement.Voucher(config, _uint128("channels", 0, "maxClaimableAmount")),
            signature: vm.parseJsonBytes(json, ".channels[0].voucherSignature"),
            totalClaimed: _uint128("channels", 0, "totalClaimed")
        });
        settlement.claimWithSignature(rows, vm.parseJsonBytes(json, ".channels[0].claimBatchSignature"));
        uint128 refund = _uint128("channels", 0, "refundAmount");
        settlement.refundWithSignature(config, refund, 0, vm.parseJsonBytes(json, ".channels[0].refundSignature"));
        (uint128 left, uint128 claimed) = settlement.channels(vm.parseJsonBytes32(json, ".channels[0].channelId"));
        vm.assertEq(left, balance - refund, "balance");
        vm.assertEq(claimed, rows[0].totalClaimed, "claimed");
    }

    function test_receipts() public view {
        uint256 n;
        for (; vm.keyExistsJson(json, _at("receipts", n, "digest")); ++n) {
            bytes32 domain = ReceiptLib.domainSeparator(
                vm.parseJsonUint(json, _at("receipts", n, "chainId")),
                vm.parseJsonAddress(json, _at("receipts", n, "verifyingContract"))
            );
            vm.assertEq(domain, vm.parseJsonBytes32(json, _at("receipts", n, "domainSeparator")), "domain");
            ReceiptLib.Receipt memory r = _receipt(n);
            vm.assertEq(ReceiptLib.digest(r, domain), vm.parseJsonBytes32(json, _at("receipts", n, "digest")), "digest");
            bytes memory signature = vm.parseJsonBytes(json, _at("receipts", n, "signature"));
            address provider = vm.parseJsonAddress(json, _at("receipts", n, "provider"));
            vm.assertEq(ReceiptLib.recover(r, domain, signature), provider, "provider");
            _assertSigned("receipts", n, "providerKey", "");
        }
        vm.assertEq(n, 3, "receipt vectors");
    }

    function _receipt(uint256 i) private view returns (ReceiptLib.Receipt memory) {
        return ReceiptLib.Receipt({
            channelId: vm.parseJsonBytes32(json, _at("receipts", i, "receipt.channelId")),
            requestHash: vm.parseJsonBytes32(json, _at("receipts", i, "receipt.requestHash")),
            responseHash: vm.parseJsonBytes32(json, _at("receipts", i, "receipt.responseHash")),
            modelId: vm.parseJsonBytes32(json, _at("receipts", i, "receipt.modelId")),
            promptTokens: uint64(vm.parseJsonUint(json, _at("receipts", i, "receipt.promptTokens"))),
            outputTokens: uint64(vm.parseJsonUint(json, _at("receipts", i, "receipt.outputTokens"))),
            charged: _uint128("receipts", i, "receipt.charged"),
            chargedTotal: _uint128("receipts", i, "receipt.chargedTotal"),
            issuedAt: uint64(vm.parseJsonUint(json, _at("receipts", i, "receipt.issuedAt")))
        });
    }
}
