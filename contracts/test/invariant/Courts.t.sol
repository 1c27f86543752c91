// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {ICourt} from "../../src/interfaces/ICourt.sol";
import {IProviderRegistry} from "../../src/interfaces/IProviderRegistry.sol";
import {Base} from "../Base.sol";
import {CourtHandler} from "./CourtHandler.sol";

contract CourtInvariants is Base {
    CourtHandler private handler;

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function setUp() public {
        handler = new CourtHandler();
    }

    /// @dev Read by forge: the only contract that it calls.
    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    /// @dev Read by forge: everything but setUp and the views.
    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        bytes4[10] memory actions = [
            CourtHandler.open.selector,
            CourtHandler.close.selector,
            CourtHandler.equivocate.selector,
            CourtHandler.refund.selector,
            CourtHandler.claim.selector,
            CourtHandler.answer.selector,
            CourtHandler.deposit.selector,
            CourtHandler.withdraw.selector,
            CourtHandler.pass.selector,
            CourtHandler.attackTheMoney.selector
        ];
        targets = new FuzzSelector[](1);
        targets[0].addr = address(handler);
        targets[0].selectors = new bytes4[](actions.length);
        for (uint256 i = 0; i < actions.length; ++i) {
            targets[0].selectors[i] = actions[i];
        }
    }

    function invariant_books() public view {
        (address court, address registry, address token) = handler.parts();
        address[4] memory parties = handler.parties();
        uint256 owed;
        for (uint256 i = 0; i < 4; ++i) {
            owed += ICourt(court).owed(parties[i]);
        }
        uint256 held = IERC20(token).balanceOf(court);
        uint256 spoken = owed + handler.bondsOpen() + handler.heldBack();
        vm.assertEq(held, spoken, "what is held is owed, a bond, or for payers");
        vm.assertEq(held + handler.paidOut(), handler.deposited() + handler.slashed(), "nothing is created or lost");
        uint256 stake = IProviderRegistry(registry).stakeOf(parties[0]);
        vm.assertEq(stake + handler.slashed(), handler.stakeLeft(), "only slashing takes stake");
        vm.assertEq(IERC20(token).balanceOf(registry), stake, "the registry holds the stake");
    }
}
