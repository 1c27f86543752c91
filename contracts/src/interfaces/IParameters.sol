// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title Parameters
/// @notice What a network can change about itself, in one place: what the court takes and gives, and how much is audited.
/// @dev Amounts are base units of the stake token, shares are basis points or millionths (ppm), times are seconds.
///
/// A change is proposed by the owner and applied by anyone after `delay`, so that everybody sees it coming. What was
/// agreed on when a dispute was opened holds for it: each set of terms has a number and is kept.
///
/// Assumptions:
/// - The owner is a person, a group's wallet, or later a governor. It can do nothing but propose within the caps, which
///   are fixed for good.
/// - Windows are fixed for good, too: a clock that runs must not change under those who play against it.
/// - Warning: the policy binds nobody on chain. Gateways follow it because their users can see whether they do.
interface IParameters {
    /// @notice What the court enforces.
    /// @param bond What a challenger puts up.
    /// @param penalty What one request costs a convicted provider, as far as the registry's cap allows.
    /// @param rewardBps The challenger's share of what was taken.
    /// @param refundBps The most of what was taken that goes back to who paid for the answer.
    /// @param version Number of these terms, from 1.
    struct Terms {
        uint96 bond;
        uint96 penalty;
        uint16 rewardBps;
        uint16 refundBps;
        uint16 version;
    }

    /// @notice What gateways and auditors follow.
    /// @param auditFloorPpm Share of answers that is audited however much a provider has proven.
    /// @param auditHalfTokens Proven tokens after which half of the answers are audited.
    /// @param decoyPpm Share of an auditor's tasks that are decoys.
    /// @param recheckPpm Share of findings that are replayed once more.
    struct Policy {
        uint32 auditFloorPpm;
        uint64 auditHalfTokens;
        uint32 decoyPpm;
        uint32 recheckPpm;
    }

    event Proposed(Terms terms, Policy policy, uint64 from);
    event Cancelled();
    event Changed(uint16 indexed version, Terms terms, Policy policy);
    event OwnerOffered(address indexed next);
    event OwnerChanged(address indexed owner);

    error BadParameter(string name);
    error NotOwner(address caller);
    error NothingProposed();
    error TooEarly(uint64 from);
    error NoVersion(uint16 version);

    /// @notice Proposes terms and policy; the version in `terms` does not matter. An earlier proposal is forgotten.
    function propose(Terms calldata terms, Policy calldata policy_) external;

    /// @notice Forgets the proposal.
    function cancel() external;

    /// @notice Makes the proposal what holds from now on. Anyone may, once its time has come.
    function enact() external;

    /// @notice Offers the ownership; it is taken with `acceptOwner`.
    function offerOwner(address next) external;

    function acceptOwner() external;

    // ------------------------------------------------------------------ views

    function owner() external view returns (address);
    function delay() external view returns (uint64);
    function moveWindow() external view returns (uint32);
    function bondMax() external view returns (uint96);
    function penaltyMax() external view returns (uint96);

    /// @notice The terms that hold now.
    function current() external view returns (Terms memory);

    /// @notice Terms that held once.
    function termsOf(uint16 version) external view returns (Terms memory);

    /// @notice The policy that holds now.
    function policy() external view returns (Policy memory);

    /// @notice What is proposed, and from when it can be applied; 0 if nothing is.
    function proposal() external view returns (Terms memory terms, Policy memory policy_, uint64 from);
}
