// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {IProviderRegistry} from "../../src/interfaces/IProviderRegistry.sol";
import {Base} from "../Base.sol";
import {StakeHandler} from "./StakeHandler.sol";

contract StakeInvariants is Base {
    StakeHandler private handler;

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function setUp() public {
        handler = new StakeHandler();
    }

    /// @dev Read by forge: the only contract that it calls.
    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    /// @dev Read by forge: everything but setUp and the views, which would only dilute a run.
    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        bytes4[8] memory actions = [
            StakeHandler.join.selector,
            StakeHandler.leave.selector,
            StakeHandler.stake.selector,
            StakeHandler.requestUnstake.selector,
            StakeHandler.withdrawUnstaked.selector,
            StakeHandler.slash.selector,
            StakeHandler.pass.selector,
            StakeHandler.attackLeaveEarly.selector
        ];
        targets = new FuzzSelector[](1);
        targets[0].addr = address(handler);
        targets[0].selectors = new bytes4[](actions.length);
        for (uint256 i = 0; i < actions.length; ++i) {
            targets[0].selectors[i] = actions[i];
        }
    }

    function invariant_books() public view {
        (address registry, address token, address victim, uint256 funds) = handler.parts();
        uint256 held;
        uint256 slashed;
        for (uint256 i = 0; i < handler.OPERATORS(); ++i) {
            address who = handler.operatorAt(i);
            StakeHandler.Book memory b = handler.book(i);
            IProviderRegistry.Stake memory s = IProviderRegistry(registry).stakeDetails(who);
            uint256 inside = uint256(s.active) + s.unbonding;
            vm.assertEq(inside, b.staked - b.withdrawn - b.slashed, "stake is what went in and did not come out");
            vm.assertEq(IERC20(token).balanceOf(who), funds + b.withdrawn - b.staked, "operator's own tokens");
            vm.assertLe(IProviderRegistry(registry).slashableOf(who), inside, "never more than there is");
            held += inside;
            slashed += b.slashed;
        }
        vm.assertEq(IERC20(token).balanceOf(registry), held, "registry holds all stakes and nothing else");
        vm.assertEq(IERC20(token).balanceOf(victim), slashed, "all that was slashed reached its recipient");
    }
}
