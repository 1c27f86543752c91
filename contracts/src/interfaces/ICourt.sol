// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ReceiptLib} from "../ReceiptLib.sol";
import {IBatchSettlement} from "./IBatchSettlement.sol";
import {IParameters} from "./IParameters.sol";

/// @title Court
/// @notice Convicts providers that signed for what is not so, and nobody else; holds bonds and pays rewards.
/// @dev Amounts are base units of the stake token, times are Unix seconds.
///
/// Assumptions:
/// - The registry was deployed with this contract as its slasher, and its unbonding delay is longer than a dispute can
///   last; the constructor checks both.
/// - The trial convicts only on proof. It cannot be replaced. What it can take is bounded by the penalty for a request
///   and by the registry's cap.
/// - A provider keeps its receipts and can get a transaction into a block within `moveWindow`.
/// - The payer of a punished receipt is who its channel says. A provider that signs a receipt for a channel that nobody
///   knows gains nothing by it: what would be paid back stays here.
/// - Warning: whoever first sends a proof that needs no game (equivocation, counts) is paid for it, and a proof in the
///   mempool can be copied. The penalty is the same.
interface ICourt {
    event Convicted(
        address indexed provider, bytes32 indexed offence, address indexed challenger, uint128 slashed, uint16 version
    );
    event Refunded(bytes32 indexed offence, address indexed payer, bytes32 indexed channelId, uint128 amount);
    event Acquitted(address indexed provider, uint256 bond);
    event ClaimChallenged(
        bytes32 indexed channelId, address indexed challenger, address indexed provider, uint128 claimed
    );
    event Deposited(address indexed account, uint256 amount);
    event Paid(address indexed account, uint256 amount);

    error BadParameter(string name);
    error NotTrial(address caller);
    error NothingAtStake(address provider);
    error AlreadyConvicted(bytes32 offence);
    error AlreadyChallenged(bytes32 channelId);
    error NotChallenged(bytes32 channelId);
    error TooLate(uint32 deadline);
    error NotLate(uint32 deadline);
    error NoFault();
    error NotSigned();
    error NotEquivocation();
    error NothingOwed(address account);
    error NothingHeld(bytes32 offence);
    error NotTheChannel(bytes32 channelId);

    // ------------------------------------------------------------------ proofs in one transaction

    /// @notice Two receipts for one request, of as many tokens, with different answers.
    function convictEquivocation(
        ReceiptLib.Receipt calldata a,
        bytes calldata signatureA,
        ReceiptLib.Receipt calldata b,
        bytes calldata signatureB
    ) external;

    /// @notice A receipt that counts, and so bills, other tokens than the request has, or names another model.
    /// @param job What `requestHash` is the hash of.
    function convictInput(ReceiptLib.Receipt calldata receipt, bytes calldata signature, bytes calldata job) external;

    /// @notice A receipt that counts other output tokens than the answer has.
    /// @param response What `responseHash` is the hash of.
    function convictOutput(ReceiptLib.Receipt calldata receipt, bytes calldata signature, bytes calldata response)
        external;

    // ------------------------------------------------------------------ claims above receipts

    /// @notice Asks the provider of a channel for a receipt over what was claimed from it; costs the bond if it has one.
    function challengeClaim(IBatchSettlement.ChannelConfig calldata config) external;

    /// @notice Shows the receipt. Anyone may.
    function justifyClaim(bytes32 channelId, ReceiptLib.Receipt calldata receipt, bytes calldata signature) external;

    /// @notice Convicts a provider that had no receipt in time.
    function convictClaim(bytes32 channelId) external;

    // ------------------------------------------------------------------ money

    /// @notice Adds to what the caller is owed: a challenger whose bonds are taken from there needs less gas.
    function deposit(uint128 amount) external;

    /// @notice Pays out what the caller is owed.
    function withdraw() external returns (uint256 amount);

    /// @notice Pays the payer of a punished receipt back what it was charged, as far as its share of what was taken goes,
    /// and gives the rest to the sink. Anyone may, once. Both are owed then, and withdrawn.
    /// @param receipt The one that was punished: in a dispute that of its case, of two the first.
    /// @param config The channel that the receipt names.
    /// @param slashed What the conviction took, and the version of its terms, as `Convicted` says.
    function refund(
        ReceiptLib.Receipt calldata receipt,
        address provider,
        IBatchSettlement.ChannelConfig calldata config,
        uint128 slashed,
        uint16 version
    ) external returns (uint128 amount);

    /// @notice For the trial: takes a challenger's bond, unless the request was punished or nothing is at stake.
    function open(address challenger, address provider, bytes32 requestHash, uint96 bond) external;

    /// @notice For the trial: the provider is guilty. The challenger gets its bond and a share of the penalty.
    function convict(address provider, bytes32 requestHash, address challenger, uint16 version, bytes32 receiptHash)
        external;

    /// @notice For the trial: the challenger has lost, and its bond is the provider's.
    function acquit(address provider, uint16 version) external;

    // ------------------------------------------------------------------ views

    function trial() external view returns (address);

    /// @notice Where bond, penalty and shares stand.
    function parameters() external view returns (IParameters);
    function moveWindow() external view returns (uint32);
    function receiptDomain() external view returns (bytes32);
    function owed(address account) external view returns (uint256);
    function convicted(bytes32 offence) external view returns (bool);

    /// @notice Whether what was taken for an offence is given away, and how much of it went back to the payer.
    function refunded(bytes32 offence) external view returns (bool isPaid, uint128 amount);

    /// @notice One penalty for one request: what convictions of any kind share.
    function offenceOf(address provider, bytes32 requestHash) external pure returns (bytes32);
}
