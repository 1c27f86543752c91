// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";

import {TestUSD} from "../src/TestUSD.sol";
import {IERC3009} from "../src/interfaces/IERC3009.sol";
import {Base} from "./Base.sol";
import {Wallet} from "./mocks/Wallet.sol";

contract TestUSDTest is Base {
    uint256 private constant FROM_KEY = 0xa11ce;
    uint256 private constant SUPPLY = 1_000_000e6;
    uint256 private constant NOW = 1_800_000_000;
    bytes32 private constant NONCE = keccak256("nonce");

    address private from = vm.addr(FROM_KEY);
    address private to = address(0x70);
    address private relay = address(0x7e1a);
    TestUSD private token;

    function setUp() public {
        vm.warp(NOW);
        vm.chainId(31_337);
        token = _newToken();
        token.mint(from, SUPPLY);
    }

    function _digest(bytes32 structHash) private view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Assay Test USD"),
                keccak256("1"),
                31_337,
                address(token)
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _authorization(
        string memory primaryType,
        address signer,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore
    ) private view returns (bytes memory) {
        bytes32 typehash = keccak256(
            abi.encodePacked(
                primaryType,
                "(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
            )
        );
        return
            _sign(FROM_KEY, _digest(keccak256(abi.encode(typehash, signer, to, value, validAfter, validBefore, NONCE))));
    }

    function _cancellation() private view returns (bytes memory) {
        bytes32 typehash = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
        return _sign(FROM_KEY, _digest(keccak256(abi.encode(typehash, from, NONCE))));
    }

    function _expectMoved(uint256 value) private view {
        vm.assertEq(token.balanceOf(to), value, "to");
        vm.assertEq(token.balanceOf(from), SUPPLY - value, "from");
        vm.assertTrue(token.authorizationState(from, NONCE), "nonce used");
    }

    function test_nameSymbolDecimalsVersion() public view {
        vm.assertEq(token.name(), "Assay Test USD", "name");
        vm.assertEq(token.symbol(), "tUSD", "symbol");
        vm.assertEq(token.decimals(), 6, "decimals");
        vm.assertEq(token.version(), "1", "version");
        vm.assertEq(_digest(0), keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), bytes32(0))), "domain");
    }

    function testFuzz_ownerMints(address holder, uint128 amount) public {
        vm.assume(holder != address(0) && holder != from);
        vm.expectEmit(address(token));
        emit IERC20.Transfer(address(0), holder, amount);
        token.mint(holder, amount);
        vm.assertEq(token.balanceOf(holder), amount, "holder");
        vm.assertEq(token.totalSupply(), SUPPLY + amount, "supply");
    }

    function testFuzz_revert_othersDoNotMint(address caller) public {
        vm.assume(caller != address(this));
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, caller));
        vm.prank(caller);
        token.mint(caller, 1);
    }

    function testFuzz_transferByAuthorization(uint256 seed, bool bytesForm) public {
        uint256 value = _bound(seed, 0, SUPPLY);
        bytes memory sig = _authorization("TransferWithAuthorization", from, value, NOW - 1, NOW + 1);
        (bytes32 r, bytes32 s, uint8 v) = _split(sig);
        vm.expectEmit(address(token));
        emit IERC3009.AuthorizationUsed(from, NONCE);
        vm.expectEmit(address(token));
        emit IERC20.Transfer(from, to, value);
        vm.prank(relay);
        if (bytesForm) token.transferWithAuthorization(from, to, value, NOW - 1, NOW + 1, NONCE, sig);
        else token.transferWithAuthorization(from, to, value, NOW - 1, NOW + 1, NONCE, v, r, s);
        _expectMoved(value);
    }

    function testFuzz_receiveByAuthorization(uint256 seed, bool bytesForm) public {
        uint256 value = _bound(seed, 0, SUPPLY);
        bytes memory sig = _authorization("ReceiveWithAuthorization", from, value, 0, type(uint256).max);
        (bytes32 r, bytes32 s, uint8 v) = _split(sig);
        vm.expectEmit(address(token));
        emit IERC3009.AuthorizationUsed(from, NONCE);
        vm.prank(to);
        if (bytesForm) token.receiveWithAuthorization(from, to, value, 0, type(uint256).max, NONCE, sig);
        else token.receiveWithAuthorization(from, to, value, 0, type(uint256).max, NONCE, v, r, s);
        _expectMoved(value);
    }

    function testFuzz_cancelledNonceMovesNothing(bool bytesForm) public {
        bytes memory sig = _cancellation();
        (bytes32 r, bytes32 s, uint8 v) = _split(sig);
        vm.expectEmit(address(token));
        emit IERC3009.AuthorizationCanceled(from, NONCE);
        if (bytesForm) token.cancelAuthorization(from, NONCE, sig);
        else token.cancelAuthorization(from, NONCE, v, r, s);

        bytes memory late = _authorization("TransferWithAuthorization", from, 1, 0, NOW + 1);
        vm.expectRevert(abi.encodeWithSelector(TestUSD.AuthorizationUsedOrCanceled.selector, from, NONCE));
        token.transferWithAuthorization(from, to, 1, 0, NOW + 1, NONCE, late);
        vm.expectRevert(abi.encodeWithSelector(TestUSD.AuthorizationUsedOrCanceled.selector, from, NONCE));
        token.cancelAuthorization(from, NONCE, sig);
    }

    function test_contractWalletAuthorizes() public {
        address wallet = address(new Wallet(from));
        token.mint(wallet, 10);
        bytes memory sig = _authorization("TransferWithAuthorization", wallet, 10, 0, NOW + 1);
        token.transferWithAuthorization(wallet, to, 10, 0, NOW + 1, NONCE, sig);
        vm.assertEq(token.balanceOf(to), 10, "to");
    }

    function test_revert_outsideTheWindow() public {
        bytes memory sig = _authorization("TransferWithAuthorization", from, 1, NOW, NOW + 5);
        vm.expectRevert(abi.encodeWithSelector(TestUSD.AuthorizationNotYetValid.selector, NOW));
        token.transferWithAuthorization(from, to, 1, NOW, NOW + 5, NONCE, sig);
        vm.warp(NOW + 5);
        vm.expectRevert(abi.encodeWithSelector(TestUSD.AuthorizationExpired.selector, NOW + 5));
        token.transferWithAuthorization(from, to, 1, NOW, NOW + 5, NONCE, sig);
        vm.warp(NOW + 4);
        token.transferWithAuthorization(from, to, 1, NOW, NOW + 5, NONCE, sig);
        _expectMoved(1);
    }

    function test_revert_onlyThePayeeReceives() public {
        bytes memory sig = _authorization("ReceiveWithAuthorization", from, 1, 0, NOW + 1);
        vm.expectRevert(abi.encodeWithSelector(TestUSD.CallerMustBePayee.selector, to));
        vm.prank(relay);
        token.receiveWithAuthorization(from, to, 1, 0, NOW + 1, NONCE, sig);
    }

    function test_revert_authorizationsOfOneKindDoNotServeForAnother() public {
        bytes memory sig = _authorization("ReceiveWithAuthorization", from, 1, 0, NOW + 1);
        vm.expectRevert(TestUSD.InvalidSignature.selector);
        token.transferWithAuthorization(from, to, 1, 0, NOW + 1, NONCE, sig);
        vm.expectRevert(TestUSD.InvalidSignature.selector);
        token.cancelAuthorization(from, NONCE, sig);
    }

    function testFuzz_revert_signatureOverOtherTerms(uint256 value, uint256 validBefore) public {
        value = _bound(value, 2, SUPPLY);
        validBefore = _bound(validBefore, NOW + 2, type(uint256).max);
        bytes memory sig = _authorization("TransferWithAuthorization", from, 1, 0, NOW + 1);
        vm.expectRevert(TestUSD.InvalidSignature.selector);
        token.transferWithAuthorization(from, to, value, 0, NOW + 1, NONCE, sig);
        vm.expectRevert(TestUSD.InvalidSignature.selector);
        token.transferWithAuthorization(from, to, 1, 0, validBefore, NONCE, sig);
        vm.expectRevert(TestUSD.InvalidSignature.selector);
        token.transferWithAuthorization(from, relay, 1, 0, NOW + 1, NONCE, sig);
        vm.expectRevert(TestUSD.InvalidSignature.selector);
        token.transferWithAuthorization(from, to, 1, 0, NOW + 1, NONCE, _malleate(sig));
    }

    function test_revert_moreThanTheBalance() public {
        bytes memory sig = _authorization("TransferWithAuthorization", from, SUPPLY + 1, 0, NOW + 1);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientBalance.selector, from, SUPPLY, SUPPLY + 1)
        );
        token.transferWithAuthorization(from, to, SUPPLY + 1, 0, NOW + 1, NONCE, sig);
        vm.assertTrue(!token.authorizationState(from, NONCE), "nonce still unused");
    }
}
