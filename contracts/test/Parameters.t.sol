// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IParameters} from "../src/interfaces/IParameters.sol";
import {Base} from "./Base.sol";

contract ParametersTest is Base {
    uint256 private constant START = 1_800_000_000;
    uint64 private constant DELAY = 2 days;
    address private constant OWNER = address(0x0e11);
    address private constant NEXT = address(0x0e22);

    IParameters private parameters;

    function setUp() public {
        vm.warp(START);
        parameters = _deploy("", OWNER, DELAY, 3 hours, _terms(50, 200, 4_000, 500), _policy(20_000, 4_096, 1, 2));
    }

    function _terms(uint96 bond, uint96 penalty, uint16 reward, uint16 refund)
        private
        pure
        returns (IParameters.Terms memory)
    {
        return IParameters.Terms(bond, penalty, reward, refund, 77);
    }

    function _policy(uint32 floor, uint64 half, uint32 decoys, uint32 rechecks)
        private
        pure
        returns (IParameters.Policy memory)
    {
        return IParameters.Policy(floor, half, decoys, rechecks);
    }

    function _deploy(
        string memory bad,
        address owner,
        uint64 delay,
        uint32 window,
        IParameters.Terms memory terms,
        IParameters.Policy memory policy
    ) private returns (IParameters at) {
        bytes memory args = abi.encode(owner, delay, window, uint96(1_000), uint96(2_000), terms, policy);
        bytes memory code = bytes.concat(vm.getCode("Parameters.sol:Parameters"), args);
        if (bytes(bad).length > 0) vm.expectRevert(_bad(bad));
        assembly ("memory-safe") {
            at := create(0, add(code, 32), mload(code))
        }
    }

    function _bad(string memory name) private pure returns (bytes memory) {
        return abi.encodeWithSelector(IParameters.BadParameter.selector, name);
    }

    function _assertSame(IParameters.Terms memory found, IParameters.Terms memory expected, uint16 version)
        private
        pure
    {
        expected.version = version;
        vm.assertEq(keccak256(abi.encode(found)), keccak256(abi.encode(expected)), "terms");
    }

    function test_beginsWithItsFirstTerms() public view {
        _assertSame(parameters.current(), _terms(50, 200, 4_000, 500), 1);
        _assertSame(parameters.termsOf(1), _terms(50, 200, 4_000, 500), 1);
        IParameters.Policy memory policy = parameters.policy();
        vm.assertEq(keccak256(abi.encode(policy)), keccak256(abi.encode(_policy(20_000, 4_096, 1, 2))), "policy");
        (,, uint64 from) = parameters.proposal();
        vm.assertEq(from, 0, "nothing is proposed");
        vm.assertTrue(parameters.owner() == OWNER && parameters.delay() == DELAY, "owner and delay");
        vm.assertTrue(parameters.moveWindow() == 3 hours && parameters.bondMax() == 1_000, "window and cap");
        vm.assertEq(parameters.penaltyMax(), 2_000, "cap");
    }

    function testFuzz_changeTakesItsTimeAndKeepsWhatWas(uint96 bond, uint96 penalty, uint16 reward, uint16 refund)
        public
    {
        bond = uint96(_bound(bond, 1, 1_000));
        penalty = uint96(_bound(penalty, 1, 2_000));
        reward = uint16(_bound(reward, 0, 9_000));
        refund = uint16(_bound(refund, 0, 9_000 - reward));
        IParameters.Terms memory terms = _terms(bond, penalty, reward, refund);
        IParameters.Policy memory policy = _policy(1_000_000, 1, 1_000_000, 0);
        vm.expectEmit(address(parameters));
        emit IParameters.Proposed(terms, policy, uint64(START) + DELAY);
        vm.prank(OWNER);
        parameters.propose(terms, policy);
        _assertSame(parameters.current(), _terms(50, 200, 4_000, 500), 1);
        vm.warp(START + DELAY - 1);
        vm.expectRevert(abi.encodeWithSelector(IParameters.TooEarly.selector, uint64(START) + DELAY));
        parameters.enact();
        vm.warp(START + DELAY);
        parameters.enact();
        _assertSame(parameters.current(), terms, 2);
        _assertSame(parameters.termsOf(2), terms, 2);
        _assertSame(parameters.termsOf(1), _terms(50, 200, 4_000, 500), 1);
        vm.assertEq(parameters.policy().auditFloorPpm, 1_000_000, "policy");
        vm.expectRevert(IParameters.NothingProposed.selector);
        parameters.enact();
        vm.expectRevert(abi.encodeWithSelector(IParameters.NoVersion.selector, 3));
        parameters.termsOf(3);
    }

    function test_proposalCanBeReplacedAndCancelled() public {
        vm.prank(OWNER);
        parameters.propose(_terms(1, 1, 1, 1), _policy(1_000, 1, 0, 0));
        vm.warp(START + DELAY);
        vm.prank(OWNER);
        parameters.propose(_terms(2, 2, 2, 2), _policy(1_000, 1, 0, 0));
        vm.expectRevert(abi.encodeWithSelector(IParameters.TooEarly.selector, uint64(START) + 2 * DELAY));
        parameters.enact();
        (IParameters.Terms memory terms,, uint64 from) = parameters.proposal();
        vm.assertTrue(terms.bond == 2 && from == START + 2 * DELAY, "the second replaces the first");
        vm.prank(OWNER);
        parameters.cancel();
        vm.warp(START + 3 * DELAY);
        vm.expectRevert(IParameters.NothingProposed.selector);
        parameters.enact();
        vm.prank(OWNER);
        vm.expectRevert(IParameters.NothingProposed.selector);
        parameters.cancel();
    }

    function test_ownerIsHandedOverInTwoSteps() public {
        vm.prank(OWNER);
        parameters.offerOwner(NEXT);
        vm.assertEq(parameters.owner(), OWNER, "not yet");
        vm.expectRevert(abi.encodeWithSelector(IParameters.NotOwner.selector, address(this)));
        parameters.acceptOwner();
        vm.expectEmit(address(parameters));
        emit IParameters.OwnerChanged(NEXT);
        vm.prank(NEXT);
        parameters.acceptOwner();
        bytes memory notOwner = abi.encodeWithSelector(IParameters.NotOwner.selector, OWNER);
        vm.prank(OWNER);
        vm.expectRevert(notOwner);
        parameters.propose(_terms(1, 1, 1, 1), _policy(1_000, 1, 0, 0));
        vm.prank(OWNER);
        vm.expectRevert(notOwner);
        parameters.cancel();
        vm.prank(OWNER);
        vm.expectRevert(notOwner);
        parameters.offerOwner(OWNER);
        vm.prank(NEXT);
        parameters.propose(_terms(1, 1, 1, 1), _policy(1_000, 1, 0, 0));
    }

    function test_revert_beyondTheCaps() public {
        IParameters.Policy memory policy = _policy(1_000, 1, 0, 0);
        IParameters.Terms memory terms = _terms(1, 1, 1, 1);
        _tryBoth("bond", _terms(0, 1, 1, 1), policy);
        _tryBoth("bond", _terms(1_001, 1, 1, 1), policy);
        _tryBoth("penalty", _terms(1, 0, 1, 1), policy);
        _tryBoth("penalty", _terms(1, 2_001, 1, 1), policy);
        _tryBoth("rewardBps", _terms(1, 1, 9_001, 0), policy);
        _tryBoth("rewardBps", _terms(1, 1, 4_501, 4_500), policy);
        _tryBoth("rewardBps", _terms(1, 1, type(uint16).max, type(uint16).max), policy);
        _tryBoth("auditFloorPpm", terms, _policy(999, 1, 0, 0));
        _tryBoth("auditFloorPpm", terms, _policy(1_000_001, 1, 0, 0));
        _tryBoth("auditHalfTokens", terms, _policy(1_000, 0, 0, 0));
        _tryBoth("decoyPpm", terms, _policy(1_000, 1, 1_000_001, 0));
        _tryBoth("recheckPpm", terms, _policy(1_000, 1, 0, 1_000_001));
        _deploy("owner", address(0), DELAY, 1, terms, policy);
        _deploy("delay", OWNER, 1 hours - 1, 1, terms, policy);
        _deploy("delay", OWNER, 90 days + 1, 1, terms, policy);
        _deploy("moveWindow", OWNER, DELAY, 0, terms, policy);
    }

    function _tryBoth(string memory bad, IParameters.Terms memory terms, IParameters.Policy memory policy) private {
        _deploy(bad, OWNER, DELAY, 1, terms, policy);
        vm.prank(OWNER);
        vm.expectRevert(_bad(bad));
        parameters.propose(terms, policy);
    }
}
