// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IBatchSettlement} from "../../src/interfaces/IBatchSettlement.sol";
import {ChannelFixture} from "../ChannelFixture.sol";

/// @notice Random but legal actions of payers, receivers and relays on a handful of channels, mixed with attacks that
/// have to fail. Keeps a second set of books, written only from what each party signed and what moved.
/// @dev No action may revert: each one first brings its random arguments into the legal range, and does nothing where
/// there is none. An attack is called through `_mustFail`.
contract ChannelHandler is ChannelFixture {
    uint256 public constant CHANNELS = 6;
    uint256 private constant FUNDS = 1e15;

    /// @dev The second set of books, one entry a channel.
    struct Book {
        uint256 deposited;
        uint256 returned;
        uint256 claimed;
        uint128 signedCeiling;
        uint256 claimableMax;
    }

    Book[CHANNELS] private _books;
    uint256 public settledTotal;
    uint256 private _now = START;
    uint256 private _salt;
    uint256[2] private _payerKeys = [uint256(0x1001), 0x1002];
    uint256[2] private _receiverKeys = [uint256(0x2001), 0x2002];
    // Made once: deriving an address from a key is what costs most in a campaign.
    IBatchSettlement.ChannelConfig[] private _configs;
    bytes32[CHANNELS] private _ids;
    address[4] private _parties;

    constructor() {
        setUp();
        for (uint256 i = 0; i < 2; ++i) {
            _parties[i] = vm.addr(_payerKeys[i]);
            _parties[2 + i] = vm.addr(_receiverKeys[i]);
            token.mint(_parties[i], FUNDS);
        }
        for (uint256 i = 0; i < CHANNELS; ++i) {
            _configs.push(_makeConfig(i));
            _ids[i] = _id(_configs[i]);
        }
    }

    function setUp() public override {
        super.setUp();
    }

    // ------------------------------------------------------------------ who is who

    /// @dev Channels 0 to 3 are every pair of two payers and two receivers; 4 and 5 repeat two pairs with another salt.
    function _makeConfig(uint256 i) private view returns (IBatchSettlement.ChannelConfig memory config) {
        config = _config();
        config.payer = _parties[i % 2];
        // The odd channels' payers sign for themselves.
        config.payerAuthorizer = i % 2 == 0 ? payerAuthorizer : address(0);
        config.receiver = _parties[2 + (i / 2) % 2];
        config.token = address(token);
        config.withdrawDelay = uint40(1 days + i);
        config.salt = bytes32(i / 4);
    }

    function channelConfig(uint256 i) public view returns (IBatchSettlement.ChannelConfig memory) {
        return _configs[i];
    }

    function _voucherKey(uint256 i) private view returns (uint256) {
        return i % 2 == 0 ? PAYER_AUTHORIZER_KEY : _payerKeys[1];
    }

    function book(uint256 i) external view returns (Book memory) {
        return _books[i];
    }

    function channelId(uint256 i) public view returns (bytes32) {
        return _ids[i];
    }

    function tokenAddress() external view returns (address) {
        return address(token);
    }

    function supply() external pure returns (uint256) {
        return 2 * FUNDS;
    }

    function party(uint256 i) external view returns (address) {
        return _parties[i];
    }

    function _state(uint256 i) private view returns (uint128 balance, uint128 claimed) {
        return settlement.channels(channelId(i));
    }

    // ------------------------------------------------------------------ legal actions

    function deposit(uint256 i, uint256 seed) external {
        i = _bound(i, 0, CHANNELS - 1);
        IBatchSettlement.ChannelConfig memory config = channelConfig(i);
        uint256 funds = token.balanceOf(config.payer);
        if (funds == 0) return;
        uint128 amount = _amount(seed, 1, funds < 1e9 ? funds : 1e9);
        bytes memory data = _collectorData(config, _payerKeys[i % 2], amount, ++_salt);
        settlement.deposit(config, amount, collector, data);
        _books[i].deposited += amount;
    }

    /// @dev The payer raises its ceiling, possibly above what it has deposited.
    function raiseCeiling(uint256 i, uint256 seed) external {
        i = _bound(i, 0, CHANNELS - 1);
        (uint128 balance,) = _state(i);
        uint256 max = uint256(balance) + 1e8;
        if (_books[i].signedCeiling >= max) return;
        _books[i].signedCeiling = _amount(seed, _books[i].signedCeiling, max);
    }

    function claim(uint256 i, uint256 seed) external {
        i = _bound(i, 0, CHANNELS - 1);
        IBatchSettlement.VoucherClaim[] memory rows = new IBatchSettlement.VoucherClaim[](1);
        if (!_fillRow(i, seed, rows, 0)) return;
        IBatchSettlement.ChannelConfig memory config = rows[0].voucher.channel;
        vm.prank((seed >> 8) % 2 == 0 ? config.receiver : config.receiverAuthorizer);
        settlement.claim(rows);
        _bookClaim(i, rows[0].totalClaimed);
    }

    /// @dev All claimable channels in one signed batch, delivered twice.
    function claimAllBySignature(uint256 seed) external {
        IBatchSettlement.VoucherClaim[] memory all = new IBatchSettlement.VoucherClaim[](CHANNELS);
        uint256[] memory which = new uint256[](CHANNELS);
        uint256 n;
        for (uint256 i = 0; i < CHANNELS; ++i) {
            if (_fillRow(i, uint256(keccak256(abi.encode(seed, i))), all, n)) which[n++] = i;
        }
        if (n == 0) return;
        assembly ("memory-safe") {
            mstore(all, n)
        }
        bytes memory signature = _sign(RECEIVER_AUTHORIZER_KEY, settlement.getClaimBatchDigest(all));
        settlement.claimWithSignature(all, signature);
        settlement.claimWithSignature(all, signature);
        for (uint256 k = 0; k < n; ++k) {
            _bookClaim(which[k], all[k].totalClaimed);
        }
    }

    function _fillRow(uint256 i, uint256 seed, IBatchSettlement.VoucherClaim[] memory rows, uint256 at)
        private
        view
        returns (bool)
    {
        (uint128 balance, uint128 claimed) = _state(i);
        uint128 ceiling = _books[i].signedCeiling;
        uint128 max = ceiling < balance ? ceiling : balance;
        if (max <= claimed) return false;
        rows[at] = _row(channelConfig(i), _voucherKey(i), ceiling, _amount(seed, claimed + 1, max));
        return true;
    }

    /// @dev The most that this channel may ever have paid is the smaller of voucher and claim, at each claim.
    function _bookClaim(uint256 i, uint128 totalClaimed) private {
        Book storage b = _books[i];
        b.claimed = totalClaimed;
        b.claimableMax = totalClaimed < b.signedCeiling ? totalClaimed : b.signedCeiling;
    }

    function settle(uint256 who) external {
        address to = _parties[2 + who % 2];
        uint256 before = token.balanceOf(to);
        settlement.settle(to, address(token));
        settledTotal += token.balanceOf(to) - before;
    }

    function initiateWithdraw(uint256 i, uint256 seed) external {
        i = _bound(i, 0, CHANNELS - 1);
        (uint128 balance, uint128 claimed) = _state(i);
        (, uint40 since) = settlement.pendingWithdrawals(channelId(i));
        if (balance == claimed || since != 0) return;
        IBatchSettlement.ChannelConfig memory config = channelConfig(i);
        // Half of the time everything, so that channels do get emptied.
        uint128 amount = (seed >> 8) % 2 == 0 ? balance - claimed : _amount(seed, 1, balance - claimed);
        vm.prank(config.payer);
        settlement.initiateWithdraw(config, amount);
    }

    function finalizeWithdraw(uint256 i) external {
        i = _bound(i, 0, CHANNELS - 1);
        IBatchSettlement.ChannelConfig memory config = channelConfig(i);
        (, uint40 since) = settlement.pendingWithdrawals(channelId(i));
        if (since == 0 || _now < uint256(since) + config.withdrawDelay) return;
        uint256 before = token.balanceOf(config.payer);
        vm.prank(config.payer);
        settlement.finalizeWithdraw(config);
        _books[i].returned += token.balanceOf(config.payer) - before;
    }

    function refund(uint256 i, uint256 seed) external {
        i = _bound(i, 0, CHANNELS - 1);
        IBatchSettlement.ChannelConfig memory config = channelConfig(i);
        (uint128 balance,) = _state(i);
        uint128 amount = _amount(seed, 1, uint256(balance) + 10);
        uint256 before = token.balanceOf(config.payer);
        if ((seed >> 8) % 2 == 0) {
            vm.prank(config.receiver);
            settlement.refund(config, amount);
        } else {
            uint256 nonce = settlement.refundNonce(channelId(i));
            bytes32 digest = settlement.getRefundDigest(channelId(i), nonce, amount);
            settlement.refundWithSignature(config, amount, nonce, _sign(RECEIVER_AUTHORIZER_KEY, digest));
        }
        _books[i].returned += token.balanceOf(config.payer) - before;
    }

    function pass(uint256 seed) external {
        _now += _bound(seed, 1, 1 days);
        vm.warp(_now);
    }

    // ------------------------------------------------------------------ attacks

    function _mustFail(address caller, bytes memory data, bytes4 reason) private {
        vm.prank(caller);
        (bool ok, bytes memory result) = address(settlement).call(data);
        vm.assertTrue(!ok, "an attack succeeded");
        vm.assertTrue(bytes4(result) == reason, "an attack failed for another reason");
    }

    function attackClaimAboveCeiling(uint256 i, uint256 seed) external {
        i = _bound(i, 0, CHANNELS - 1);
        (, uint128 claimed) = _state(i);
        uint128 ceiling = _books[i].signedCeiling;
        uint128 wanted = _amount(seed, uint256(ceiling > claimed ? ceiling : claimed) + 1, type(uint128).max);
        IBatchSettlement.VoucherClaim[] memory rows = _rows(_row(channelConfig(i), _voucherKey(i), ceiling, wanted));
        _mustFail(
            channelConfig(i).receiver,
            abi.encodeCall(settlement.claim, (rows)),
            IBatchSettlement.ClaimExceedsCeiling.selector
        );
    }

    /// @dev The receiver lifts the ceiling that the payer signed.
    function attackForgeVoucher(uint256 i, uint256 seed) external {
        i = _bound(i, 0, CHANNELS - 1);
        (uint128 balance, uint128 claimed) = _state(i);
        uint128 ceiling = _books[i].signedCeiling;
        if (balance <= claimed) return;
        IBatchSettlement.VoucherClaim memory row =
            _row(channelConfig(i), _voucherKey(i), ceiling, _amount(seed, claimed + 1, balance));
        row.voucher.maxClaimableAmount = type(uint128).max;
        _mustFail(
            channelConfig(i).receiver,
            abi.encodeCall(settlement.claim, (_rows(row))),
            IBatchSettlement.InvalidSignature.selector
        );
    }

    /// @dev Whatever the payer signed: a channel whose escrow is gone pays nobody.
    function attackClaimFromEmptied(uint256 i, uint256 seed) external {
        i = _bound(i, 0, CHANNELS - 1);
        (uint128 balance, uint128 claimed) = _state(i);
        if (balance != claimed) return;
        uint128 wanted = _amount(seed, uint256(claimed) + 1, type(uint128).max);
        IBatchSettlement.VoucherClaim[] memory rows =
            _rows(_row(channelConfig(i), _voucherKey(i), type(uint128).max, wanted));
        _mustFail(
            channelConfig(i).receiver,
            abi.encodeCall(settlement.claim, (rows)),
            IBatchSettlement.ClaimExceedsBalance.selector
        );
    }

    function attackClaimAsStranger(uint256 i, uint256 seed) external {
        i = _bound(i, 0, CHANNELS - 1);
        IBatchSettlement.VoucherClaim[] memory rows = new IBatchSettlement.VoucherClaim[](1);
        if (!_fillRow(i, seed, rows, 0)) return;
        _mustFail(stranger, abi.encodeCall(settlement.claim, (rows)), IBatchSettlement.NotAuthorizedToClaim.selector);
    }

    function attackWithdrawTooEarly(uint256 i) external {
        i = _bound(i, 0, CHANNELS - 1);
        IBatchSettlement.ChannelConfig memory config = channelConfig(i);
        (, uint40 since) = settlement.pendingWithdrawals(channelId(i));
        if (since != 0 && _now >= uint256(since) + config.withdrawDelay) return;
        _mustFail(
            config.payer,
            abi.encodeCall(settlement.finalizeWithdraw, (config)),
            since == 0
                ? IBatchSettlement.WithdrawalNotPending.selector
                : IBatchSettlement.WithdrawDelayNotElapsed.selector
        );
    }

    function attackWithdrawClaimed(uint256 i) external {
        i = _bound(i, 0, CHANNELS - 1);
        IBatchSettlement.ChannelConfig memory config = channelConfig(i);
        (uint128 balance, uint128 claimed) = _state(i);
        (, uint40 since) = settlement.pendingWithdrawals(channelId(i));
        if (since != 0) return;
        _mustFail(
            config.payer,
            abi.encodeCall(settlement.initiateWithdraw, (config, balance - claimed + 1)),
            IBatchSettlement.WithdrawAmountExceedsAvailable.selector
        );
    }
}
