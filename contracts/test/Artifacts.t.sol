// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Base} from "./Base.sol";

/// @notice What is tested here is what is committed and deployed, byte for byte.
contract ArtifactsTest is Base {
    /// @dev The code as forge compiled it, and the JSON as it is committed.
    function _load(string memory name) private view returns (bytes memory creationCode, string memory json) {
        creationCode = vm.getCode(string.concat(name, ".sol:", name));
        json = vm.readFile(string.concat("artifacts/", name, ".json"));
        vm.assertTrue(creationCode.length > 0, "compiled code");
        vm.assertEq(vm.parseJsonString(json, ".contractName"), name, "contractName");
    }

    function _assertSame(bytes memory committed, bytes memory compiled, string memory name) private pure {
        string memory what = string.concat("artifacts/", name, ".json is stale: run `npm run artifacts`");
        vm.assertTrue(keccak256(committed) == keccak256(compiled), what);
    }

    function _check(string memory name) private view {
        (bytes memory creationCode, string memory json) = _load(name);
        _assertSame(vm.parseJsonBytes(json, ".bytecode"), creationCode, name);
    }

    function _checkGenesisPlaced(string memory name) private {
        _check(name);
        (bytes memory creationCode, string memory json) = _load(name);
        bytes memory runtimeCode = vm.parseJsonBytes(json, ".deployedBytecode");
        _assertSame(runtimeCode, vm.getDeployedCode(string.concat(name, ".sol:", name)), name);

        // Running the constructor must give nothing that the bare runtime code lacks.
        address deployed;
        assembly ("memory-safe") {
            deployed := create(0, add(creationCode, 32), mload(creationCode))
        }
        vm.assertTrue(keccak256(deployed.code) == keccak256(runtimeCode), "the constructor changes the code");
    }

    function test_genesisPlacedContractsAreTheCommittedOnes() public {
        _checkGenesisPlaced("BatchSettlement");
        _checkGenesisPlaced("Erc3009Collector");
    }

    function test_deployedContractsAreTheCommittedOnes() public view {
        _check("ProviderRegistry");
        _check("ModelRegistry");
        _check("TestUSD");
        _check("Parameters");
        _check("Court");
        _check("Judge");
        _check("Trial");
    }

    function test_contractsFitOnAChain() public view {
        string[3] memory names = ["Court", "Judge", "Trial"];
        for (uint256 i = 0; i < 3; ++i) {
            bytes memory code = vm.getDeployedCode(string.concat(names[i], ".sol:", names[i]));
            vm.assertLe(code.length, 24_576, names[i]);
        }
    }
}
