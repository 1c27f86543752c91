// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {Preimages} from "./Preimages.sol";
import {ReceiptLib} from "./ReceiptLib.sol";
import {IBatchSettlement} from "./interfaces/IBatchSettlement.sol";
import {ICourt} from "./interfaces/ICourt.sol";
import {IProviderRegistry} from "./interfaces/IProviderRegistry.sol";

/// @notice What the court needs of the registry besides its interface.
interface ICourtRegistry is IProviderRegistry {
    function token() external view returns (IERC20);
    function slasher() external view returns (address);
    function unbondingDelay() external view returns (uint64);
}

/// @title Court
/// @notice See ICourt.
/// @dev Invariant: this contract holds at least the bonds of open disputes and what it owes. Slashed stake arrives here,
/// `rewardBps` of it goes to whoever brought the proof and the rest to `sink`: with less than all of it nobody gains by
/// convicting itself.
contract Court is ICourt {
    using SafeERC20 for IERC20;

    /// @notice Most moves of one dispute: two for each five levels of three trees and each seven of a chain, and the last.
    uint256 public constant MOVES_MAX = 48;
    uint256 private constant BPS = 10_000;

    struct ClaimDispute {
        address challenger;
        uint32 deadline;
        address provider;
        uint128 claimed;
    }

    ICourtRegistry public immutable registry;
    IBatchSettlement public immutable settlement;
    IERC20 public immutable token;
    address public immutable sink;
    uint128 public immutable bond;
    uint128 public immutable penalty;
    uint32 public immutable moveWindow;
    uint16 public immutable rewardBps;
    address public immutable trial;
    bytes32 public immutable receiptDomain;

    mapping(bytes32 channelId => ClaimDispute) public claimDisputes;
    /// @inheritdoc ICourt
    mapping(bytes32 offence => bool) public convicted;
    /// @inheritdoc ICourt
    mapping(address account => uint256) public owed;

    /// @param registry_ Deployed before, with the address that this contract gets as its slasher.
    /// @param trial_ Deployed after, with this contract as its court.
    /// @param sink_ Where the rest of a penalty goes.
    /// @param bond_ What a challenger puts up; it pays for the provider's moves.
    /// @param penalty_ What one request costs a convicted provider, as far as the registry's cap allows.
    /// @param moveWindow_ Seconds for each move.
    /// @param rewardBps_ Share of a penalty for the challenger, below 10,000.
    constructor(
        ICourtRegistry registry_,
        address trial_,
        IBatchSettlement settlement_,
        address sink_,
        uint128 bond_,
        uint128 penalty_,
        uint32 moveWindow_,
        uint16 rewardBps_
    ) {
        if (registry_.slasher() != address(this)) revert BadParameter("registry");
        if (trial_ == address(0)) revert BadParameter("trial");
        if (address(settlement_).code.length == 0) revert BadParameter("settlement");
        if (sink_ == address(0) || sink_ == address(this)) revert BadParameter("sink");
        if (bond_ == 0) revert BadParameter("bond");
        if (penalty_ == 0) revert BadParameter("penalty");
        if (moveWindow_ == 0 || moveWindow_ * (MOVES_MAX + 1) > registry_.unbondingDelay()) {
            revert BadParameter("moveWindow");
        }
        if (rewardBps_ >= BPS) revert BadParameter("rewardBps");
        registry = registry_;
        trial = trial_;
        settlement = settlement_;
        token = registry_.token();
        sink = sink_;
        bond = bond_;
        penalty = penalty_;
        moveWindow = moveWindow_;
        rewardBps = rewardBps_;
        receiptDomain = ReceiptLib.domainSeparator(block.chainid, address(registry_));
    }

    // ------------------------------------------------------------------ proofs in one transaction

    /// @inheritdoc ICourt
    function convictEquivocation(
        ReceiptLib.Receipt calldata a,
        bytes calldata signatureA,
        ReceiptLib.Receipt calldata b,
        bytes calldata signatureB
    ) external {
        address provider = ReceiptLib.recover(a, receiptDomain, signatureA);
        if (
            provider != ReceiptLib.recover(b, receiptDomain, signatureB) || a.requestHash != b.requestHash
                || a.outputTokens != b.outputTokens || a.responseHash == b.responseHash
        ) revert NotEquivocation();
        _convictAtOnce(provider, a.requestHash);
    }

    /// @inheritdoc ICourt
    function convictInput(ReceiptLib.Receipt calldata receipt, bytes calldata signature, bytes calldata job) external {
        address provider = ReceiptLib.recover(receipt, receiptDomain, signature);
        Preimages.Job memory j = Preimages.job(job, receipt.requestHash);
        if (j.promptTokens + j.prefixTokens == receipt.promptTokens && j.modelId == receipt.modelId) revert NoFault();
        _convictAtOnce(provider, receipt.requestHash);
    }

    /// @inheritdoc ICourt
    function convictOutput(ReceiptLib.Receipt calldata receipt, bytes calldata signature, bytes calldata response)
        external
    {
        address provider = ReceiptLib.recover(receipt, receiptDomain, signature);
        if (Preimages.outputCount(response, receipt.responseHash) == receipt.outputTokens) revert NoFault();
        _convictAtOnce(provider, receipt.requestHash);
    }

    // ------------------------------------------------------------------ claims above receipts

    /// @inheritdoc ICourt
    function challengeClaim(IBatchSettlement.ChannelConfig calldata config) external {
        bytes32 channelId = settlement.getChannelId(config);
        if (claimDisputes[channelId].challenger != address(0)) revert AlreadyChallenged(channelId);
        address provider = config.receiverAuthorizer;
        _requireStake(provider);
        (, uint128 claimed) = settlement.channels(channelId);
        // Nothing was claimed: nothing has to be covered.
        if (claimed == 0) revert NoFault();
        // Good until 2106.
        // forge-lint: disable-next-line(unsafe-typecast)
        claimDisputes[channelId] = ClaimDispute(msg.sender, uint32(block.timestamp) + moveWindow, provider, claimed);
        emit ClaimChallenged(channelId, msg.sender, provider, claimed);
        _takeBond(msg.sender);
    }

    /// @inheritdoc ICourt
    function justifyClaim(bytes32 channelId, ReceiptLib.Receipt calldata receipt, bytes calldata signature) external {
        ClaimDispute memory d = _claimDispute(channelId);
        if (block.timestamp > d.deadline) revert TooLate(d.deadline);
        if (receipt.channelId != channelId || ReceiptLib.recover(receipt, receiptDomain, signature) != d.provider) {
            revert NotSigned();
        }
        if (receipt.chargedTotal < d.claimed) revert NoFault();
        delete claimDisputes[channelId];
        _acquit(d.provider);
    }

    /// @inheritdoc ICourt
    function convictClaim(bytes32 channelId) external {
        ClaimDispute memory d = _claimDispute(channelId);
        if (block.timestamp <= d.deadline) revert NotLate(d.deadline);
        delete claimDisputes[channelId];
        // More may be claimed without a receipt later on: each amount is an offence of its own.
        _convict(d.provider, keccak256(abi.encode(d.provider, channelId, d.claimed)), d.challenger, bond);
    }

    /// @inheritdoc ICourt
    function deposit(uint128 amount) external {
        owed[msg.sender] += amount;
        emit Deposited(msg.sender, amount);
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @inheritdoc ICourt
    function withdraw() external returns (uint256 amount) {
        amount = owed[msg.sender];
        // slither-disable-next-line incorrect-equality (only saves the caller from an empty transfer)
        if (amount == 0) revert NothingOwed(msg.sender);
        owed[msg.sender] = 0;
        emit Paid(msg.sender, amount);
        token.safeTransfer(msg.sender, amount);
    }

    /// @inheritdoc ICourt
    function offenceOf(address provider, bytes32 requestHash) public pure returns (bytes32) {
        return keccak256(abi.encode(provider, requestHash));
    }

    // ------------------------------------------------------------------ for the trial

    /// @inheritdoc ICourt
    function open(address challenger, address provider, bytes32 requestHash) external {
        if (msg.sender != trial) revert NotTrial(msg.sender);
        _requirePunishable(provider, requestHash);
        _takeBond(challenger);
    }

    /// @inheritdoc ICourt
    function convict(address provider, bytes32 requestHash, address challenger) external {
        if (msg.sender != trial) revert NotTrial(msg.sender);
        _convict(provider, offenceOf(provider, requestHash), challenger, bond);
    }

    /// @inheritdoc ICourt
    function acquit(address provider) external {
        if (msg.sender != trial) revert NotTrial(msg.sender);
        _acquit(provider);
    }

    // ------------------------------------------------------------------ private

    /// @dev Slashes once for an offence; `refund` is the challenger's own bond. The registry is this network's own and
    /// calls nobody but the token, and the offence is marked before it is called.
    // slither-disable-next-line reentrancy-benign,reentrancy-events
    function _convict(address provider, bytes32 offence, address challenger, uint256 refund) private {
        uint128 taken;
        if (!convicted[offence]) {
            convicted[offence] = true;
            // A provider without stake is convicted all the same.
            if (registry.slashableOf(provider) != 0) taken = registry.slash(provider, penalty, address(this));
        }
        uint256 reward = uint256(taken) * rewardBps / BPS;
        owed[challenger] += refund + reward;
        if (taken > reward) owed[sink] += taken - reward;
        emit Convicted(provider, offence, challenger, taken);
    }

    /// @dev From what the challenger has here, or else from its wallet.
    function _takeBond(address challenger) private {
        uint256 has = owed[challenger];
        if (has >= bond) owed[challenger] = has - bond;
        else token.safeTransferFrom(challenger, address(this), bond);
    }

    function _acquit(address provider) private {
        owed[provider] += bond;
        emit Acquitted(provider, bond);
    }

    function _convictAtOnce(address provider, bytes32 requestHash) private {
        _convict(provider, _requirePunishable(provider, requestHash), msg.sender, 0);
    }

    function _requirePunishable(address provider, bytes32 requestHash) private view returns (bytes32 offence) {
        offence = offenceOf(provider, requestHash);
        if (convicted[offence]) revert AlreadyConvicted(offence);
        _requireStake(provider);
    }

    function _requireStake(address provider) private view {
        if (registry.slashableOf(provider) == 0) revert NothingAtStake(provider);
    }

    function _claimDispute(bytes32 channelId) private view returns (ClaimDispute memory d) {
        d = claimDisputes[channelId];
        if (d.challenger == address(0)) revert NotChallenged(channelId);
    }
}
