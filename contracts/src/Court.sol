// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {Preimages} from "./Preimages.sol";
import {ReceiptLib} from "./ReceiptLib.sol";
import {IBatchSettlement} from "./interfaces/IBatchSettlement.sol";
import {ICourt} from "./interfaces/ICourt.sol";
import {IParameters} from "./interfaces/IParameters.sol";
import {IProviderRegistry} from "./interfaces/IProviderRegistry.sol";

/// @notice What the court needs of the registry besides its interface.
interface ICourtRegistry is IProviderRegistry {
    function token() external view returns (IERC20);
    function slasher() external view returns (address);
    function unbondingDelay() external view returns (uint64);
}

/// @title Court
/// @notice See ICourt.
/// @dev Invariant: this contract holds at least the bonds of open disputes, what it owes, and what it holds for payers.
/// Slashed stake arrives here: `rewardBps` of it goes to whoever brought the proof, what the answer had cost back to its
/// payer, up to `refundBps` of it, and the rest to `sink`. Reward and refund together are less than all of it, so that
/// nobody gains by convicting itself, also not as its own challenger and payer.
contract Court is ICourt {
    using SafeERC20 for IERC20;

    /// @notice Most moves of one dispute: two for each five levels of three trees and each seven of a chain, and the last.
    uint256 public constant MOVES_MAX = 48;
    uint256 private constant BPS = 10_000;

    struct ClaimDispute {
        address challenger;
        uint32 deadline;
        uint16 version;
        address provider;
        uint128 claimed;
    }

    ICourtRegistry public immutable registry;
    IBatchSettlement public immutable settlement;
    IERC20 public immutable token;
    address public immutable sink;
    /// @inheritdoc ICourt
    IParameters public immutable parameters;
    uint32 public immutable moveWindow;
    address public immutable trial;
    bytes32 public immutable receiptDomain;

    mapping(bytes32 channelId => ClaimDispute) public claimDisputes;
    /// @dev Zero: not convicted. Up to 2^128: convicted, and one more than what was paid back. Else `_heldHash`.
    mapping(bytes32 offence => bytes32) private _held;
    /// @inheritdoc ICourt
    mapping(address account => uint256) public owed;

    /// @param registry_ Deployed before, with the address that this contract gets as its slasher.
    /// @param trial_ Deployed after, with this contract as its court.
    /// @param sink_ Where the rest of a penalty goes.
    /// @param parameters_ Bond, penalty and shares, and for good the seconds for each move.
    constructor(
        ICourtRegistry registry_,
        address trial_,
        IBatchSettlement settlement_,
        address sink_,
        IParameters parameters_
    ) {
        if (registry_.slasher() != address(this)) revert BadParameter("registry");
        if (trial_ == address(0)) revert BadParameter("trial");
        if (address(settlement_).code.length == 0) revert BadParameter("settlement");
        if (sink_ == address(0) || sink_ == address(this)) revert BadParameter("sink");
        if (address(parameters_).code.length == 0) revert BadParameter("parameters");
        uint32 moveWindow_ = parameters_.moveWindow();
        if (moveWindow_ == 0 || moveWindow_ * (MOVES_MAX + 1) > registry_.unbondingDelay()) {
            revert BadParameter("moveWindow");
        }
        registry = registry_;
        trial = trial_;
        settlement = settlement_;
        token = registry_.token();
        sink = sink_;
        parameters = parameters_;
        moveWindow = moveWindow_;
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
        _convictAtOnce(provider, a);
    }

    /// @inheritdoc ICourt
    function convictInput(ReceiptLib.Receipt calldata receipt, bytes calldata signature, bytes calldata job) external {
        address provider = ReceiptLib.recover(receipt, receiptDomain, signature);
        Preimages.Job memory j = Preimages.job(job, receipt.requestHash);
        if (j.promptTokens + j.prefixTokens == receipt.promptTokens && j.modelId == receipt.modelId) revert NoFault();
        _convictAtOnce(provider, receipt);
    }

    /// @inheritdoc ICourt
    function convictOutput(ReceiptLib.Receipt calldata receipt, bytes calldata signature, bytes calldata response)
        external
    {
        address provider = ReceiptLib.recover(receipt, receiptDomain, signature);
        if (Preimages.outputCount(response, receipt.responseHash) == receipt.outputTokens) revert NoFault();
        _convictAtOnce(provider, receipt);
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
        IParameters.Terms memory terms = parameters.current();
        // Good until 2106.
        // forge-lint: disable-next-line(unsafe-typecast)
        uint32 deadline = uint32(block.timestamp) + moveWindow;
        claimDisputes[channelId] = ClaimDispute(msg.sender, deadline, terms.version, provider, claimed);
        emit ClaimChallenged(channelId, msg.sender, provider, claimed);
        _takeBond(msg.sender, terms.bond);
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
        _acquit(d.provider, d.version);
    }

    /// @inheritdoc ICourt
    function convictClaim(bytes32 channelId) external {
        ClaimDispute memory d = _claimDispute(channelId);
        if (block.timestamp <= d.deadline) revert NotLate(d.deadline);
        delete claimDisputes[channelId];
        // More may be claimed without a receipt later on: each amount is an offence of its own. No receipt says what of
        // it was owed, so nothing is held for the payer.
        IParameters.Terms memory terms = parameters.termsOf(d.version);
        bytes32 offence = keccak256(abi.encode(d.provider, channelId, d.claimed));
        _convict(d.provider, offence, d.challenger, terms, terms.bond, 0);
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
    function refund(
        ReceiptLib.Receipt calldata receipt,
        address provider,
        IBatchSettlement.ChannelConfig calldata config,
        uint128 slashed,
        uint16 version
    ) external returns (uint128 amount) {
        bytes32 offence = offenceOf(provider, receipt.requestHash);
        if (_held[offence] != _heldHash(ReceiptLib.structHash(receipt), slashed, version)) revert NothingHeld(offence);
        if (settlement.getChannelId(config) != receipt.channelId) revert NotTheChannel(receipt.channelId);
        IParameters.Terms memory terms = parameters.termsOf(version);
        uint256 most = uint256(slashed) * terms.refundBps / BPS;
        // The smaller of the two was 128 bits before.
        // forge-lint: disable-next-line(unsafe-typecast)
        amount = receipt.charged < most ? receipt.charged : uint128(most);
        _held[offence] = bytes32(uint256(amount) + 1);
        owed[config.payer] += amount;
        owed[sink] += slashed - uint256(slashed) * terms.rewardBps / BPS - amount;
        emit Refunded(offence, config.payer, receipt.channelId, amount);
    }

    /// @inheritdoc ICourt
    function convicted(bytes32 offence) public view returns (bool) {
        return _held[offence] != 0;
    }

    /// @inheritdoc ICourt
    function refunded(bytes32 offence) external view returns (bool isPaid, uint128 amount) {
        uint256 held = uint256(_held[offence]);
        isPaid = held != 0 && held <= 1 << 128;
        // One less than 2^128 at most.
        // forge-lint: disable-next-line(unsafe-typecast)
        if (isPaid) amount = uint128(held - 1);
    }

    /// @inheritdoc ICourt
    function offenceOf(address provider, bytes32 requestHash) public pure returns (bytes32) {
        return keccak256(abi.encode(provider, requestHash));
    }

    // ------------------------------------------------------------------ for the trial

    /// @inheritdoc ICourt
    function open(address challenger, address provider, bytes32 requestHash, uint96 bond) external {
        if (msg.sender != trial) revert NotTrial(msg.sender);
        _requirePunishable(provider, requestHash);
        _takeBond(challenger, bond);
    }

    /// @inheritdoc ICourt
    function convict(address provider, bytes32 requestHash, address challenger, uint16 version, bytes32 receiptHash)
        external
    {
        if (msg.sender != trial) revert NotTrial(msg.sender);
        IParameters.Terms memory terms = parameters.termsOf(version);
        _convict(provider, offenceOf(provider, requestHash), challenger, terms, terms.bond, receiptHash);
    }

    /// @inheritdoc ICourt
    function acquit(address provider, uint16 version) external {
        if (msg.sender != trial) revert NotTrial(msg.sender);
        _acquit(provider, version);
    }

    // ------------------------------------------------------------------ private

    /// @dev Slashes once for an offence. `bond` is the challenger's own. What is not its reward is held until the payer
    /// of the receipt has been paid back; without a receipt it is the sink's. The registry is this network's own and
    /// calls nobody but the token, and the offence is marked before it is called.
    // slither-disable-next-line reentrancy-benign,reentrancy-events,reentrancy-no-eth
    function _convict(
        address provider,
        bytes32 offence,
        address challenger,
        IParameters.Terms memory terms,
        uint256 bond,
        bytes32 receiptHash
    ) private {
        uint128 taken;
        // slither-disable-next-line incorrect-equality (a hash or a mark, not a balance)
        if (_held[offence] == 0) {
            _held[offence] = bytes32(uint256(1));
            // A provider without stake is convicted all the same.
            if (registry.slashableOf(provider) != 0) taken = registry.slash(provider, terms.penalty, address(this));
        }
        uint256 reward = uint256(taken) * terms.rewardBps / BPS;
        owed[challenger] += bond + reward;
        if (taken != 0) {
            if (receiptHash == 0) owed[sink] += taken - reward;
            else _held[offence] = _heldHash(receiptHash, taken, terms.version);
        }
        emit Convicted(provider, offence, challenger, taken, terms.version);
    }

    /// @dev Says of which receipt and how much, in one word: whoever has a payer paid back has to know it.
    function _heldHash(bytes32 receiptHash, uint128 slashed, uint16 version) private pure returns (bytes32) {
        return keccak256(abi.encode(receiptHash, slashed, version));
    }

    /// @dev From what the challenger has here, or else from its wallet.
    function _takeBond(address challenger, uint256 bond) private {
        uint256 has = owed[challenger];
        if (has >= bond) owed[challenger] = has - bond;
        else token.safeTransferFrom(challenger, address(this), bond);
    }

    function _acquit(address provider, uint16 version) private {
        uint256 bond = parameters.termsOf(version).bond;
        owed[provider] += bond;
        emit Acquitted(provider, bond);
    }

    function _convictAtOnce(address provider, ReceiptLib.Receipt calldata receipt) private {
        bytes32 offence = _requirePunishable(provider, receipt.requestHash);
        _convict(provider, offence, msg.sender, parameters.current(), 0, ReceiptLib.structHash(receipt));
    }

    function _requirePunishable(address provider, bytes32 requestHash) private view returns (bytes32 offence) {
        offence = offenceOf(provider, requestHash);
        if (convicted(offence)) revert AlreadyConvicted(offence);
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
