// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {ReceiptLib} from "../src/ReceiptLib.sol";
import {IBatchSettlement} from "../src/interfaces/IBatchSettlement.sol";
import {Base} from "../test/Base.sol";

/// @notice Writes vectors/eip712.json: typed data, digests and signatures that every implementation must reproduce.
/// @dev The keys are public test keys. Signatures are deterministic (RFC 6979, low s), so they are compared as bytes.
/// Integers are decimal strings, because a uint128 does not survive a JSON number.
contract Vectors is Base {
    struct ChannelCase {
        string name;
        uint256 chainId;
        address settlement;
        IBatchSettlement.ChannelConfig config;
        uint256 payerKey;
        uint256 receiverAuthorizerKey;
        uint128 maxClaimableAmount;
        uint128 totalClaimed;
        uint256 refundNonce;
        uint128 refundAmount;
    }

    struct ReceiptCase {
        string name;
        uint256 chainId;
        address registry;
        ReceiptLib.Receipt receipt;
        uint256 providerKey;
    }

    struct DepositCase {
        string name;
        address token;
        address collector;
        uint128 amount;
        uint256 validAfter;
        uint256 validBefore;
        uint256 salt;
    }

    address internal constant SETTLEMENT = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003;
    address internal constant COLLECTOR = 0x4020806089470a89826cB9fB1f4059150b550004;
    string internal constant FILE = "../vectors/eip712.json";

    function run() external {
        vm.writeFile(FILE, render());
    }

    function render() public returns (string memory) {
        return string.concat(
            "{\n",
            _line(
                1,
                "about",
                "typed data, digests and signatures; written by contracts/script/Vectors.s.sol from public test keys"
            ),
            _channels(),
            ",\n",
            _deposits(),
            ",\n",
            _receipts(),
            "\n}\n"
        );
    }

    // ------------------------------------------------------------------ what is signed

    function _channelCases() internal pure returns (ChannelCase[] memory cases) {
        cases = new ChannelCase[](4);
        cases[0] = ChannelCase({
            name: "payer with a voucher key of its own",
            chainId: 31_337,
            settlement: SETTLEMENT,
            config: IBatchSettlement.ChannelConfig({
                payer: vm.addr(0xa11ce),
                payerAuthorizer: vm.addr(0xa11ce2),
                receiver: vm.addr(0xb0b),
                receiverAuthorizer: vm.addr(0xb0b2),
                token: 0x5FbDB2315678afecb367f032d93F642f64180aa3,
                withdrawDelay: 1 days,
                salt: 0
            }),
            payerKey: 0xa11ce2,
            receiverAuthorizerKey: 0xb0b2,
            maxClaimableAmount: 1_000_000,
            totalClaimed: 750_001,
            refundNonce: 0,
            refundAmount: 250_000
        });
        cases[1] = ChannelCase({
            name: "payer signs itself, on another chain",
            chainId: 8_453,
            settlement: SETTLEMENT,
            config: IBatchSettlement.ChannelConfig({
                payer: vm.addr(0xa11ce),
                payerAuthorizer: address(0),
                receiver: vm.addr(0xb0b),
                receiverAuthorizer: vm.addr(0xb0b),
                token: 0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913,
                withdrawDelay: 15 minutes,
                salt: keccak256("salt")
            }),
            payerKey: 0xa11ce,
            receiverAuthorizerKey: 0xb0b,
            maxClaimableAmount: 1,
            totalClaimed: 1,
            refundNonce: 7,
            refundAmount: 1
        });
        cases[2] = ChannelCase({
            name: "all fields at their maximum",
            chainId: type(uint64).max,
            settlement: SETTLEMENT,
            config: IBatchSettlement.ChannelConfig({
                payer: address(type(uint160).max),
                payerAuthorizer: vm.addr(CURVE_ORDER - 1),
                receiver: address(type(uint160).max),
                receiverAuthorizer: vm.addr(CURVE_ORDER - 2),
                token: address(type(uint160).max),
                withdrawDelay: type(uint40).max,
                salt: bytes32(type(uint256).max)
            }),
            payerKey: CURVE_ORDER - 1,
            receiverAuthorizerKey: CURVE_ORDER - 2,
            maxClaimableAmount: type(uint128).max,
            totalClaimed: type(uint128).max,
            refundNonce: type(uint256).max,
            refundAmount: type(uint128).max
        });
        cases[3] = ChannelCase({
            name: "another deployment, all fields zero",
            chainId: 1,
            settlement: 0x00000000000000000000000000000000000000AA,
            config: IBatchSettlement.ChannelConfig(address(0), address(0), address(0), address(0), address(0), 0, 0),
            payerKey: 1,
            receiverAuthorizerKey: 2,
            maxClaimableAmount: 0,
            totalClaimed: 0,
            refundNonce: 0,
            refundAmount: 0
        });
    }

    /// @dev Into the first channel case's channel, from its payer, on its chain.
    function _depositCases() internal pure returns (DepositCase[] memory cases) {
        cases = new DepositCase[](2);
        cases[0] = DepositCase({
            name: "first deposit",
            token: 0x5FbDB2315678afecb367f032d93F642f64180aa3,
            collector: COLLECTOR,
            amount: 50_000_000,
            validAfter: 0,
            validBefore: 1_900_000_000,
            salt: 1
        });
        cases[1] = DepositCase({
            name: "top-up with a random salt and no end",
            token: 0x5FbDB2315678afecb367f032d93F642f64180aa3,
            collector: COLLECTOR,
            amount: 123_456_789,
            validAfter: 1_799_999_999,
            validBefore: type(uint256).max,
            salt: uint256(keccak256("random"))
        });
    }

    function _receiptCases() internal pure returns (ReceiptCase[] memory cases) {
        cases = new ReceiptCase[](3);
        cases[0] = ReceiptCase({
            name: "a short answer",
            chainId: 31_337,
            registry: 0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512,
            receipt: ReceiptLib.Receipt({
                channelId: keccak256("channel"),
                requestHash: keccak256("request"),
                responseHash: keccak256("response"),
                modelId: keccak256("model"),
                promptTokens: 17,
                outputTokens: 64,
                charged: 1_234,
                chargedTotal: 98_765,
                issuedAt: 1_800_000_000
            }),
            providerKey: 0x9001
        });
        bytes32 ones = bytes32(type(uint256).max);
        cases[1] = ReceiptCase({
            name: "all fields at their maximum",
            chainId: type(uint64).max,
            registry: address(type(uint160).max),
            receipt: ReceiptLib.Receipt({
                channelId: ones,
                requestHash: ones,
                responseHash: ones,
                modelId: ones,
                promptTokens: type(uint64).max,
                outputTokens: type(uint64).max,
                charged: type(uint128).max,
                chargedTotal: type(uint128).max,
                issuedAt: type(uint64).max
            }),
            providerKey: CURVE_ORDER - 1
        });
        ReceiptLib.Receipt memory zero;
        cases[2] =
            ReceiptCase({name: "all fields zero", chainId: 1, registry: address(0), receipt: zero, providerKey: 1});
    }

    // ------------------------------------------------------------------ how it is written

    function _channels() private returns (string memory json) {
        ChannelCase[] memory cases = _channelCases();
        json = "  \"channels\": [";
        for (uint256 i = 0; i < cases.length; ++i) {
            json = string.concat(json, i == 0 ? "\n" : ",\n", _channel(cases[i]));
        }
        json = string.concat(json, "\n  ]");
    }

    function _channel(ChannelCase memory c) private returns (string memory) {
        vm.chainId(c.chainId);
        vm.etch(c.settlement, vm.getDeployedCode("BatchSettlement.sol:BatchSettlement"));
        BatchSettlement settlement = BatchSettlement(c.settlement);
        bytes32 channelId = settlement.getChannelId(c.config);
        bytes32 voucher = settlement.getVoucherDigest(channelId, c.maxClaimableAmount);
        bytes32 refund = settlement.getRefundDigest(channelId, c.refundNonce, c.refundAmount);
        IBatchSettlement.VoucherClaim[] memory rows = new IBatchSettlement.VoucherClaim[](1);
        rows[0].voucher = IBatchSettlement.Voucher(c.config, c.maxClaimableAmount);
        rows[0].totalClaimed = c.totalClaimed;
        bytes32 batch = settlement.getClaimBatchDigest(rows);
        return string.concat(
            "    {\n",
            _line(3, "name", c.name),
            _line(3, "chainId", vm.toString(c.chainId)),
            _line(3, "verifyingContract", vm.toString(c.settlement)),
            _config(c.config),
            _line(3, "channelId", vm.toString(channelId)),
            string.concat(
                _line(3, "payerKey", vm.toString(bytes32(c.payerKey))),
                _line(3, "maxClaimableAmount", vm.toString(c.maxClaimableAmount)),
                _line(3, "voucherDigest", vm.toString(voucher)),
                _line(3, "voucherSignature", vm.toString(_sign(c.payerKey, voucher)))
            ),
            string.concat(
                _line(3, "receiverAuthorizerKey", vm.toString(bytes32(c.receiverAuthorizerKey))),
                _line(3, "totalClaimed", vm.toString(c.totalClaimed)),
                _line(3, "claimBatchDigest", vm.toString(batch)),
                _line(3, "claimBatchSignature", vm.toString(_sign(c.receiverAuthorizerKey, batch)))
            ),
            string.concat(
                _line(3, "refundNonce", vm.toString(c.refundNonce)),
                _line(3, "refundAmount", vm.toString(c.refundAmount)),
                _line(3, "refundDigest", vm.toString(refund)),
                _last(3, "refundSignature", vm.toString(_sign(c.receiverAuthorizerKey, refund)))
            ),
            "    }"
        );
    }

    function _config(IBatchSettlement.ChannelConfig memory c) private pure returns (string memory) {
        return string.concat(
            "      \"config\": {\n",
            _line(4, "payer", vm.toString(c.payer)),
            _line(4, "payerAuthorizer", vm.toString(c.payerAuthorizer)),
            _line(4, "receiver", vm.toString(c.receiver)),
            _line(4, "receiverAuthorizer", vm.toString(c.receiverAuthorizer)),
            _line(4, "token", vm.toString(c.token)),
            _line(4, "withdrawDelay", vm.toString(c.withdrawDelay)),
            _last(4, "salt", vm.toString(c.salt)),
            "      },\n"
        );
    }

    function _deposits() private returns (string memory json) {
        DepositCase[] memory cases = _depositCases();
        json = "  \"deposits\": [";
        for (uint256 i = 0; i < cases.length; ++i) {
            json = string.concat(json, i == 0 ? "\n" : ",\n", _deposit(cases[i]));
        }
        json = string.concat(json, "\n  ]");
    }

    function _deposit(DepositCase memory d) private returns (string memory) {
        ChannelCase memory c = _channelCases()[0];
        vm.chainId(c.chainId);
        bytes32 channelId = BatchSettlement(c.settlement).getChannelId(c.config);
        bytes32 nonce = keccak256(abi.encode(channelId, d.salt));
        bytes32 digest = _authorizationDigest(c, d, nonce);
        bytes memory signature = _sign(0xa11ce, digest);
        bytes memory collectorData = abi.encode(d.validAfter, d.validBefore, d.salt, signature);
        return string.concat(
            "    {\n",
            _line(3, "name", d.name),
            _line(3, "chainId", vm.toString(c.chainId)),
            _line(3, "token", vm.toString(d.token)),
            _line(3, "from", vm.toString(c.config.payer)),
            _line(3, "fromKey", vm.toString(bytes32(uint256(0xa11ce)))),
            _line(3, "to", vm.toString(d.collector)),
            _line(3, "value", vm.toString(d.amount)),
            string.concat(
                _line(3, "validAfter", vm.toString(d.validAfter)),
                _line(3, "validBefore", vm.toString(d.validBefore)),
                _line(3, "channelId", vm.toString(channelId)),
                _line(3, "salt", vm.toString(d.salt)),
                _line(3, "nonce", vm.toString(nonce)),
                _line(3, "digest", vm.toString(digest)),
                _line(3, "signature", vm.toString(signature)),
                _last(3, "collectorData", vm.toString(collectorData))
            ),
            "    }"
        );
    }

    function _authorizationDigest(ChannelCase memory c, DepositCase memory d, bytes32 nonce)
        private
        pure
        returns (bytes32)
    {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Assay Test USD"),
                keccak256("1"),
                c.chainId,
                d.token
            )
        );
        bytes32 typehash = keccak256(
            "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        bytes32 structHash =
            keccak256(abi.encode(typehash, c.config.payer, d.collector, d.amount, d.validAfter, d.validBefore, nonce));
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _receipts() private pure returns (string memory json) {
        ReceiptCase[] memory cases = _receiptCases();
        json = "  \"receipts\": [";
        for (uint256 i = 0; i < cases.length; ++i) {
            json = string.concat(json, i == 0 ? "\n" : ",\n", _receipt(cases[i]));
        }
        json = string.concat(json, "\n  ]");
    }

    function _receipt(ReceiptCase memory c) private pure returns (string memory) {
        ReceiptLib.Receipt memory r = c.receipt;
        bytes32 domain = ReceiptLib.domainSeparator(c.chainId, c.registry);
        bytes32 digest = ReceiptLib.digest(r, domain);
        return string.concat(
            "    {\n",
            _line(3, "name", c.name),
            _line(3, "chainId", vm.toString(c.chainId)),
            _line(3, "verifyingContract", vm.toString(c.registry)),
            "      \"receipt\": {\n",
            string.concat(
                _line(4, "channelId", vm.toString(r.channelId)),
                _line(4, "requestHash", vm.toString(r.requestHash)),
                _line(4, "responseHash", vm.toString(r.responseHash)),
                _line(4, "modelId", vm.toString(r.modelId)),
                _line(4, "promptTokens", vm.toString(r.promptTokens)),
                _line(4, "outputTokens", vm.toString(r.outputTokens)),
                _line(4, "charged", vm.toString(r.charged)),
                _line(4, "chargedTotal", vm.toString(r.chargedTotal)),
                _last(4, "issuedAt", vm.toString(r.issuedAt))
            ),
            "      },\n",
            _line(3, "providerKey", vm.toString(bytes32(c.providerKey))),
            _line(3, "provider", vm.toString(vm.addr(c.providerKey))),
            _line(3, "domainSeparator", vm.toString(domain)),
            _line(3, "digest", vm.toString(digest)),
            _last(3, "signature", vm.toString(_sign(c.providerKey, digest))),
            "    }"
        );
    }

    function _line(uint256 depth, string memory key, string memory value) private pure returns (string memory) {
        return string.concat(_pair(depth, key, value), ",\n");
    }

    function _last(uint256 depth, string memory key, string memory value) private pure returns (string memory) {
        return string.concat(_pair(depth, key, value), "\n");
    }

    function _pair(uint256 depth, string memory key, string memory value) private pure returns (string memory) {
        string memory indent = depth == 1 ? "  " : depth == 3 ? "      " : "        ";
        return string.concat(indent, "\"", key, "\": \"", value, "\"");
    }
}
