// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {EnumerableSet} from "@openzeppelin/contracts/utils/structs/EnumerableSet.sol";

import {IProviderRegistry} from "./interfaces/IProviderRegistry.sol";

/// @title ProviderRegistry
/// @notice See IProviderRegistry, which says what each function does and what is assumed.
/// @dev Invariant: this contract holds at least the sum over all providers of `active + unbonding`.
contract ProviderRegistry is IProviderRegistry {
    using EnumerableSet for EnumerableSet.AddressSet;
    using SafeERC20 for IERC20;

    struct SlashWindow {
        uint64 startedAt;
        uint128 taken;
    }

    uint256 public constant ENDPOINT_BYTES_MAX = 256;
    uint256 public constant PAGE_ROWS_MAX = 100;
    uint64 public constant UNBONDING_DELAY_MAX = 365 days;
    uint256 private constant BPS = 10_000;

    IERC20 public immutable token;
    uint128 public immutable minStake;
    uint64 public immutable unbondingDelay;
    address public immutable slasher;
    uint16 public immutable maxSlashBps;

    EnumerableSet.AddressSet private _operators;
    mapping(address operator => Provider) private _providers;
    mapping(address operator => Stake) private _stakes;
    mapping(address operator => SlashWindow) private _slashWindows;

    /// @param minStake_ Active stake from which a provider counts as active; at least 1.
    /// @param unbondingDelay_ Seconds, 1 to 365 days; 7 days unless a court needs longer.
    /// @param slasher_ The only address that can slash, for good.
    /// @param maxSlashBps_ 1 to 10,000; see `slashableOf`.
    constructor(IERC20 token_, uint128 minStake_, uint64 unbondingDelay_, address slasher_, uint16 maxSlashBps_) {
        if (address(token_).code.length == 0) revert BadParameter("token");
        if (minStake_ == 0) revert BadParameter("minStake");
        if (unbondingDelay_ == 0 || unbondingDelay_ > UNBONDING_DELAY_MAX) revert BadParameter("unbondingDelay");
        if (slasher_ == address(0)) revert BadParameter("slasher");
        if (maxSlashBps_ == 0 || maxSlashBps_ > BPS) revert BadParameter("maxSlashBps");
        token = token_;
        minStake = minStake_;
        unbondingDelay = unbondingDelay_;
        slasher = slasher_;
        maxSlashBps = maxSlashBps_;
    }

    // ------------------------------------------------------------------ identity

    /// @inheritdoc IProviderRegistry
    function register(string calldata endpoint, bytes32 transportKey, bytes32 termsHash) external {
        _requireValid(endpoint, transportKey);
        if (!_operators.add(msg.sender)) revert AlreadyRegistered(msg.sender);
        _providers[msg.sender] = Provider(endpoint, transportKey, termsHash, uint64(block.timestamp));
        emit Registered(msg.sender, endpoint, transportKey, termsHash);
    }

    /// @inheritdoc IProviderRegistry
    function update(string calldata endpoint, bytes32 transportKey, bytes32 termsHash) external {
        _requireRegistered();
        _requireValid(endpoint, transportKey);
        Provider storage info = _providers[msg.sender];
        info.endpoint = endpoint;
        info.transportKey = transportKey;
        info.termsHash = termsHash;
        emit Updated(msg.sender, endpoint, transportKey, termsHash);
    }

    /// @inheritdoc IProviderRegistry
    function deregister() external {
        if (!_operators.remove(msg.sender)) revert NotRegistered(msg.sender);
        delete _providers[msg.sender];
        emit Deregistered(msg.sender);
    }

    // ------------------------------------------------------------------ stake

    /// @inheritdoc IProviderRegistry
    function stake(uint128 amount) external {
        _requireRegistered();
        if (amount == 0) revert ZeroAmount();
        Stake storage held = _stakes[msg.sender];
        held.active += amount;
        emit Staked(msg.sender, amount, held.active);
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @inheritdoc IProviderRegistry
    function requestUnstake(uint128 amount) external {
        if (amount == 0) revert ZeroAmount();
        Stake storage held = _stakes[msg.sender];
        if (amount > held.active) revert InsufficientStake(amount, held.active);
        held.active -= amount;
        held.unbonding += amount;
        held.releaseAt = uint64(block.timestamp) + unbondingDelay;
        emit UnstakeRequested(msg.sender, amount, held.active, held.releaseAt);
    }

    /// @inheritdoc IProviderRegistry
    function withdrawUnstaked() external returns (uint128 amount) {
        Stake storage held = _stakes[msg.sender];
        amount = held.unbonding;
        if (amount == 0) revert NothingUnbonding();
        if (block.timestamp < held.releaseAt) revert StillUnbonding(held.releaseAt);
        held.unbonding = 0;
        emit Unstaked(msg.sender, amount);
        token.safeTransfer(msg.sender, amount);
    }

    /// @inheritdoc IProviderRegistry
    function slash(address operator, uint128 amount, address recipient) external returns (uint128 taken) {
        if (msg.sender != slasher) revert NotSlasher(msg.sender);
        if (amount == 0) revert ZeroAmount();
        // Tokens sent here would belong to nobody.
        if (recipient == address(0) || recipient == address(this)) revert BadRecipient(recipient);
        taken = _min(amount, slashableOf(operator));
        if (taken == 0) revert NothingToSlash(operator);

        SlashWindow storage window = _slashWindows[operator];
        if (!_isOpen(window)) {
            window.startedAt = uint64(block.timestamp);
            window.taken = 0;
        }
        window.taken += taken;

        Stake storage held = _stakes[operator];
        uint128 fromActive = _min(taken, held.active);
        held.active -= fromActive;
        held.unbonding -= taken - fromActive;
        emit Slashed(operator, recipient, amount, taken);
        token.safeTransfer(recipient, taken);
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IProviderRegistry
    function stakeOf(address operator) public view returns (uint128) {
        return _stakes[operator].active;
    }

    /// @inheritdoc IProviderRegistry
    function stakeDetails(address operator) external view returns (Stake memory) {
        return _stakes[operator];
    }

    /// @inheritdoc IProviderRegistry
    function slashableOf(address operator) public view returns (uint128) {
        Stake storage held = _stakes[operator];
        SlashWindow storage window = _slashWindows[operator];
        uint256 taken = _isOpen(window) ? window.taken : 0;
        uint256 stakeBefore = uint256(held.active) + held.unbonding + taken;
        uint256 cap = stakeBefore * maxSlashBps / BPS;
        // A withdrawal inside the window lowers the cap, possibly below what was already taken.
        if (cap <= taken) return 0;
        // At most active + unbonding, which is at most the token's supply, which fits.
        // forge-lint: disable-next-line(unsafe-typecast)
        return uint128(cap - taken);
    }

    /// @inheritdoc IProviderRegistry
    function isActive(address operator) public view returns (bool) {
        return _operators.contains(operator) && _stakes[operator].active >= minStake;
    }

    /// @inheritdoc IProviderRegistry
    function provider(address operator) external view returns (Provider memory) {
        return _providers[operator];
    }

    /// @inheritdoc IProviderRegistry
    function providerCount() external view returns (uint256) {
        return _operators.length();
    }

    /// @inheritdoc IProviderRegistry
    function providersPage(uint256 offset, uint256 limit) external view returns (Listing[] memory page) {
        if (limit > PAGE_ROWS_MAX) revert PageTooLarge(limit, PAGE_ROWS_MAX);
        uint256 count = _operators.length();
        if (offset >= count) return page;
        uint256 rows = limit < count - offset ? limit : count - offset;
        page = new Listing[](rows);
        for (uint256 i = 0; i < rows; ++i) {
            address operator = _operators.at(offset + i);
            page[i] = Listing(operator, _providers[operator], stakeOf(operator), isActive(operator));
        }
    }

    // ------------------------------------------------------------------ private

    function _requireRegistered() private view {
        if (!_operators.contains(msg.sender)) revert NotRegistered(msg.sender);
    }

    function _requireValid(string calldata endpoint, bytes32 transportKey) private pure {
        uint256 length = bytes(endpoint).length;
        if (length == 0 || length > ENDPOINT_BYTES_MAX) revert BadEndpointLength(length, ENDPOINT_BYTES_MAX);
        if (transportKey == 0) revert ZeroTransportKey();
    }

    function _isOpen(SlashWindow storage window) private view returns (bool) {
        return window.startedAt != 0 && block.timestamp < window.startedAt + unbondingDelay;
    }

    function _min(uint128 a, uint128 b) private pure returns (uint128) {
        return a < b ? a : b;
    }
}
