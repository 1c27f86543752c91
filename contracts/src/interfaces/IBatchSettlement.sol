// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title Payment channels in the x402 `batch-settlement` scheme
/// @notice A payer escrows tokens once and then signs cumulative vouchers off chain. The receiver claims
/// the latest voucher of many channels in one call (accounting only) and sweeps what it claimed in one
/// transfer. What is not claimed goes back to the payer: at once if the receiver agrees, otherwise after
/// `withdrawDelay`.
/// @dev The types, names, events and typed data are those of the public scheme, so a stock x402 client or
/// facilitator can use this contract. Amounts are token base units, times are Unix seconds.
///
/// Assumptions:
/// - The token moves exactly the amount asked for. Warning: tokens that rebase or can take balances away
///   break the escrow of every channel in that token; a fee on the way in is detected, one on the way out
///   is the recipient's loss.
/// - The receiver gets a claim into a block within `withdrawDelay` of `WithdrawInitiated`. Warning: a
///   voucher that is not claimed reserves nothing.
/// - The chain has transient storage (EIP-1153).
/// - Nothing is set by a constructor and nothing is cached: the runtime code may be placed at any address
///   in a genesis block, and a fork with another chain id gets other digests.
interface IBatchSettlement {
    /// @notice The channel's identity: its id is the typed-data hash of this struct. Nothing in it can change.
    /// @param payer Whose tokens are escrowed and who gets back what is not claimed.
    /// @param payerAuthorizer The key that signs vouchers; zero means that `payer` signs, as key or contract.
    /// @param receiver Where claimed tokens go; may claim and refund.
    /// @param receiverAuthorizer The key or contract that may claim, refund, and sign both for a relay.
    /// @param withdrawDelay Seconds between the start and the end of a payer's withdrawal.
    /// @param salt Tells apart channels that are otherwise the same.
    struct ChannelConfig {
        address payer;
        address payerAuthorizer;
        address receiver;
        address receiverAuthorizer;
        address token;
        uint40 withdrawDelay;
        bytes32 salt;
    }

    /// @param balance Deposited, less refunds and withdrawals; claimed tokens stay counted.
    /// @param totalClaimed Never falls and never exceeds `balance`.
    struct ChannelState {
        uint128 balance;
        uint128 totalClaimed;
    }

    /// @param initiatedAt Zero if no withdrawal is pending.
    struct WithdrawalState {
        uint128 amount;
        uint40 initiatedAt;
    }

    /// @notice Sums over all channels of one receiver and one token.
    struct ReceiverState {
        uint128 totalClaimed;
        uint128 totalSettled;
    }

    /// @param maxClaimableAmount Cumulative ceiling over the channel's life, not an increment.
    struct Voucher {
        ChannelConfig channel;
        uint128 maxClaimableAmount;
    }

    /// @param signature The payer side's signature over `getVoucherDigest`.
    /// @param totalClaimed What the receiver claims, cumulative; at most the voucher's ceiling.
    struct VoucherClaim {
        Voucher voucher;
        bytes signature;
        uint128 totalClaimed;
    }

    /// @notice First deposit into an empty channel from which nothing was claimed. May repeat after a close.
    event ChannelCreated(bytes32 indexed channelId, ChannelConfig config);
    /// @notice The escrow of a channel from which nothing was claimed went back to zero.
    event ChannelClosed(bytes32 indexed channelId, ChannelConfig config);
    event Deposited(bytes32 indexed channelId, address indexed sender, uint128 amount, uint128 newBalance);
    /// @param claimAmount The increase; `newTotalClaimed` is the cumulative sum after it.
    event Claimed(bytes32 indexed channelId, address indexed sender, uint128 claimAmount, uint128 newTotalClaimed);
    event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);
    event Refunded(bytes32 indexed channelId, address indexed sender, uint128 amount);
    /// @param finalizeAfter First second in which `finalizeWithdraw` succeeds.
    event WithdrawInitiated(bytes32 indexed channelId, uint128 amount, uint40 finalizeAfter);
    event WithdrawFinalized(bytes32 indexed channelId, address indexed sender, uint128 amount);

    /// @notice A required address of the channel is zero, or the caller is not its payer side.
    error InvalidChannel();
    error ZeroDeposit();
    error DepositOverflow();
    error InvalidSignature();
    /// @notice Rows of one signed batch name different receiver authorizers.
    error NotReceiverAuthorizer();
    error NotAuthorizedToClaim();
    error NotAuthorizedToRefund();
    /// @notice The claim is higher than what the payer signed.
    error ClaimExceedsCeiling();
    /// @notice The claim is higher than what is escrowed.
    error ClaimExceedsBalance();
    error WithdrawalAlreadyPending();
    error WithdrawalNotPending();
    error NotAuthorizedToFinalizeWithdraw();
    error WithdrawDelayNotElapsed();
    error NothingToWithdraw();
    error WithdrawAmountExceedsAvailable();
    error WithdrawDelayOutOfRange();
    error EmptyBatch();
    /// @notice The collector did not bring exactly the deposited amount.
    error DepositCollectionFailed();
    error InvalidCollector();
    error InvalidRefundNonce();
    error ZeroRefund();

    /// @notice Escrows `amount` of the payer's tokens; the first deposit creates the channel.
    /// @dev Anyone may submit it: what the payer agreed to is checked by the collector and the token.
    /// @param collector Warning: chosen by the caller. It only ever sees what the payer authorised it to move.
    function deposit(ChannelConfig calldata config, uint128 amount, address collector, bytes calldata collectorData)
        external;

    /// @notice Books vouchers of any number of channels; no token moves.
    /// @dev The caller must be `receiver` or `receiverAuthorizer` of every row. A row that does not raise
    /// `totalClaimed` is skipped, so a replay changes nothing. Any other bad row reverts the whole batch.
    function claim(VoucherClaim[] calldata voucherClaims) external;

    /// @notice As `claim`, submitted by anyone with the signature of the one `receiverAuthorizer` of all rows
    /// over `getClaimBatchDigest`.
    function claimWithSignature(VoucherClaim[] calldata voucherClaims, bytes calldata authorizerSignature) external;

    /// @notice Sends everything claimed and not yet settled to `receiver`. Anyone may call; nothing due is no error.
    function settle(address receiver, address token) external;

    /// @notice The payer side starts taking back up to `amount` of what is not claimed. One at a time.
    function initiateWithdraw(ChannelConfig calldata config, uint128 amount) external;

    /// @notice Pays the pending withdrawal to the payer after `withdrawDelay`, less what was claimed or
    /// refunded meanwhile. Only the payer side may call.
    function finalizeWithdraw(ChannelConfig calldata config) external;

    /// @notice The receiver side gives back `amount`, or all that is not claimed if that is less.
    /// @dev Each call uses up one `refundNonce`, also when nothing was left to give back: a direct refund
    /// voids a signed one that is still on its way. A pending withdrawal shrinks by what was refunded.
    function refund(ChannelConfig calldata config, uint128 amount) external;

    /// @notice As `refund`, submitted by anyone with `receiverAuthorizer`'s signature over `getRefundDigest`.
    function refundWithSignature(
        ChannelConfig calldata config,
        uint128 amount,
        uint256 nonce,
        bytes calldata receiverAuthorizerSignature
    ) external;

    function channels(bytes32 channelId) external view returns (uint128 balance, uint128 totalClaimed);

    /// @notice The nonce that the next signed refund of this channel has to carry.
    function refundNonce(bytes32 channelId) external view returns (uint256);

    function pendingWithdrawals(bytes32 channelId) external view returns (uint128 amount, uint40 initiatedAt);

    function receivers(address receiver, address token)
        external
        view
        returns (uint128 totalClaimed, uint128 totalSettled);

    /// @notice Typed-data hash of the configuration, bound to this chain and this contract.
    function getChannelId(ChannelConfig calldata config) external view returns (bytes32);

    function getVoucherDigest(bytes32 channelId, uint128 maxClaimableAmount) external view returns (bytes32);

    function getRefundDigest(bytes32 channelId, uint256 nonce, uint128 amount) external view returns (bytes32);

    /// @dev Defined for an empty list too, which no mutating function accepts.
    function getClaimBatchDigest(VoucherClaim[] calldata voucherClaims) external view returns (bytes32);
}
