// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ReceiptLib} from "../ReceiptLib.sol";

/// @title Trial
/// @notice The game that finds the one wrong instruction behind a wrong answer; docs/COURT.md says why it does.
/// @dev Times are Unix seconds. Money is with the court.
///
/// Assumptions:
/// - The court was deployed with this contract as its trial; the constructor checks it.
/// - Who is party to a dispute can get a transaction into a block within `moveWindow`. Silence loses.
/// - A challenger has computed the trace itself. Whoever challenges a right answer loses the bond.
/// - Warning: the sampler is judged where it takes the first token of the order; a choice by chance is not, nor is the
///   end of an answer by its text.
interface ITrial {
    /// @dev Up to Convict: odd if the provider is to move, even if the challenger.
    enum Phase {
        None,
        RevealPositions,
        PickPosition,
        RevealOps,
        PickOp,
        RevealLeaves,
        PickLeaf,
        RevealNumbers,
        PickNumber,
        RevealSteps,
        PickStep,
        RevealOperands,
        Convict,
        Guilty,
        Closed
    }

    /// @param prefix Index so far in the tree that is descended; `remaining` is how many levels are below.
    /// @param version Of the terms that held when it was opened, and hold for it.
    /// @param node Where the descent stands; in the last phases the hash of what was revealed.
    struct Dispute {
        address challenger;
        uint32 deadline;
        uint16 turn;
        Phase phase;
        uint8 remaining;
        uint32 prefix;
        address provider;
        uint32 inputTokens;
        uint32 positions;
        uint16 ops;
        uint16 version;
        bytes32 node;
        bytes32 root;
        uint256 word;
        Spot spot;
    }

    /// @notice The number in dispute and the part of its chain: step `low` begins with `before`, step `high - 1` is said to
    /// end with `afterwards`.
    struct Spot {
        uint32 position;
        uint16 op;
        uint32 leaves;
        uint32 leaf;
        uint16 slot;
        uint24 low;
        uint24 high;
        uint32 before;
        uint32 afterwards;
    }

    /// @notice What a dispute is about, by hashes. A dispute's id is the hash of its challenger and this.
    /// @param receiptHash Of the receipt as a typed struct.
    struct Case {
        bytes32 receiptHash;
        bytes32 requestHash;
        bytes32 responseHash;
        bytes32 weightsRoot;
        bytes32 rotationRoot;
        bytes32 opsRoot;
        uint32 ops;
        uint32 weightLeaves;
        uint32 rotationLeaves;
    }

    /// @notice Where two parties agree that they stand after moves that were not sent to the chain.
    struct State {
        uint16 turn;
        Phase phase;
        uint8 remaining;
        uint32 prefix;
        bytes32 node;
        bytes32 root;
        uint256 word;
        Spot spot;
    }

    /// @notice A token of the request or the answer, once the challenger has shown it.
    struct Shown {
        uint32 position;
        uint32 token;
        bool hasToken;
        bool hasSampling;
        bool greedy;
    }

    /// @notice A leaf and the hashes beside its way to a root.
    struct Opening {
        bytes leaf;
        bytes32[] path;
    }

    event Challenged(bytes32 indexed dispute, address indexed challenger, address indexed provider, Case content);
    event Moved(bytes32 indexed dispute);
    event Convicted(bytes32 indexed dispute, address indexed provider, address indexed challenger);
    event Acquitted(bytes32 indexed dispute, address indexed provider, address indexed challenger);

    error BadParameter(string name);
    error AlreadyChallenged(bytes32 dispute);
    error NoTrace(uint64 inputTokens, uint64 outputTokens);
    error WrongPhase(Phase found);
    error NotYourMove(address caller);
    error TooLate(uint32 deadline);
    error NotLate(uint32 deadline);
    error NotTheCase();
    error WrongCount(uint256 found, uint256 expected);
    error WrongHash(bytes32 found, bytes32 expected);
    error OutOfRange(uint256 index, uint256 count);
    error NoFault();
    error NotShown();
    error NotJudged();
    error NotSigned();
    error OldState(uint16 found, uint16 current);

    // ------------------------------------------------------------------ disputes

    /// @notice Opens a dispute over the answer of a receipt; the court pulls the bond from the caller.
    /// @param manifest Canonical bytes of the model's manifest.
    /// @param content The case; its graph's part is checked against the manifest.
    function challenge(
        ReceiptLib.Receipt calldata receipt,
        bytes calldata signature,
        bytes calldata manifest,
        Case calldata content
    ) external returns (bytes32 dispute);

    /// @notice Provider: the children, up to 32, of the node where the descent stands; the first time, of its root.
    function reveal(bytes32 dispute, bytes32[] calldata children) external;

    /// @notice Challenger: the child that it has another hash for.
    /// @param path From the child to the node where the descent stands.
    function pick(bytes32 dispute, uint256 index, bytes32 child, bytes32[] calldata path) external;

    /// @notice Challenger: as `pick` for the last step among operations, with the operation.
    function pickOp(
        bytes32 dispute,
        uint256 index,
        bytes32 child,
        bytes32[] calldata path,
        uint256 word,
        bytes32[] calldata wordPath,
        Case calldata content
    ) external;

    /// @notice Provider: the contents of the up to eight leaves below the node.
    function revealNumbers(bytes32 dispute, bytes calldata leaves) external;

    /// @notice Challenger: the number that it has another value for.
    function pickNumber(bytes32 dispute, uint256 index, uint256 slot, Opening calldata leaf) external;

    /// @notice Provider: what the chain gave after each part of up to 128 equal parts of it, the last left out.
    function revealSteps(bytes32 dispute, bytes calldata values) external;

    /// @notice Challenger: the first part with another result.
    function pickStep(bytes32 dispute, uint256 part, bytes calldata values) external;

    /// @notice Provider: what the step reads.
    function revealOperands(bytes32 dispute, bytes calldata stated) external;

    /// @notice Challenger: the stated operands give another result, or one that is not a number.
    function convictStep(bytes32 dispute, bytes calldata stated) external;

    /// @notice Challenger: operand `index` is not what is in the provider's own trace, the model or the request.
    /// @param part Which of the leaves of the model that the operand reaches into.
    function convictOperand(
        bytes32 dispute,
        bytes calldata stated,
        uint256 index,
        uint256 part,
        Opening calldata opening,
        Case calldata content
    ) external;

    /// @notice Challenger: the sampler would have taken the token `better` rather than the one in the trace.
    function convictChoice(bytes32 dispute, uint256 better, Opening calldata ofChosen, Opening calldata ofBetter)
        external;

    /// @notice Challenger: the token that the trace has as chosen is not the one that was shown for the position after it.
    /// @param op Number of the operation that chooses; `word` and `wordPath` prove it.
    function convictAnswer(
        bytes32 dispute,
        uint256 op,
        uint256 word,
        bytes32[] calldata wordPath,
        Opening calldata opening,
        Case calldata content
    ) external;

    /// @notice Challenger: reads a token of the input at `position`, and how the sampler was set.
    function showInput(bytes32 dispute, uint32 position, bytes calldata job, Case calldata content) external;

    /// @notice Challenger: reads a token of the output at `position`, which counts from the begin of the input.
    function showOutput(bytes32 dispute, uint32 position, bytes calldata response, Case calldata content) external;

    /// @notice Either party gives up.
    function concede(bytes32 dispute) external;

    /// @notice Whoever is to move and has not in time loses. Anyone may say so.
    function timeout(bytes32 dispute) external;

    /// @notice Has the court punish a provider that was found guilty. Anyone may.
    function punish(bytes32 dispute, Case calldata content) external;

    /// @notice Goes on from a later state that both parties have signed.
    function advance(bytes32 dispute, State calldata state, bytes calldata ofChallenger, bytes calldata ofProvider)
        external;

    /// @notice Makes a move for the party that signed it: `call` is the call of a function above.
    function relay(bytes calldata call, bytes calldata signature) external;

    /// @notice Several calls in one transaction, of which one may depend on the other: a conviction and its punishment.
    function batch(bytes[] calldata calls) external;

    // ------------------------------------------------------------------ views

    function dispute(bytes32 id) external view returns (Dispute memory);
    function shown(bytes32 id) external view returns (Shown memory);
    /// @notice Typed data `State(bytes32 dispute,bytes state)`, with the ABI encoding of the state.
    function getStateDigest(bytes32 dispute, State calldata state) external view returns (bytes32);
    /// @notice Typed data `Move(bytes32 dispute,uint16 turn,bytes call)`.
    function getMoveDigest(bytes32 dispute, uint16 turn, bytes calldata call) external view returns (bytes32);
}
