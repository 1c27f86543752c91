// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title Preimages
/// @notice Reads what hashes in receipts and manifests stand for. Formats: docs/PROTOCOL.md.
/// @dev Nothing is trusted but the hash. Integers are big-endian.
library Preimages {
    /// @param tokens Where the prompt's ids begin; the prefix's count and ids follow the last of them.
    /// @param promptTokens Ids of the prompt.
    /// @param prefixTokens Ids of the prefix.
    /// @param greedy Whether the sampler takes the first token of the order of the logits as they are.
    struct Job {
        bytes32 modelId;
        uint256 tokens;
        uint256 promptTokens;
        uint256 prefixTokens;
        bool greedy;
    }

    /// @param weightsRoot Of the tensor data.
    /// @param graphHash Of the graph's head.
    struct Manifest {
        bytes32 weightsRoot;
        bytes32 graphHash;
    }

    error NotThePreimage(bytes32 expected);
    error UnknownFormat();
    error NoSuchToken(uint256 index);

    bytes private constant JOB_TAG = "assay/job/1";
    bytes private constant RESPONSE_TAG = "assay/response/1";
    /// @dev The tag of the version and the one profile that a judge knows, with its length.
    bytes private constant MANIFEST_TAG = "assay/manifest/2\x00\x00\x00\x0bcanonical-1";

    function job(bytes calldata data, bytes32 hash) internal pure returns (Job memory j) {
        _requireIs(data, hash, JOB_TAG);
        j.modelId = bytes32(data[11:]);
        j.promptTokens = _u32(data, 43);
        j.tokens = 47;
        uint256 prefix = 47 + 4 * j.promptTokens;
        j.prefixTokens = _u32(data, prefix);
        // After the prefix: the bound on tokens; then temperature, top-p, top-k, min-p, repetition, frequency, presence,
        // 8 bytes of seed, how many logits have a bias, and, if that is none, the kind of grammar.
        uint256 at = prefix + 4 + 4 * j.prefixTokens + 4;
        bool first = _u32(data, at) == 0 || _u32(data, at + 8) == 1;
        bool plain = _u32(data, at + 16) == 1_000_000 && _u32(data, at + 20) == 0 && _u32(data, at + 24) == 0;
        j.greedy = first && plain && _u32(data, at + 36) == 0 && data.length > at + 40 && data[at + 40] == 0;
    }

    /// @notice Token `index` of prompt and prefix.
    function inputToken(bytes calldata data, Job memory j, uint256 index) internal pure returns (uint256) {
        if (index >= j.promptTokens + j.prefixTokens) revert NoSuchToken(index);
        if (index >= j.promptTokens) index += 1;
        return _u32(data, j.tokens + 4 * index);
    }

    function outputCount(bytes calldata data, bytes32 hash) internal pure returns (uint256) {
        _requireIs(data, hash, RESPONSE_TAG);
        return _u32(data, 16);
    }

    function outputToken(bytes calldata data, bytes32 hash, uint256 index) internal pure returns (uint256) {
        if (index >= outputCount(data, hash)) revert NoSuchToken(index);
        return _u32(data, 20 + 4 * index);
    }

    function manifest(bytes calldata data, bytes32 hash) internal pure returns (Manifest memory m) {
        _requireIs(data, hash, MANIFEST_TAG);
        if (data.length < 199) revert UnknownFormat();
        // Hash and length of the file, then: weights, tokenizer, rotation tables, graph.
        m.weightsRoot = bytes32(data[71:]);
        m.graphHash = bytes32(data[167:]);
    }

    /// @dev Hash and tag of `data`, the tag in front.
    function _requireIs(bytes calldata data, bytes32 hash, bytes memory tag) private pure {
        if (keccak256(data) != hash) revert NotThePreimage(hash);
        if (data.length < tag.length || keccak256(data[:tag.length]) != keccak256(tag)) revert UnknownFormat();
    }

    /// @dev Reverts behind the end.
    function _u32(bytes calldata data, uint256 at) private pure returns (uint256) {
        if (at + 4 > data.length) revert UnknownFormat();
        return uint32(bytes4(data[at:]));
    }
}
