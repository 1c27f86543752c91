// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ModelRegistry} from "../src/ModelRegistry.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {Base} from "./Base.sol";

contract ModelRegistryTest is Base {
    uint256 private constant NOW = 1_800_000_000;
    bytes32 private constant ID = keccak256("model");
    bytes32 private constant HASH = keccak256("manifest");
    address private publisher = address(0x9);
    ModelRegistry private registry;

    function setUp() public {
        vm.warp(NOW);
        registry = ModelRegistry(vm.deployCode("ModelRegistry.sol:ModelRegistry"));
    }

    function _register(bytes32 id) private {
        vm.prank(publisher);
        registry.register(id, "ipfs://bafy", HASH);
    }

    function testFuzz_registerAndMove(bytes32 id, bytes32 hash, uint256 length, address caller) public {
        vm.assume(id != 0 && hash != 0);
        string memory uri = string(new bytes(_bound(length, 1, 256)));
        vm.expectEmit(address(registry));
        emit IModelRegistry.ModelRegistered(id, caller, uri, hash);
        vm.prank(caller);
        registry.register(id, uri, hash);
        IModelRegistry.Model memory found = registry.model(id);
        vm.assertEq(found.uri, uri, "uri");
        vm.assertEq(found.manifestHash, hash, "manifestHash");
        vm.assertEq(found.publisher, caller, "publisher");
        vm.assertEq(found.registeredAt, NOW, "registeredAt");
        vm.assertEq(registry.modelCount(), 1, "count");

        vm.expectEmit(address(registry));
        emit IModelRegistry.ModelMoved(id, "https://elsewhere.example/m");
        vm.prank(caller);
        registry.move(id, "https://elsewhere.example/m");
        found = registry.model(id);
        vm.assertEq(found.uri, "https://elsewhere.example/m", "moved uri");
        vm.assertEq(found.manifestHash, hash, "hash never changes");
    }

    function testFuzz_pagesCoverTheListInOrder(uint256 seedCount, uint256 seedLimit) public {
        uint256 count = _bound(seedCount, 0, 12);
        uint256 limit = _bound(seedLimit, 1, 5);
        for (uint256 i = 0; i < count; ++i) {
            _register(bytes32(i + 1));
        }
        uint256 seen;
        for (uint256 offset = 0; offset <= count; offset += limit) {
            bytes32[] memory page = registry.modelIdsPage(offset, limit);
            vm.assertTrue(page.length <= limit, "page length");
            for (uint256 i = 0; i < page.length; ++i) {
                vm.assertEq(page[i], bytes32(++seen), "order");
            }
        }
        vm.assertEq(seen, count, "all seen");
        vm.assertEq(registry.modelIdsPage(type(uint256).max, 1_000).length, 0, "beyond the end");
    }

    function test_unknownModelIsAllZero() public view {
        vm.assertEq(registry.model(ID).registeredAt, 0, "registeredAt");
    }

    function test_revert_idTaken() public {
        _register(ID);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelExists.selector, ID));
        registry.register(ID, "ipfs://other", HASH);
    }

    function test_revert_zeroIdOrHash() public {
        vm.expectRevert(IModelRegistry.ZeroHash.selector);
        registry.register(0, "ipfs://bafy", HASH);
        vm.expectRevert(IModelRegistry.ZeroHash.selector);
        registry.register(ID, "ipfs://bafy", 0);
    }

    function test_revert_uriLength() public {
        _register(ID);
        uint256[2] memory lengths = [uint256(0), 257];
        for (uint256 i = 0; i < lengths.length; ++i) {
            string memory uri = string(new bytes(lengths[i]));
            bytes memory reason = abi.encodeWithSelector(IModelRegistry.BadUriLength.selector, lengths[i], 256);
            vm.expectRevert(reason);
            registry.register(HASH, uri, HASH);
            vm.expectRevert(reason);
            vm.prank(publisher);
            registry.move(ID, uri);
        }
    }

    function test_revert_onlyThePublisherMoves() public {
        _register(ID);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.NotPublisher.selector, address(this)));
        registry.move(ID, "ipfs://mine");
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.UnknownModel.selector, HASH));
        registry.move(HASH, "ipfs://mine");
    }

    function test_revert_pageTooLarge() public {
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.PageTooLarge.selector, 1_001, 1_000));
        registry.modelIdsPage(0, 1_001);
    }
}
