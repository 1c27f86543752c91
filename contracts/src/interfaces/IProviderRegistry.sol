// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title Providers and their stake
/// @notice A provider is the address of its operator key, the one that signs receipts. It publishes where it can
/// be reached and puts up a stake that a court can take from.
/// @dev Amounts are base units of the stake token, times are Unix seconds, shares are basis points.
///
/// Assumptions:
/// - The stake token moves exactly the amount asked for and its supply fits a uint128. Warning: with a fee on
///   transfer the last to leave is not paid in full.
/// - The slasher is a contract that takes stake only on proof. It cannot be replaced. If it is captured anyway,
///   it gets at most `maxSlashBps` of a stake per `unbondingDelay`, and the owner's `requestUnstake` ends that.
/// - Endpoints are what operators claim. Warning: a reader resolves and checks them before connecting.
interface IProviderRegistry {
    /// @param endpoint Where to connect, 1 to 256 bytes.
    /// @param transportKey Public key of the provider's transport; never zero.
    /// @param termsHash Commitment to everything else that the provider publishes off chain.
    /// @param registeredAt Zero if the address is not registered.
    struct Provider {
        string endpoint;
        bytes32 transportKey;
        bytes32 termsHash;
        uint64 registeredAt;
    }

    /// @param active Counts towards `isActive`.
    /// @param unbonding On its way out; earns nothing and can still be slashed.
    /// @param releaseAt When all of `unbonding` can be withdrawn.
    struct Stake {
        uint128 active;
        uint128 unbonding;
        uint64 releaseAt;
    }

    /// @notice One row of `providersPage`.
    struct Listing {
        address operator;
        Provider info;
        uint128 stake;
        bool active;
    }

    event Registered(address indexed operator, string endpoint, bytes32 transportKey, bytes32 termsHash);
    event Updated(address indexed operator, string endpoint, bytes32 transportKey, bytes32 termsHash);
    event Deregistered(address indexed operator);
    /// @param newStake Active stake after the call.
    event Staked(address indexed operator, uint128 amount, uint128 newStake);
    /// @param newStake Active stake after the call.
    event UnstakeRequested(address indexed operator, uint128 amount, uint128 newStake, uint64 releaseAt);
    event Unstaked(address indexed operator, uint128 amount);
    /// @param requested What the slasher asked for.
    /// @param amount What was taken: less than `requested` if the cap stood in the way.
    event Slashed(address indexed operator, address indexed recipient, uint128 requested, uint128 amount);

    error AlreadyRegistered(address operator);
    error NotRegistered(address operator);
    error BadEndpointLength(uint256 length, uint256 lengthMax);
    error ZeroTransportKey();
    error ZeroAmount();
    error InsufficientStake(uint128 requested, uint128 available);
    error NothingUnbonding();
    error StillUnbonding(uint64 releaseAt);
    error NotSlasher(address caller);
    error NothingToSlash(address operator);
    error BadRecipient(address recipient);
    error PageTooLarge(uint256 limit, uint256 limitMax);
    error BadParameter(string name);

    /// @notice Publishes the caller as a provider. Stake is not needed to be listed, only to be active.
    function register(string calldata endpoint, bytes32 transportKey, bytes32 termsHash) external;

    function update(string calldata endpoint, bytes32 transportKey, bytes32 termsHash) external;

    /// @notice Takes the caller off the list. Its stake stays, slashable, until it is unbonded and withdrawn.
    function deregister() external;

    /// @notice Adds to the caller's active stake; needs an allowance for this contract.
    function stake(uint128 amount) external;

    /// @notice Moves active stake into unbonding.
    /// @dev Warning: there is one release time for all of it, so a new request delays the older ones too.
    function requestUnstake(uint128 amount) external;

    /// @notice Pays out everything that is unbonding, once its time has come.
    function withdrawUnstaked() external returns (uint128 amount);

    /// @notice Takes up to `amount` of a provider's stake: the active part first, then what is unbonding.
    /// @dev Bounded by `slashableOf`. It takes less than asked rather than revert, or a provider could escape
    /// a verdict by lowering its stake just before.
    /// @return taken What `recipient` received; at least 1.
    function slash(address operator, uint128 amount, address recipient) external returns (uint128 taken);

    /// @notice Active stake.
    function stakeOf(address operator) external view returns (uint128);

    function stakeDetails(address operator) external view returns (Stake memory);

    /// @notice The most that a slash could take now.
    /// @dev Everything taken since the current window began stays within `maxSlashBps` of the stake before it,
    /// rounded down; a window lasts `unbondingDelay` and begins with the first slash after the last one ended.
    function slashableOf(address operator) external view returns (uint128);

    /// @notice Registered, with an active stake of at least `minStake`.
    function isActive(address operator) external view returns (bool);

    /// @dev All zero for an address that is not registered.
    function provider(address operator) external view returns (Provider memory);

    function providerCount() external view returns (uint256);

    /// @notice Rows `offset` to `offset + limit`, fewer at the end of the list.
    /// @dev The order changes when someone deregisters: read all pages at one block.
    /// @param limit At most 100.
    function providersPage(uint256 offset, uint256 limit) external view returns (Listing[] memory);
}
