// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IProviderRegistry} from "../../src/interfaces/IProviderRegistry.sol";
import {RegistryFixture} from "../ProviderRegistry.t.sol";

/// @notice Random legal actions of three providers and the slasher, with a second set of books.
contract StakeHandler is RegistryFixture {
    uint256 public constant OPERATORS = 3;

    /// @dev `inWindow` and `windowEnd` are the slash window as the interface describes it.
    struct Book {
        uint256 staked;
        uint256 withdrawn;
        uint256 slashed;
        uint256 inWindow;
        uint256 windowEnd;
    }

    Book[OPERATORS] private _books;
    uint256 private _now = NOW;

    constructor() {
        setUp();
        for (uint256 i = 0; i < OPERATORS; ++i) {
            _fund(operatorAt(i));
        }
    }

    function operatorAt(uint256 i) public pure returns (address) {
        return address(uint160(0xa100 + i));
    }

    function book(uint256 i) external view returns (Book memory) {
        return _books[i];
    }

    function parts() external view returns (address registry_, address token_, address victim_, uint256 funds) {
        return (address(registry), address(token), victim, FUNDS);
    }

    function join(uint256 i) external {
        i = _bound(i, 0, OPERATORS - 1);
        if (registry.provider(operatorAt(i)).registeredAt == 0) _register(operatorAt(i));
    }

    function leave(uint256 i) external {
        i = _bound(i, 0, OPERATORS - 1);
        if (registry.provider(operatorAt(i)).registeredAt == 0) return;
        vm.prank(operatorAt(i));
        registry.deregister();
    }

    function stake(uint256 i, uint256 seed) external {
        i = _bound(i, 0, OPERATORS - 1);
        address who = operatorAt(i);
        uint256 funds = token.balanceOf(who);
        if (registry.provider(who).registeredAt == 0 || funds == 0) return;
        uint128 amount = _amount(seed, 1, funds);
        vm.prank(who);
        registry.stake(amount);
        _books[i].staked += amount;
    }

    function requestUnstake(uint256 i, uint256 seed) external {
        i = _bound(i, 0, OPERATORS - 1);
        uint128 active = registry.stakeOf(operatorAt(i));
        if (active == 0) return;
        uint128 amount = _amount(seed, 1, active);
        vm.prank(operatorAt(i));
        registry.requestUnstake(amount);
    }

    function withdrawUnstaked(uint256 i) external {
        i = _bound(i, 0, OPERATORS - 1);
        IProviderRegistry.Stake memory held = registry.stakeDetails(operatorAt(i));
        if (held.unbonding == 0 || _now < held.releaseAt) return;
        vm.prank(operatorAt(i));
        _books[i].withdrawn += registry.withdrawUnstaked();
    }

    function slash(uint256 i, uint256 seed) external {
        i = _bound(i, 0, OPERATORS - 1);
        address who = operatorAt(i);
        uint128 slashable = registry.slashableOf(who);
        if (slashable == 0) return;
        Book storage b = _books[i];
        if (_now >= b.windowEnd) {
            b.windowEnd = _now + DELAY;
            b.inWindow = 0;
        }
        IProviderRegistry.Stake memory held = registry.stakeDetails(who);
        uint256 before = uint256(held.active) + held.unbonding + b.inWindow;
        uint128 asked = _amount(seed, 1, 2 * uint256(slashable));
        vm.prank(slasher);
        uint128 taken = registry.slash(who, asked, victim);
        b.slashed += taken;
        b.inWindow += taken;
        vm.assertTrue(taken > 0 && taken <= asked && taken <= slashable, "taken within what was asked and slashable");
        vm.assertLe(b.inWindow * 10_000, before * CAP_BPS, "within the cap of the window");
    }

    function pass(uint256 seed) external {
        _now += _bound(seed, 1, 3 days);
        vm.warp(_now);
    }

    function attackLeaveEarly(uint256 i) external {
        i = _bound(i, 0, OPERATORS - 1);
        IProviderRegistry.Stake memory held = registry.stakeDetails(operatorAt(i));
        if (held.unbonding != 0 && _now >= held.releaseAt) return;
        vm.prank(operatorAt(i));
        (bool ok,) = address(registry).call(abi.encodeCall(registry.withdrawUnstaked, ()));
        vm.assertTrue(!ok, "left before the delay");
    }
}
