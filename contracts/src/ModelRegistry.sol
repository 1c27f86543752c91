// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IModelRegistry} from "./interfaces/IModelRegistry.sol";

/// @title ModelRegistry
/// @notice See IModelRegistry, which says what each function does and what is assumed.
contract ModelRegistry is IModelRegistry {
    uint256 public constant URI_BYTES_MAX = 256;
    uint256 public constant PAGE_ROWS_MAX = 1_000;

    bytes32[] private _modelIds;
    mapping(bytes32 modelId => Model) private _models;

    /// @inheritdoc IModelRegistry
    function register(bytes32 modelId, string calldata uri, bytes32 manifestHash) external {
        _requireValid(uri);
        if (modelId == 0 || manifestHash == 0) revert ZeroHash();
        if (_models[modelId].registeredAt != 0) revert ModelExists(modelId);
        _modelIds.push(modelId);
        _models[modelId] = Model(uri, manifestHash, msg.sender, uint64(block.timestamp));
        emit ModelRegistered(modelId, msg.sender, uri, manifestHash);
    }

    /// @inheritdoc IModelRegistry
    function move(bytes32 modelId, string calldata uri) external {
        _requireValid(uri);
        Model storage known = _models[modelId];
        if (known.registeredAt == 0) revert UnknownModel(modelId);
        if (known.publisher != msg.sender) revert NotPublisher(msg.sender);
        known.uri = uri;
        emit ModelMoved(modelId, uri);
    }

    /// @inheritdoc IModelRegistry
    function model(bytes32 modelId) external view returns (Model memory) {
        return _models[modelId];
    }

    /// @inheritdoc IModelRegistry
    function modelCount() external view returns (uint256) {
        return _modelIds.length;
    }

    /// @inheritdoc IModelRegistry
    function modelIdsPage(uint256 offset, uint256 limit) external view returns (bytes32[] memory page) {
        if (limit > PAGE_ROWS_MAX) revert PageTooLarge(limit, PAGE_ROWS_MAX);
        uint256 count = _modelIds.length;
        if (offset >= count) return page;
        uint256 rows = limit < count - offset ? limit : count - offset;
        page = new bytes32[](rows);
        for (uint256 i = 0; i < rows; ++i) {
            page[i] = _modelIds[offset + i];
        }
    }

    function _requireValid(string calldata uri) private pure {
        uint256 length = bytes(uri).length;
        if (length == 0 || length > URI_BYTES_MAX) revert BadUriLength(length, URI_BYTES_MAX);
    }
}
