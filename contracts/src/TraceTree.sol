// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

// The literal in every shift is what is shifted.
// forge-lint: disable-start(incorrect-shift)

/// @title TraceTree
/// @notice The two kinds of Merkle trees that disputes are about: over a trace, and over a model's bytes.
/// @dev Leaf = `keccak(0x00 || bytes)`, node = `keccak(0x01 || left || right)` in both, so that no path can stop above a
/// leaf or go on below one. A trace's tree over n leaves is filled up with zero hashes to a power of two, which lets 32 children be revealed at any
/// height; a model's tree is not: there an odd last node moves up unchanged.
library TraceTree {
    /// @notice The smallest height at which a tree holds n leaves.
    function heightOf(uint256 n) internal pure returns (uint256 height) {
        unchecked {
            while ((1 << height) < n) ++height;
        }
    }

    function leafHash(bytes memory data) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            let length := mload(data)
            mstore8(free, 0)
            mcopy(add(free, 1), add(data, 32), length)
            hash := keccak256(free, add(length, 1))
        }
    }

    function leafHashOfCalldata(bytes calldata data) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, 0)
            calldatacopy(add(free, 1), data.offset, data.length)
            hash := keccak256(free, add(data.length, 1))
        }
    }

    function nodeHash(bytes32 left, bytes32 right) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, 1)
            mstore(add(free, 1), left)
            mstore(add(free, 33), right)
            hash := keccak256(free, 65)
        }
    }

    /// @notice The node `levels` above the first `count`, at least one, of `nodes`, which stand at `height` and are
    /// `2^levels`; those behind `count` are empty.
    /// @dev Overwrites `nodes`.
    function fold(bytes32[] memory nodes, uint256 count, uint256 levels, uint256 height)
        internal
        pure
        returns (bytes32 root)
    {
        unchecked {
            bytes32 empty;
            for (uint256 i = 0; i < height; ++i) {
                empty = nodeHash(empty, empty);
            }
            assert(nodes.length == 1 << levels && count != 0 && count <= nodes.length);
            for (uint256 level = 0; level < levels; ++level) {
                if (count & 1 == 1) {
                    nodes[count] = empty;
                    empty = nodeHash(empty, empty);
                    ++count;
                } else if (level + 1 < levels) {
                    empty = nodeHash(empty, empty);
                }
                count >>= 1;
                assembly ("memory-safe") {
                    let free := mload(0x40)
                    mstore8(free, 1)
                    let to := add(nodes, 32)
                    let end := add(to, shl(5, count))
                    for { let from := to } lt(to, end) { to := add(to, 32) } {
                        mcopy(add(free, 1), from, 64)
                        mstore(to, keccak256(free, 65))
                        from := add(from, 64)
                    }
                }
            }
            return nodes[0];
        }
    }

    /// @notice The node `path.length` above the node `hash`, whose index there is `index`.
    function climb(bytes32 hash, uint256 index, bytes32[] calldata path) internal pure returns (bytes32) {
        unchecked {
            for (uint256 i = 0; i < path.length; ++i) {
                hash = index & 1 == 0 ? nodeHash(hash, path[i]) : nodeHash(path[i], hash);
                index >>= 1;
            }
            return hash;
        }
    }

    /// @notice The root of a model's tree of n leaves of which `hash` is number `index`; zero if that cannot be.
    function rootOfModel(bytes32 hash, uint256 index, uint256 n, bytes32[] calldata path)
        internal
        pure
        returns (bytes32)
    {
        unchecked {
            if (index >= n) return 0;
            uint256 used;
            for (; n > 1; n = (n + 1) / 2) {
                // An odd last node has no sibling.
                // slither-disable-next-line incorrect-exp (the neighbour's number, not a power)
                if (index ^ 1 < n) {
                    if (used == path.length) return 0;
                    bytes32 sibling = path[used++];
                    hash = index & 1 == 0 ? nodeHash(hash, sibling) : nodeHash(sibling, hash);
                }
                index >>= 1;
            }
            return used == path.length ? hash : bytes32(0);
        }
    }
}
// forge-lint: disable-end(incorrect-shift)
