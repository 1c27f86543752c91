// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {Vm} from "./Vm.sol";

/// @dev Contracts under test come from the build's output instead of `new`: the compiler would otherwise translate
/// each of them again inside every test contract, which is most of the time a build takes.
abstract contract Base {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    /// @dev The order of secp256k1's group; with it, `s` can be mirrored into the malleable half.
    uint256 internal constant CURVE_ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;

    function _newToken() internal returns (TestUSD) {
        return TestUSD(vm.deployCode("TestUSD.sol:TestUSD", abi.encode(address(this))));
    }

    function _newRegistry(TestUSD token, uint128 minStake, uint64 unbondingDelay, address slasher, uint16 maxSlashBps)
        internal
        returns (ProviderRegistry)
    {
        bytes memory args = abi.encode(token, minStake, unbondingDelay, slasher, maxSlashBps);
        return ProviderRegistry(vm.deployCode("ProviderRegistry.sol:ProviderRegistry", args));
    }

    /// @dev Brings a random value into `lo..hi`, both included; a quarter of the values become one of the two ends.
    function _bound(uint256 x, uint256 lo, uint256 hi) internal pure returns (uint256) {
        require(lo <= hi, "empty range");
        if (x % 8 == 0) return lo;
        if (x % 8 == 1) return hi;
        uint256 size = hi - lo + 1;
        return size == 0 ? x : lo + (x / 8) % size;
    }

    function _amount(uint256 x, uint256 lo, uint256 hi) internal pure returns (uint128) {
        require(hi <= type(uint128).max, "not an amount");
        return uint128(_bound(x, lo, hi));
    }

    function _sign(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// @dev The second signature that plain ecrecover accepts for the same message.
    function _malleate(bytes memory signature) internal pure returns (bytes memory) {
        (bytes32 r, bytes32 s, uint8 v) = _split(signature);
        return abi.encodePacked(r, bytes32(CURVE_ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
    }

    function _split(bytes memory signature) internal pure returns (bytes32 r, bytes32 s, uint8 v) {
        require(signature.length == 65, "not an ECDSA signature");
        (r, s) = abi.decode(signature, (bytes32, bytes32));
        v = uint8(signature[64]);
    }

    function _countLogs(Vm.Log[] memory logs, bytes32 topic) internal pure returns (uint256 count) {
        for (uint256 i = 0; i < logs.length; ++i) {
            if (logs[i].topics.length > 0 && logs[i].topics[0] == topic) ++count;
        }
    }
}
