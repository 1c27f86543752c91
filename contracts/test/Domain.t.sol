// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {IBatchSettlement} from "../src/interfaces/IBatchSettlement.sol";
import {ChannelFixture} from "./ChannelFixture.sol";

/// @notice Typed data written out a second time, by hand, and the batching entry point.
contract DomainTest is ChannelFixture {
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");

    function _domain(uint256 chain, address at) private pure returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPEHASH, keccak256("x402 Batch Settlement"), keccak256("1"), chain, at));
    }

    function _typed(bytes32 domain, bytes32 structHash) private pure returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _channelId(bytes32 domain, IBatchSettlement.ChannelConfig memory c) private pure returns (bytes32) {
        bytes32 typehash = keccak256(
            "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
        );
        return _typed(
            domain,
            keccak256(
                abi.encode(
                    typehash,
                    c.payer,
                    c.payerAuthorizer,
                    c.receiver,
                    c.receiverAuthorizer,
                    c.token,
                    c.withdrawDelay,
                    c.salt
                )
            )
        );
    }

    function testFuzz_channelIdAndVoucherDigest(
        IBatchSettlement.ChannelConfig memory config,
        uint128 ceiling,
        uint64 chain
    ) public {
        vm.assume(chain != 0);
        vm.chainId(chain);
        bytes32 domain = _domain(chain, address(settlement));
        bytes32 id = _channelId(domain, config);
        vm.assertEq(settlement.getChannelId(config), id, "channelId");
        bytes32 typehash = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");
        bytes32 digest = _typed(domain, keccak256(abi.encode(typehash, id, ceiling)));
        vm.assertEq(settlement.getVoucherDigest(id, ceiling), digest, "voucher");
    }

    function testFuzz_refundDigest(bytes32 id, uint256 nonce, uint128 amount) public view {
        bytes32 typehash = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)");
        bytes32 digest =
            _typed(_domain(CHAIN_ID, address(settlement)), keccak256(abi.encode(typehash, id, nonce, amount)));
        vm.assertEq(settlement.getRefundDigest(id, nonce, amount), digest, "refund");
    }

    function testFuzz_claimBatchDigest(uint256 seed) public view {
        bytes32 domain = _domain(CHAIN_ID, address(settlement));
        bytes32 entryTypehash =
            keccak256("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)");
        bytes32 batchTypehash = keccak256(
            "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
        );
        uint256 n = seed % 5;
        IBatchSettlement.VoucherClaim[] memory rows = new IBatchSettlement.VoucherClaim[](n);
        bytes memory entries;
        for (uint256 i = 0; i < n; ++i) {
            rows[i].voucher.channel = _config();
            rows[i].voucher.channel.salt = keccak256(abi.encode(seed, i));
            rows[i].voucher.maxClaimableAmount = uint128(uint256(rows[i].voucher.channel.salt) >> 128);
            rows[i].totalClaimed = uint128(i);
            bytes32 id = _channelId(domain, rows[i].voucher.channel);
            entries = abi.encodePacked(
                entries, keccak256(abi.encode(entryTypehash, id, rows[i].voucher.maxClaimableAmount, i))
            );
        }
        bytes32 digest = _typed(domain, keccak256(abi.encode(batchTypehash, keccak256(entries))));
        vm.assertEq(settlement.getClaimBatchDigest(rows), digest, "batch");
    }

    function test_domainDescribesItself() public view {
        (
            bytes1 fields,
            string memory name,
            string memory version,
            uint256 chain,
            address at,
            bytes32 salt,
            uint256[] memory extensions
        ) = settlement.eip712Domain();
        vm.assertEq(uint8(fields), 0x0f, "fields");
        vm.assertEq(name, "x402 Batch Settlement", "name");
        vm.assertEq(version, "1", "version");
        vm.assertEq(chain, CHAIN_ID, "chainId");
        vm.assertEq(at, address(settlement), "verifyingContract");
        vm.assertEq(salt, bytes32(0), "salt");
        vm.assertEq(extensions.length, 0, "extensions");
    }

    function test_anotherAddressIsAnotherDomain() public {
        BatchSettlement elsewhere = BatchSettlement(vm.deployCode("BatchSettlement.sol:BatchSettlement"));
        bytes32 expected = _channelId(_domain(CHAIN_ID, address(elsewhere)), _config());
        vm.assertEq(elsewhere.getChannelId(_config()), expected, "elsewhere");
        vm.assertTrue(expected != _id(_config()), "bound to the address");
    }

    function test_multicallClaimsSettlesAndRefundsInOneTransaction() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        bytes32 id = _id(config);
        _deposit(config, 100);
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(config, PAYER_AUTHORIZER_KEY, 30, 30));
        bytes[] memory calls = new bytes[](3);
        calls[0] = abi.encodeCall(
            settlement.claimWithSignature, (rows, _sign(RECEIVER_AUTHORIZER_KEY, settlement.getClaimBatchDigest(rows)))
        );
        calls[1] = abi.encodeCall(
            settlement.refundWithSignature,
            (config, 70, 0, _sign(RECEIVER_AUTHORIZER_KEY, settlement.getRefundDigest(id, 0, 70)))
        );
        calls[2] = abi.encodeCall(settlement.settle, (receiver, address(token)));
        vm.prank(stranger);
        settlement.multicall(calls);
        vm.assertEq(token.balanceOf(receiver), 30, "receiver");
        vm.assertEq(token.balanceOf(payer), 70, "payer");
        vm.assertEq(token.balanceOf(address(settlement)), 0, "escrow");
    }

    function test_revert_multicallIsAllOrNothing() public {
        IBatchSettlement.ChannelConfig memory config = _config();
        _deposit(config, 100);
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(settlement.refund, (config, 100));
        calls[1] = abi.encodeCall(settlement.finalizeWithdraw, (config));
        vm.expectRevert(IBatchSettlement.NotAuthorizedToFinalizeWithdraw.selector);
        vm.prank(receiver);
        settlement.multicall(calls);
        _assertChannel(_id(config), 100, 0);
    }
}
