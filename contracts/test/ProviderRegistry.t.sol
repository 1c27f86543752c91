// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";

import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {IProviderRegistry} from "../src/interfaces/IProviderRegistry.sol";
import {Base} from "./Base.sol";

abstract contract RegistryFixture is Base {
    uint256 internal constant NOW = 1_800_000_000;
    uint64 internal constant DELAY = 7 days;
    uint128 internal constant MIN_STAKE = 100e6;
    uint128 internal constant FUNDS = 1_000_000e6;
    uint16 internal constant CAP_BPS = 3_000;
    bytes32 internal constant KEY = keccak256("transport key");
    bytes32 internal constant TERMS = keccak256("terms");

    address internal operator = address(0xa1);
    address internal slasher = address(0xc0);
    address internal victim = address(0xd0);
    TestUSD internal token;
    ProviderRegistry internal registry;

    function setUp() public virtual {
        vm.warp(NOW);
        token = _newToken();
        registry = _newRegistry(token, MIN_STAKE, DELAY, slasher, CAP_BPS);
        _fund(operator);
    }

    function _fund(address who) internal {
        token.mint(who, FUNDS);
        vm.prank(who);
        token.approve(address(registry), type(uint256).max);
    }

    function _register(address who) internal {
        vm.prank(who);
        registry.register("provider.example:7443", KEY, TERMS);
    }

    function _stake(uint128 amount) internal {
        _register(operator);
        vm.prank(operator);
        registry.stake(amount);
    }

    function _requestUnstake(uint128 amount) internal {
        vm.prank(operator);
        registry.requestUnstake(amount);
    }

    function _assertStake(uint256 active, uint256 unbonding, uint256 releaseAt) internal view {
        IProviderRegistry.Stake memory held = registry.stakeDetails(operator);
        vm.assertEq(held.active, active, "active");
        vm.assertEq(held.unbonding, unbonding, "unbonding");
        vm.assertEq(held.releaseAt, releaseAt, "releaseAt");
        vm.assertEq(registry.stakeOf(operator), active, "stakeOf");
    }
}

contract ProviderIdentityTest is RegistryFixture {
    function testFuzz_registerUpdateDeregister(address who, uint256 length, bytes32 key, bytes32 terms) public {
        vm.assume(key != 0);
        string memory endpoint = string(new bytes(_bound(length, 1, 256)));
        vm.expectEmit(address(registry));
        emit IProviderRegistry.Registered(who, endpoint, key, terms);
        vm.prank(who);
        registry.register(endpoint, key, terms);
        IProviderRegistry.Provider memory info = registry.provider(who);
        vm.assertEq(info.endpoint, endpoint, "endpoint");
        vm.assertEq(info.transportKey, key, "transportKey");
        vm.assertEq(info.termsHash, terms, "termsHash");
        vm.assertEq(info.registeredAt, NOW, "registeredAt");
        vm.assertEq(registry.providerCount(), 1, "count");

        vm.warp(NOW + 5);
        vm.expectEmit(address(registry));
        emit IProviderRegistry.Updated(who, "other.example:1", KEY, TERMS);
        vm.prank(who);
        registry.update("other.example:1", KEY, TERMS);
        info = registry.provider(who);
        vm.assertEq(info.endpoint, "other.example:1", "updated endpoint");
        vm.assertEq(info.transportKey, KEY, "updated transportKey");
        vm.assertEq(info.termsHash, TERMS, "updated termsHash");
        vm.assertEq(info.registeredAt, NOW, "registeredAt stays");

        vm.expectEmit(address(registry));
        emit IProviderRegistry.Deregistered(who);
        vm.prank(who);
        registry.deregister();
        vm.assertEq(registry.provider(who).registeredAt, 0, "gone");
        vm.assertEq(registry.provider(who).endpoint, "", "endpoint gone");
        vm.assertEq(registry.providerCount(), 0, "count after");
    }

    function testFuzz_activeNeedsRegistrationAndTheMinimumStake(uint256 seed) public {
        uint128 amount = _amount(seed, 1, 2 * MIN_STAKE);
        _stake(amount);
        vm.assertTrue(registry.isActive(operator) == (amount >= MIN_STAKE), "active by stake");
        vm.prank(operator);
        registry.deregister();
        vm.assertTrue(!registry.isActive(operator), "inactive when deregistered");
        _assertStake(amount, 0, 0);
        _register(operator);
        vm.assertTrue(registry.isActive(operator) == (amount >= MIN_STAKE), "active again");
    }

    function test_activeBoundary() public {
        _stake(MIN_STAKE - 1);
        vm.assertTrue(!registry.isActive(operator), "one below");
        vm.prank(operator);
        registry.stake(1);
        vm.assertTrue(registry.isActive(operator), "at the minimum");
        _requestUnstake(1);
        vm.assertTrue(!registry.isActive(operator), "unbonding does not count");
    }

    function testFuzz_pagesCoverTheListAndEachRowIsComplete(uint256 seedCount, uint256 seedLimit) public {
        uint256 count = _bound(seedCount, 0, 12);
        uint256 limit = _bound(seedLimit, 1, 5);
        for (uint256 i = 0; i < count; ++i) {
            address who = address(uint160(0x1000 + i));
            _fund(who);
            _register(who);
            if (i % 2 == 0) {
                vm.prank(who);
                registry.stake(MIN_STAKE + uint128(i));
            }
        }
        uint256 seen;
        for (uint256 offset = 0; offset <= count; offset += limit) {
            IProviderRegistry.Listing[] memory page = registry.providersPage(offset, limit);
            vm.assertTrue(page.length <= limit, "page length");
            for (uint256 i = 0; i < page.length; ++i) {
                vm.assertEq(page[i].operator, address(uint160(0x1000 + seen)), "operator");
                vm.assertEq(page[i].info.endpoint, "provider.example:7443", "endpoint");
                vm.assertTrue(page[i].active == (seen % 2 == 0), "active");
                vm.assertEq(page[i].stake, seen % 2 == 0 ? MIN_STAKE + seen : 0, "stake");
                ++seen;
            }
        }
        vm.assertEq(seen, count, "all seen");
        vm.assertEq(registry.providersPage(type(uint256).max, 100).length, 0, "beyond the end");
    }

    function test_revert_registerTwice() public {
        _register(operator);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.AlreadyRegistered.selector, operator));
        _register(operator);
    }

    function test_revert_updateOrDeregisterOrStakeWithoutRegistration() public {
        bytes memory reason = abi.encodeWithSelector(IProviderRegistry.NotRegistered.selector, operator);
        vm.expectRevert(reason);
        vm.prank(operator);
        registry.update("x", KEY, TERMS);
        vm.expectRevert(reason);
        vm.prank(operator);
        registry.deregister();
        vm.expectRevert(reason);
        vm.prank(operator);
        registry.stake(1);
    }

    function test_revert_endpointLength() public {
        _register(operator);
        uint256[2] memory lengths = [uint256(0), 257];
        for (uint256 i = 0; i < lengths.length; ++i) {
            string memory endpoint = string(new bytes(lengths[i]));
            bytes memory reason = abi.encodeWithSelector(IProviderRegistry.BadEndpointLength.selector, lengths[i], 256);
            vm.expectRevert(reason);
            registry.register(endpoint, KEY, TERMS);
            vm.expectRevert(reason);
            vm.prank(operator);
            registry.update(endpoint, KEY, TERMS);
        }
    }

    function test_revert_zeroTransportKey() public {
        vm.expectRevert(IProviderRegistry.ZeroTransportKey.selector);
        registry.register("x", 0, TERMS);
        _register(operator);
        vm.expectRevert(IProviderRegistry.ZeroTransportKey.selector);
        vm.prank(operator);
        registry.update("x", 0, TERMS);
    }

    function test_revert_pageTooLarge() public {
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.PageTooLarge.selector, 101, 100));
        registry.providersPage(0, 101);
    }
}

contract StakeTest is RegistryFixture {
    function testFuzz_stakeUnbondWithdraw(uint256 seedA, uint256 seedB) public {
        uint128 staked = _amount(seedA, 1, FUNDS);
        uint128 leaving = _amount(seedB, 1, staked);
        _register(operator);
        vm.expectEmit(address(registry));
        emit IProviderRegistry.Staked(operator, staked, staked);
        vm.prank(operator);
        registry.stake(staked);
        _assertStake(staked, 0, 0);
        vm.assertEq(token.balanceOf(operator), FUNDS - staked, "operator after stake");
        vm.assertEq(token.balanceOf(address(registry)), staked, "registry after stake");

        vm.expectEmit(address(registry));
        emit IProviderRegistry.UnstakeRequested(operator, leaving, staked - leaving, uint64(NOW) + DELAY);
        _requestUnstake(leaving);
        _assertStake(staked - leaving, leaving, NOW + DELAY);
        vm.assertEq(token.balanceOf(address(registry)), staked, "registry while unbonding");

        vm.warp(NOW + DELAY);
        vm.expectEmit(address(registry));
        emit IProviderRegistry.Unstaked(operator, leaving);
        vm.prank(operator);
        vm.assertEq(registry.withdrawUnstaked(), leaving, "returned amount");
        _assertStake(staked - leaving, 0, NOW + DELAY);
        vm.assertEq(token.balanceOf(operator), FUNDS - staked + leaving, "operator after withdrawal");
        vm.assertEq(token.balanceOf(address(registry)), staked - leaving, "registry after withdrawal");
    }

    function test_stakesAddUp() public {
        _stake(5);
        vm.expectEmit(address(registry));
        emit IProviderRegistry.Staked(operator, 7, 12);
        vm.prank(operator);
        registry.stake(7);
        _assertStake(12, 0, 0);
    }

    function test_newRequestDelaysTheOlderOne() public {
        _stake(100);
        _requestUnstake(10);
        vm.warp(NOW + DELAY - 1);
        _requestUnstake(20);
        vm.warp(NOW + DELAY);
        uint64 releaseAt = uint64(NOW) + 2 * DELAY - 1;
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.StillUnbonding.selector, releaseAt));
        vm.prank(operator);
        registry.withdrawUnstaked();
        vm.warp(releaseAt);
        vm.prank(operator);
        vm.assertEq(registry.withdrawUnstaked(), 30, "both at once");
    }

    function test_stakeLeavesEvenAfterDeregistering() public {
        _stake(100);
        vm.prank(operator);
        registry.deregister();
        _requestUnstake(100);
        vm.warp(NOW + DELAY);
        vm.prank(operator);
        registry.withdrawUnstaked();
        vm.assertEq(token.balanceOf(operator), FUNDS, "operator");
    }

    function testFuzz_revert_withdrawBeforeTheDelay(uint256 seed) public {
        _stake(100);
        _requestUnstake(100);
        vm.warp(_bound(seed, NOW, NOW + DELAY - 1));
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.StillUnbonding.selector, uint64(NOW) + DELAY));
        vm.prank(operator);
        registry.withdrawUnstaked();
    }

    function test_revert_nothingUnbonding() public {
        _stake(100);
        vm.expectRevert(IProviderRegistry.NothingUnbonding.selector);
        vm.prank(operator);
        registry.withdrawUnstaked();
    }

    function testFuzz_revert_unstakeMoreThanActive(uint256 seed) public {
        uint128 asked = _amount(seed, 101, type(uint128).max);
        _stake(100);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.InsufficientStake.selector, asked, uint128(100)));
        _requestUnstake(asked);
    }

    function test_revert_zeroAmounts() public {
        _stake(100);
        vm.expectRevert(IProviderRegistry.ZeroAmount.selector);
        vm.prank(operator);
        registry.stake(0);
        vm.expectRevert(IProviderRegistry.ZeroAmount.selector);
        _requestUnstake(0);
        vm.expectRevert(IProviderRegistry.ZeroAmount.selector);
        vm.prank(slasher);
        registry.slash(operator, 0, victim);
    }

    function test_revert_stakeWithoutAllowance() public {
        address other = address(0xa2);
        _register(other);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(registry), 0, 5)
        );
        vm.prank(other);
        registry.stake(5);
    }
}

contract RegistryConstructorTest is RegistryFixture {
    function test_revert_badConstructorParameters() public {
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.BadParameter.selector, "token"));
        new ProviderRegistry(IERC20(address(0x1234)), 1, 1, slasher, 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.BadParameter.selector, "minStake"));
        new ProviderRegistry(token, 0, 1, slasher, 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.BadParameter.selector, "unbondingDelay"));
        new ProviderRegistry(token, 1, 0, slasher, 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.BadParameter.selector, "unbondingDelay"));
        new ProviderRegistry(token, 1, 365 days + 1, slasher, 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.BadParameter.selector, "slasher"));
        new ProviderRegistry(token, 1, 1, address(0), 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.BadParameter.selector, "maxSlashBps"));
        new ProviderRegistry(token, 1, 1, slasher, 0);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.BadParameter.selector, "maxSlashBps"));
        new ProviderRegistry(token, 1, 1, slasher, 10_001);
    }
}

contract SlashTest is RegistryFixture {
    function _slash(uint128 amount) private returns (uint128) {
        vm.prank(slasher);
        return registry.slash(operator, amount, victim);
    }

    function testFuzz_slashTakesActiveThenUnbondingUpToTheCap(uint256 a, uint256 b, uint256 c) public {
        uint128 staked = _amount(a, 4, FUNDS);
        uint128 leaving = _amount(b, 0, staked);
        uint128 asked = _amount(c, 1, type(uint128).max);
        _stake(staked);
        if (leaving > 0) _requestUnstake(leaving);
        uint128 cap = uint128(uint256(staked) * CAP_BPS / 10_000);
        uint128 taken = asked < cap ? asked : cap;
        uint128 active = staked - leaving;
        uint128 fromActive = taken < active ? taken : active;

        vm.assertEq(registry.slashableOf(operator), cap, "slashable before");
        vm.expectEmit(address(registry));
        emit IProviderRegistry.Slashed(operator, victim, asked, taken);
        vm.assertEq(_slash(asked), taken, "returned amount");
        _assertStake(active - fromActive, leaving - (taken - fromActive), leaving > 0 ? NOW + DELAY : 0);
        vm.assertEq(token.balanceOf(victim), taken, "victim");
        vm.assertEq(token.balanceOf(address(registry)), staked - taken, "registry");
        vm.assertEq(registry.slashableOf(operator), cap - taken, "slashable after");
    }

    function test_manySlashesInOneWindowStayWithinOneCap() public {
        _stake(1_000);
        vm.assertEq(_slash(100), 100, "first");
        vm.assertEq(_slash(150), 150, "second");
        vm.warp(NOW + DELAY - 1);
        vm.assertEq(_slash(100), 50, "third is cut");
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.NothingToSlash.selector, operator));
        _slash(1);
        // The next window counts from what is left: 700 at 30 %.
        vm.warp(NOW + DELAY);
        vm.assertEq(_slash(100), 100, "next window");
        vm.assertEq(_slash(1_000), 110, "its own cap, whole");
    }

    function test_ownerWhoLeavesAtTheFirstSlashLosesAtMostTwoCaps() public {
        _stake(1_000);
        _slash(300);
        _requestUnstake(700);
        vm.warp(NOW + DELAY);
        // The slasher acts first in the very second in which the stake is released.
        _slash(1_000);
        vm.prank(operator);
        vm.assertEq(registry.withdrawUnstaked(), 490, "1000 less 30 % less 30 %");
    }

    function test_withdrawalInsideAWindowLowersTheCap() public {
        _stake(1_000);
        _requestUnstake(900);
        vm.warp(NOW + DELAY - 1);
        _slash(100);
        vm.warp(NOW + DELAY);
        vm.prank(operator);
        registry.withdrawUnstaked();
        vm.assertEq(registry.slashableOf(operator), 0, "100 taken of a stake of 100");
    }

    function test_slashMakesInactive() public {
        _stake(MIN_STAKE);
        _slash(1);
        vm.assertTrue(!registry.isActive(operator), "below the minimum");
    }

    function test_deregisteringIsNoEscape() public {
        _stake(1_000);
        vm.prank(operator);
        registry.deregister();
        vm.assertEq(_slash(300), 300, "taken");
    }

    function testFuzz_revert_onlyTheSlasherSlashes(address caller) public {
        vm.assume(caller != slasher);
        _stake(1_000);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.NotSlasher.selector, caller));
        vm.prank(caller);
        registry.slash(operator, 1, victim);
    }

    function test_revert_badRecipient() public {
        _stake(1_000);
        address[2] memory bad = [address(0), address(registry)];
        for (uint256 i = 0; i < bad.length; ++i) {
            vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.BadRecipient.selector, bad[i]));
            vm.prank(slasher);
            registry.slash(operator, 1, bad[i]);
        }
    }

    function test_revert_nothingStaked() public {
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.NothingToSlash.selector, operator));
        _slash(1);
    }
}
