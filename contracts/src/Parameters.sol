// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IParameters} from "./interfaces/IParameters.sol";

/// @title Parameters
/// @notice See IParameters.
/// @dev Invariant: every set of terms that was ever in force is within the caps.
contract Parameters is IParameters {
    uint32 private constant MILLION = 1_000_000;
    /// @notice Reward and refund together: the rest is lost to whoever convicts itself.
    uint256 public constant SHARES_MAX_BPS = 9_000;
    /// @notice Audits cannot be voted away: one answer of a thousand at least.
    uint32 public constant AUDIT_FLOOR_MIN_PPM = 1_000;
    uint64 public constant DELAY_MIN = 1 hours;
    uint64 public constant DELAY_MAX = 90 days;

    /// @inheritdoc IParameters
    uint64 public immutable delay;
    /// @inheritdoc IParameters
    uint32 public immutable moveWindow;
    /// @inheritdoc IParameters
    uint96 public immutable bondMax;
    /// @inheritdoc IParameters
    uint96 public immutable penaltyMax;

    /// @inheritdoc IParameters
    address public owner;
    address public nextOwner;
    Terms private _current;
    Policy private _policy;
    Terms private _nextTerms;
    Policy private _nextPolicy;
    uint64 private _from;
    mapping(uint16 version => Terms) private _terms;

    /// @param owner_ Who may propose.
    /// @param delay_ Seconds between a proposal and its application, an hour to 90 days.
    /// @param moveWindow_ Seconds for each move of a dispute, for good.
    /// @param bondMax_ No bond is ever larger.
    /// @param penaltyMax_ No penalty is ever larger.
    constructor(
        address owner_,
        uint64 delay_,
        uint32 moveWindow_,
        uint96 bondMax_,
        uint96 penaltyMax_,
        Terms memory terms_,
        Policy memory policy_
    ) {
        if (owner_ == address(0)) revert BadParameter("owner");
        if (delay_ < DELAY_MIN || delay_ > DELAY_MAX) revert BadParameter("delay");
        if (moveWindow_ == 0) revert BadParameter("moveWindow");
        owner = owner_;
        delay = delay_;
        moveWindow = moveWindow_;
        bondMax = bondMax_;
        penaltyMax = penaltyMax_;
        _requireWithin(terms_, policy_, bondMax_, penaltyMax_);
        _set(terms_, policy_, 1);
        emit OwnerChanged(owner_);
    }

    /// @inheritdoc IParameters
    function propose(Terms calldata terms, Policy calldata policy_) external {
        _requireOwner();
        _requireWithin(terms, policy_, bondMax, penaltyMax);
        _nextTerms = terms;
        _nextPolicy = policy_;
        _from = uint64(block.timestamp) + delay;
        emit Proposed(terms, policy_, _from);
    }

    /// @inheritdoc IParameters
    function cancel() external {
        _requireOwner();
        if (_from == 0) revert NothingProposed();
        _from = 0;
        emit Cancelled();
    }

    /// @inheritdoc IParameters
    function enact() external {
        // slither-disable-next-line incorrect-equality (zero says that nothing is proposed)
        if (_from == 0) revert NothingProposed();
        if (block.timestamp < _from) revert TooEarly(_from);
        _from = 0;
        _set(_nextTerms, _nextPolicy, _current.version + 1);
    }

    /// @inheritdoc IParameters
    function offerOwner(address next) external {
        _requireOwner();
        // slither-disable-next-line missing-zero-check (zero takes the offer back)
        nextOwner = next;
        emit OwnerOffered(next);
    }

    /// @inheritdoc IParameters
    function acceptOwner() external {
        if (msg.sender != nextOwner) revert NotOwner(msg.sender);
        owner = msg.sender;
        nextOwner = address(0);
        emit OwnerChanged(msg.sender);
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IParameters
    function current() external view returns (Terms memory) {
        return _current;
    }

    /// @inheritdoc IParameters
    function termsOf(uint16 version) external view returns (Terms memory terms) {
        terms = _terms[version];
        if (terms.version == 0) revert NoVersion(version);
    }

    /// @inheritdoc IParameters
    function policy() external view returns (Policy memory) {
        return _policy;
    }

    /// @inheritdoc IParameters
    function proposal() external view returns (Terms memory terms, Policy memory policy_, uint64 from) {
        if (_from != 0) return (_nextTerms, _nextPolicy, _from);
    }

    // ------------------------------------------------------------------ private

    function _set(Terms memory terms, Policy memory policy_, uint16 version) private {
        terms.version = version;
        _current = terms;
        _terms[version] = terms;
        _policy = policy_;
        emit Changed(version, terms, policy_);
    }

    function _requireOwner() private view {
        if (msg.sender != owner) revert NotOwner(msg.sender);
    }

    function _requireWithin(Terms memory terms, Policy memory policy_, uint96 bonds, uint96 penalties) private pure {
        if (terms.bond == 0 || terms.bond > bonds) revert BadParameter("bond");
        if (terms.penalty == 0 || terms.penalty > penalties) revert BadParameter("penalty");
        if (uint256(terms.rewardBps) + terms.refundBps > SHARES_MAX_BPS) revert BadParameter("rewardBps");
        if (policy_.auditFloorPpm < AUDIT_FLOOR_MIN_PPM || policy_.auditFloorPpm > MILLION) {
            revert BadParameter("auditFloorPpm");
        }
        if (policy_.auditHalfTokens == 0) revert BadParameter("auditHalfTokens");
        if (policy_.decoyPpm > MILLION) revert BadParameter("decoyPpm");
        if (policy_.recheckPpm > MILLION) revert BadParameter("recheckPpm");
    }
}
