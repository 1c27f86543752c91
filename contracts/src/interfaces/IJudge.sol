// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Graph} from "../Graph.sol";

/// @title One step of a canonical computation
/// @notice Says what a number of a trace is made of and what one step towards it gives.
/// @dev Pure: whoever has the operands gets the answer. That they are the right ones is for the court to check.
interface IJudge {
    error BadLength(uint256 length, uint256 expected);
    error NoSuchSlot(uint256 slot);
    error NoSuchOperand(uint256 index);
    /// @notice An operation whose number does not follow from a step (CHOOSE), or a kind or format that there is not.
    error NotJudged(uint256 kind);

    /// @notice How many leaves an operation has at a position, and their length in bytes.
    /// @param inputTokens Tokens of the request's input: operations at the end of the graph begin with the last of them.
    function layout(uint256 word, uint256 position, uint256 inputTokens)
        external
        pure
        returns (uint256 leaves, uint256 length);

    /// @notice The number that a leaf has for a site, and the steps of the chain that leads to it.
    /// @dev A chain begins with +0. No step: the number must be zero, as behind the last one of an operation.
    function claimOf(Graph.Site calldata site, uint256 inputTokens, bytes calldata leaf)
        external
        pure
        returns (uint256 value, uint256 steps);

    /// @notice Operand `index` of what a step reads, and where in the stated bytes it begins.
    /// @param stated The operands as one party states them: which row of a table is read depends on the token.
    function operandOf(Graph.Site calldata site, uint256 step, bytes calldata stated, uint256 index)
        external
        pure
        returns (Graph.Operand memory operand, uint256 at);

    /// @notice Bytes of all operands of a step.
    function statedLength(Graph.Site calldata site, uint256 step, bytes calldata stated)
        external
        pure
        returns (uint256 length);

    /// @notice What the step gives.
    /// @param before What the step before gave; +0 for the first.
    /// @param stated Exactly the operands.
    function evaluate(Graph.Site calldata site, uint256 step, uint256 before, bytes calldata stated)
        external
        pure
        returns (uint256 value);

    /// @notice Reads a job whose hash is given: the token at a position of prompt and prefix, and whether its sampler takes
    /// the first token of the order.
    function inputToken(bytes calldata job, bytes32 requestHash, uint256 position)
        external
        pure
        returns (uint256 token, bool greedy);

    /// @notice Reads an answer whose hash is given: its token number `index`.
    function outputToken(bytes calldata response, bytes32 responseHash, uint256 index)
        external
        pure
        returns (uint256 token);

    /// @notice Reads a manifest whose hash is given.
    function modelOf(bytes calldata manifest, bytes32 modelId)
        external
        pure
        returns (bytes32 weightsRoot, bytes32 graphHash);
}
