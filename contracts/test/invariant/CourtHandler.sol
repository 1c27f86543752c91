// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ReceiptLib} from "../../src/ReceiptLib.sol";
import {ICourt} from "../../src/interfaces/ICourt.sol";
import {IBatchSettlement} from "../../src/interfaces/IBatchSettlement.sol";
import {DisputeFixture} from "../DisputeFixture.sol";

/// @notice Random legal actions around the court's money, with a second set of books; the trial's part is played by pranks.
contract CourtHandler is DisputeFixture {
    uint256 public bondsOpen;
    uint256 public slashed;
    uint256 public inWindow;
    uint256 public paidOut;
    uint256 public deposited;
    /// @dev What is held until payers have been paid back.
    uint256 public heldBack;
    uint256 private _now = START;
    uint256 private _windowEnd;
    uint256 private _nonce;
    bytes32[] private _open;
    Punished[] private _punished;
    bytes32 private _claim;
    uint256 private _claimDeadline;

    struct Punished {
        ReceiptLib.Receipt receipt;
        uint128 slashed;
    }

    constructor() {
        setUp();
    }

    function parts() external view returns (address court_, address registry_, address token_) {
        return (address(court), address(registry), address(token));
    }

    function parties() public view returns (address[4] memory) {
        return [provider, challenger, SINK, PAYER];
    }

    function stakeLeft() external pure returns (uint256) {
        return STAKE;
    }

    /// @dev Whose answer cost what the request says, over PAYER's channel.
    function _receiptOf(bytes32 request, bytes32 answer_) private view returns (ReceiptLib.Receipt memory receipt) {
        receipt = _receipt(request, answer_, 0, 1, 1);
        (receipt.channelId, receipt.charged) = (settlement.getChannelId(_paid()), uint128(uint256(request)) * 1e6);
    }

    /// @dev Notes what is held for the payer of a receipt.
    function _hold(ReceiptLib.Receipt memory receipt, uint256 taken) private {
        if (taken == 0) return;
        heldBack += taken - taken * REWARD_BPS / 10_000;
        _punished.push(Punished(receipt, uint128(taken)));
    }

    function refund(uint256 seed) external {
        if (_punished.length == 0) return;
        uint256 i = _bound(seed, 0, _punished.length - 1);
        Punished memory p = _punished[i];
        _punished[i] = _punished[_punished.length - 1];
        _punished.pop();
        uint128 amount = court.refund(p.receipt, provider, _paid(), p.slashed, 1);
        vm.assertLe(amount, p.receipt.charged, "no more than it had cost");
        vm.assertLe(uint256(amount) * 10_000, uint256(p.slashed) * REFUND_BPS, "no more than its share");
        heldBack -= p.slashed - uint256(p.slashed) * REWARD_BPS / 10_000;
    }

    /// @dev What a conviction took, checked against the cap of the window.
    function _book(uint256 stakeBefore) private returns (uint256 taken) {
        taken = stakeBefore - registry.stakeOf(provider);
        if (_now >= _windowEnd && taken != 0) (_windowEnd, inWindow) = (_now + 7 days, 0);
        inWindow += taken;
        slashed += taken;
        vm.assertLe(taken, PENALTY, "a penalty at most");
        vm.assertLe(inWindow * 10_000, (stakeBefore + inWindow - taken) * SLASH_BPS, "within the cap of the window");
    }

    function open() external {
        if (registry.slashableOf(provider) == 0) return;
        bytes32 request = bytes32(++_nonce);
        bool fromAccount = court.owed(challenger) >= BOND;
        if (!fromAccount) deposited += BOND;
        vm.prank(address(trial));
        court.open(challenger, provider, request, BOND);
        _open.push(request);
        bondsOpen += BOND;
    }

    function close(uint256 seed, bool guilty) external {
        if (_open.length == 0) return;
        uint256 i = _bound(seed, 0, _open.length - 1);
        bytes32 request = _open[i];
        _open[i] = _open[_open.length - 1];
        _open.pop();
        bondsOpen -= BOND;
        uint256 before = registry.stakeOf(provider);
        ReceiptLib.Receipt memory receipt = _receiptOf(request, 0);
        vm.prank(address(trial));
        if (guilty) court.convict(provider, request, challenger, 1, ReceiptLib.structHash(receipt));
        else court.acquit(provider, 1);
        _hold(receipt, _book(before));
    }

    function equivocate() external {
        if (registry.slashableOf(provider) == 0) return;
        ReceiptLib.Receipt memory a = _receiptOf(bytes32(++_nonce), keccak256("a"));
        ReceiptLib.Receipt memory b = _receiptOf(bytes32(_nonce), keccak256("b"));
        (bytes memory signatureA, bytes memory signatureB) = (_signed(a), _signed(b));
        uint256 before = registry.stakeOf(provider);
        vm.prank(challenger);
        court.convictEquivocation(a, signatureA, b, signatureB);
        _hold(a, _book(before));
    }

    function claim(uint128 amount) external {
        if (_claim != 0 || registry.slashableOf(provider) == 0) return;
        IBatchSettlement.ChannelConfig memory config;
        config.receiverAuthorizer = provider;
        settlement.set(config, _amount(amount, 1, 1_000));
        _claim = settlement.getChannelId(config);
        _claimDeadline = _now + WINDOW;
        if (court.owed(challenger) < BOND) deposited += BOND;
        vm.prank(challenger);
        court.challengeClaim(config);
        bondsOpen += BOND;
    }

    function answer(bool justified) external {
        if (_claim == 0 || (justified && _now > _claimDeadline)) return;
        uint256 before = registry.stakeOf(provider);
        if (justified) {
            ReceiptLib.Receipt memory receipt = _receipt(0, 0, 0, 1, 1);
            (receipt.channelId, receipt.chargedTotal) = (_claim, 1_000);
            court.justifyClaim(_claim, receipt, _signed(receipt));
        } else {
            if (_now <= _claimDeadline) {
                _now = _claimDeadline + 1;
                vm.warp(_now);
            }
            court.convictClaim(_claim);
        }
        _claim = 0;
        bondsOpen -= BOND;
        _book(before);
    }

    function deposit(uint256 seed) external {
        uint128 amount = _amount(seed, 0, 5 * BOND);
        vm.prank(challenger);
        court.deposit(amount);
        deposited += amount;
    }

    function withdraw(uint256 i) external {
        address who = parties()[_bound(i, 0, 3)];
        if (court.owed(who) == 0) return;
        vm.prank(who);
        paidOut += court.withdraw();
    }

    function pass(uint256 seed) external {
        _now += _bound(seed, 1, 4 days);
        vm.warp(_now);
    }

    function attackTheMoney(uint256 seed) external {
        bytes[3] memory calls = [
            abi.encodeCall(ICourt.convict, (provider, bytes32(seed), challenger, 1, bytes32(seed))),
            abi.encodeCall(ICourt.acquit, (provider, 1)),
            abi.encodeCall(ICourt.open, (challenger, provider, bytes32(seed), BOND))
        ];
        vm.prank(challenger);
        (bool ok,) = address(court).call(calls[seed % 3]);
        vm.assertTrue(!ok, "only the trial");
        vm.prank(challenger);
        (ok,) = address(registry).call(abi.encodeCall(registry.slash, (provider, 1, challenger)));
        vm.assertTrue(!ok, "only the court");
    }
}
