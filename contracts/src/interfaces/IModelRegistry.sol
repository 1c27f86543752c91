// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title Models by id
/// @notice Where the manifest of a model can be fetched and what it hashes to.
/// @dev Assumption: readers hash the manifest they fetched and compare. Warning: the first caller gets the id;
/// a record proves neither who made the model nor that the manifest is served.
interface IModelRegistry {
    /// @param uri Location or content id of the manifest, 1 to 256 bytes.
    /// @param manifestHash Hash of the manifest's bytes; never zero.
    /// @param publisher Who registered it and may move it.
    /// @param registeredAt Unix seconds; zero if the id is unknown.
    struct Model {
        string uri;
        bytes32 manifestHash;
        address publisher;
        uint64 registeredAt;
    }

    event ModelRegistered(bytes32 indexed modelId, address indexed publisher, string uri, bytes32 manifestHash);
    event ModelMoved(bytes32 indexed modelId, string uri);

    error ModelExists(bytes32 modelId);
    error UnknownModel(bytes32 modelId);
    error NotPublisher(address caller);
    error BadUriLength(uint256 length, uint256 lengthMax);
    error ZeroHash();
    error PageTooLarge(uint256 limit, uint256 limitMax);

    /// @notice Records a model under the caller's name. The hash can never change.
    function register(bytes32 modelId, string calldata uri, bytes32 manifestHash) external;

    /// @notice The publisher says where the same manifest is served now.
    function move(bytes32 modelId, string calldata uri) external;

    /// @dev All zero for an unknown id.
    function model(bytes32 modelId) external view returns (Model memory);

    function modelCount() external view returns (uint256);

    /// @notice Ids `offset` to `offset + limit` in the order of registration, fewer at the end of the list.
    /// @param limit At most 1,000.
    function modelIdsPage(uint256 offset, uint256 limit) external view returns (bytes32[] memory);
}
