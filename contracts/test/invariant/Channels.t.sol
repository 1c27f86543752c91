// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {TestUSD} from "../../src/TestUSD.sol";
import {IBatchSettlement} from "../../src/interfaces/IBatchSettlement.sol";
import {Base} from "../Base.sol";
import {ChannelHandler} from "./ChannelHandler.sol";

contract ChannelInvariants is Base {
    IBatchSettlement private constant settlement = IBatchSettlement(0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003);
    ChannelHandler private handler;
    TestUSD private token;
    bytes32[] private ids;
    address[] private channelReceivers;
    address[4] private parties;

    function setUp() public {
        handler = new ChannelHandler();
        token = TestUSD(handler.tokenAddress());
        for (uint256 i = 0; i < handler.CHANNELS(); ++i) {
            ids.push(handler.channelId(i));
            channelReceivers.push(handler.channelConfig(i).receiver);
        }
        for (uint256 i = 0; i < 4; ++i) {
            parties[i] = handler.party(i);
        }
    }

    /// @dev Read by forge: the only contract that it calls.
    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    /// @dev Read by forge: everything but setUp and the views, which would only dilute a run.
    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        bytes4[15] memory actions = [
            ChannelHandler.deposit.selector,
            ChannelHandler.deposit.selector,
            ChannelHandler.raiseCeiling.selector,
            ChannelHandler.claim.selector,
            ChannelHandler.claimAllBySignature.selector,
            ChannelHandler.settle.selector,
            ChannelHandler.initiateWithdraw.selector,
            ChannelHandler.finalizeWithdraw.selector,
            ChannelHandler.refund.selector,
            ChannelHandler.pass.selector,
            ChannelHandler.attackClaimAboveCeiling.selector,
            ChannelHandler.attackForgeVoucher.selector,
            ChannelHandler.attackClaimFromEmptied.selector,
            ChannelHandler.attackClaimAsStranger.selector,
            ChannelHandler.attackWithdrawTooEarly.selector
        ];
        targets = new FuzzSelector[](1);
        targets[0].addr = address(handler);
        targets[0].selectors = new bytes4[](actions.length + 1);
        for (uint256 i = 0; i < actions.length; ++i) {
            targets[0].selectors[i] = actions[i];
        }
        targets[0].selectors[actions.length] = ChannelHandler.attackWithdrawClaimed.selector;
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    /// @dev One campaign for all properties: the actions cost, the checks do not.
    function invariant_books() public view {
        _noTokenIsCreatedOrLost();
        _payersLoseAtMostWhatTheySigned();
        _receiversGetAtMostWhatWasSignedAndClaimed();
    }

    function _noTokenIsCreatedOrLost() private view {
        uint256 escrow;
        for (uint256 i = 0; i < ids.length; ++i) {
            (uint128 balance, uint128 claimed) = settlement.channels(ids[i]);
            vm.assertLe(claimed, balance, "claimed within balance");
            escrow += balance - claimed;
        }
        uint256 held = token.balanceOf(address(settlement));
        uint256 sum = held;
        for (uint256 i = 0; i < 4; ++i) {
            address who = parties[i];
            sum += token.balanceOf(who);
            if (i < 2) continue;
            (uint128 claimed, uint128 settled) = settlement.receivers(who, address(token));
            vm.assertLe(settled, claimed, "settled within claimed");
            escrow += claimed - settled;
        }
        vm.assertEq(held, escrow, "escrow equals what is owed");
        vm.assertEq(sum, handler.supply(), "all tokens accounted for");
    }

    function _payersLoseAtMostWhatTheySigned() private view {
        for (uint256 i = 0; i < ids.length; ++i) {
            ChannelHandler.Book memory b = handler.book(i);
            (uint128 balance, uint128 claimed) = settlement.channels(ids[i]);
            uint256 lost = b.deposited - b.returned - (balance - claimed);
            vm.assertEq(lost, claimed, "a payer loses what was claimed and nothing else");
            vm.assertLe(lost, b.signedCeiling, "and never more than it signed");
        }
    }

    function _receiversGetAtMostWhatWasSignedAndClaimed() private view {
        uint256 got;
        for (uint256 i = 2; i < 4; ++i) {
            address who = parties[i];
            uint256 entitled;
            for (uint256 k = 0; k < ids.length; ++k) {
                if (channelReceivers[k] == who) entitled += handler.book(k).claimableMax;
            }
            (uint128 claimed,) = settlement.receivers(who, address(token));
            vm.assertEq(claimed, entitled, "a receiver's claims are the sum over its channels");
            vm.assertLe(token.balanceOf(who), entitled, "a receiver got at most min(voucher, claim)");
            got += token.balanceOf(who);
        }
        vm.assertEq(got, handler.settledTotal(), "receivers are paid by settle alone");
    }
}
