// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Graph} from "../src/Graph.sol";
import {ReceiptLib} from "../src/ReceiptLib.sol";
import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {TraceTree} from "../src/TraceTree.sol";
import {IBatchSettlement} from "../src/interfaces/IBatchSettlement.sol";
import {ICourt} from "../src/interfaces/ICourt.sol";
import {IJudge} from "../src/interfaces/IJudge.sol";
import {IParameters} from "../src/interfaces/IParameters.sol";
import {ITrial} from "../src/interfaces/ITrial.sol";
import {Base} from "./Base.sol";
import {TraceBuilder} from "./mocks/TraceBuilder.sol";

/// @notice A court with a staked provider, and both players of the game.
abstract contract DisputeFixture is Base {
    uint256 internal constant START = 1_800_000_000;
    uint256 internal constant PROVIDER_KEY = 0xa11ce;
    uint256 internal constant CHALLENGER_KEY = 0xb0b;
    uint128 internal constant STAKE = 1_000_000e6;
    uint96 internal constant BOND = 50e6;
    uint96 internal constant PENALTY = 200e6;
    uint16 internal constant REWARD_BPS = 4_000;
    uint16 internal constant REFUND_BPS = 500;
    uint64 internal constant DELAY = 2 days;
    address internal constant PAYER = address(0x9a1e);
    uint16 internal constant SLASH_BPS = 5_000;
    uint32 internal constant WINDOW = 3 hours;
    uint128 internal constant FUNDS = 1_000_000e6;
    address internal constant SINK = address(0x51);

    address internal provider = vm.addr(PROVIDER_KEY);
    address internal challenger = vm.addr(CHALLENGER_KEY);
    Claims internal settlement = new Claims();
    TestUSD internal token;
    ProviderRegistry internal registry;
    IParameters internal parameters;
    ICourt internal court;
    ITrial internal trial;
    IJudge internal judge;

    /// @dev What a provider's trace has otherwise than the honest one: bits of a number, and of what it later says.
    /// @param flip Bits of the number at (position, op, leaf, slot) that are flipped; zero for an honest provider.
    /// @param fromStep The chain is right before this step.
    /// @param operandFlip Flips a byte of what is stated at the end: one more than its place, zero for none.
    struct Lie {
        uint256 position;
        uint256 op;
        uint256 leaf;
        uint256 slot;
        uint32 flip;
        uint256 fromStep;
        uint256 operandFlip;
    }

    function setUp() public virtual {
        vm.warp(START);
        token = _newToken();
        judge = IJudge(vm.deployCode("Judge.sol:Judge"));
        parameters = _newParameters(WINDOW);
        (address courtAt, address trialAt) = _nextAddresses();
        registry = _newRegistry(token, 1, 7 days, courtAt, SLASH_BPS);
        bytes memory args = abi.encode(registry, trialAt, settlement, SINK, parameters);
        court = ICourt(vm.deployCode("Court.sol:Court", args));
        trial = ITrial(vm.deployCode("Trial.sol:Trial", abi.encode(judge, court)));
        vm.assertEq(address(court), courtAt, "court is where the registry expects it");
        vm.assertEq(address(trial), trialAt, "trial is where the court expects it");
        _fund(provider, address(registry));
        _fund(challenger, address(court));
        vm.prank(provider);
        registry.register("provider.example:7443", bytes32(uint256(1)), 0);
        vm.prank(provider);
        registry.stake(STAKE);
    }

    function _terms() internal pure returns (IParameters.Terms memory) {
        return IParameters.Terms(BOND, PENALTY, REWARD_BPS, REFUND_BPS, 0);
    }

    function _policy() internal pure returns (IParameters.Policy memory) {
        return IParameters.Policy(20_000, 4_096, 50_000, 30_000);
    }

    /// @dev Owned by the test.
    function _newParameters(uint32 window) internal returns (IParameters) {
        bytes memory args = abi.encode(address(this), DELAY, window, 10 * BOND, 10 * PENALTY, _terms(), _policy());
        return IParameters(vm.deployCode("Parameters.sol:Parameters", args));
    }

    /// @dev A channel that PAYER pays the provider through.
    function _paid() internal view returns (IBatchSettlement.ChannelConfig memory config) {
        (config.payer, config.receiver, config.receiverAuthorizer) = (PAYER, provider, provider);
    }

    /// @dev Where the two contracts after the next one will be.
    function _nextAddresses() private view returns (address second, address third) {
        uint64 nonce = vm.getNonce(address(this));
        return (vm.computeCreateAddress(address(this), nonce + 1), vm.computeCreateAddress(address(this), nonce + 2));
    }

    function _fund(address who, address spender) internal {
        token.mint(who, FUNDS + STAKE);
        vm.prank(who);
        token.approve(spender, type(uint256).max);
    }

    function _receipt(bytes32 requestHash, bytes32 responseHash, bytes32 modelId, uint64 input, uint64 output)
        internal
        pure
        returns (ReceiptLib.Receipt memory)
    {
        return ReceiptLib.Receipt(bytes32(uint256(7)), requestHash, responseHash, modelId, input, output, 5, 9, 1);
    }

    function _signed(ReceiptLib.Receipt memory receipt) internal view returns (bytes memory) {
        return _sign(PROVIDER_KEY, ReceiptLib.digest(receipt, court.receiptDomain()));
    }

    // ------------------------------------------------------------------ bytes that are hashed

    function _tokenBytes(uint32[] memory tokens, uint256 first, uint256 count)
        internal
        pure
        returns (bytes memory out)
    {
        out = abi.encodePacked(uint32(count));
        for (uint256 i = 0; i < count; ++i) {
            out = abi.encodePacked(out, tokens[first + i]);
        }
    }

    /// @dev `prefix` of the input tokens are a resumed job's prefix.
    function _job(
        bytes32 modelId,
        uint32[] memory tokens,
        uint256 input,
        uint256 prefix,
        uint32 temperature,
        bytes32 nonce
    ) internal pure returns (bytes memory) {
        bytes memory lists = bytes.concat(
            _tokenBytes(tokens, 0, input - prefix), _tokenBytes(tokens, input - prefix, prefix)
        );
        return bytes.concat(
            "assay/job/1",
            modelId,
            lists,
            abi.encodePacked(uint32(100), temperature, uint32(1_000_000), uint64(0), uint32(1_000_000), uint64(0)),
            abi.encodePacked(uint64(7), uint32(0), uint8(0), uint32(0), uint16(0), nonce)
        );
    }

    function _response(uint32[] memory tokens, uint256 first, uint256 count) internal pure returns (bytes memory) {
        return bytes.concat("assay/response/1", _tokenBytes(tokens, first, count), hex"02");
    }

    function _manifest(bytes32 weightsRoot, bytes32 graphHash) internal pure returns (bytes memory) {
        return bytes.concat(
            bytes.concat("assay/manifest/2", hex"0000000b", "canonical-1", bytes32(uint256(1)), bytes8(uint64(2))),
            bytes.concat(weightsRoot, bytes32(uint256(3)), bytes32(uint256(4)), graphHash),
            hex"0000000000000000"
        );
    }

    // ------------------------------------------------------------------ trees

    function _empty(uint256 height) internal pure returns (bytes32 node) {
        for (uint256 i = 0; i < height; ++i) {
            node = TraceTree.nodeHash(node, node);
        }
    }

    /// @dev Node `index` at `height` over `base`, which zeros fill up.
    function _node(bytes32[] memory base, uint256 height, uint256 index) internal pure returns (bytes32) {
        if (index << height >= base.length) return _empty(height);
        if (height == 0) return base[index];
        return TraceTree.nodeHash(_node(base, height - 1, 2 * index), _node(base, height - 1, 2 * index + 1));
    }

    /// @dev The siblings on the way from `index` at height `from` up to height `to`.
    function _path(bytes32[] memory base, uint256 from, uint256 to, uint256 index)
        internal
        pure
        returns (bytes32[] memory path)
    {
        path = new bytes32[](to - from);
        for (uint256 i = 0; i < path.length; ++i) {
            path[i] = _node(base, from + i, (index >> i) ^ 1);
        }
    }

    function _root(bytes32[] memory base) internal pure returns (bytes32) {
        return _node(base, TraceTree.heightOf(base.length), 0);
    }

    /// @dev Level by level, an odd last node moves up unchanged; and the siblings of `index` on the way.
    function _modelTree(bytes[] memory leaves, uint256 index)
        internal
        pure
        returns (bytes32 root, bytes32[] memory path)
    {
        bytes32[] memory level = new bytes32[](leaves.length);
        for (uint256 i = 0; i < leaves.length; ++i) {
            level[i] = TraceTree.leafHash(leaves[i]);
        }
        bytes32[] memory found = new bytes32[](32);
        uint256 used;
        while (level.length > 1) {
            if (index ^ 1 < level.length) found[used++] = level[index ^ 1];
            bytes32[] memory next = new bytes32[]((level.length + 1) / 2);
            for (uint256 i = 0; i < next.length; ++i) {
                bool pair = 2 * i + 1 < level.length;
                next[i] = pair ? TraceTree.nodeHash(level[2 * i], level[2 * i + 1]) : level[2 * i];
            }
            (level, index) = (next, index / 2);
        }
        path = new bytes32[](used);
        for (uint256 i = 0; i < used; ++i) {
            path[i] = found[i];
        }
        return (level[0], path);
    }

    function _concat(bytes32[] memory a, bytes32[] memory b) internal pure returns (bytes32[] memory out) {
        out = new bytes32[](a.length + b.length);
        for (uint256 i = 0; i < out.length; ++i) {
            out[i] = i < a.length ? a[i] : b[i - a.length];
        }
    }

    function _slice(bytes memory data, uint256 at, uint256 length) internal pure returns (bytes memory out) {
        out = new bytes(length);
        for (uint256 i = 0; i < length; ++i) {
            out[i] = data[at + i];
        }
    }
}

/// @notice The part of a settlement that the court reads: what was claimed from a channel.
contract Claims {
    mapping(bytes32 channelId => uint128) private _claimed;

    function set(IBatchSettlement.ChannelConfig calldata config, uint128 claimed) external {
        _claimed[getChannelId(config)] = claimed;
    }

    function getChannelId(IBatchSettlement.ChannelConfig calldata config) public pure returns (bytes32) {
        return keccak256(abi.encode(config));
    }

    function channels(bytes32 channelId) external view returns (uint128 balance, uint128 totalClaimed) {
        return (type(uint128).max, _claimed[channelId]);
    }
}
