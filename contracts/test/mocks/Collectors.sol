// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {IBatchSettlement} from "../../src/interfaces/IBatchSettlement.sol";
import {IDepositCollector} from "../../src/interfaces/IDepositCollector.sol";

/// @notice Moves its own tokens, off by `collectorData` from what was asked for.
contract SkewedCollector is IDepositCollector {
    function collect(address, address token, uint256 amount, bytes32, bytes calldata collectorData) external {
        int256 skew = abi.decode(collectorData, (int256));
        IERC20(token).transfer(msg.sender, uint256(int256(amount) + skew));
    }
}

/// @notice Calls back into the settlement with whatever `collectorData` says, and passes on how that failed.
contract ReenteringCollector is IDepositCollector {
    function collect(address, address token, uint256 amount, bytes32, bytes calldata collectorData) external {
        (bool ok, bytes memory reason) = msg.sender.call(collectorData);
        if (!ok) {
            assembly ("memory-safe") {
                revert(add(reason, 32), mload(reason))
            }
        }
        IERC20(token).transfer(msg.sender, amount);
    }
}

/// @notice A token whose transfers call back into the settlement.
contract ReenteringToken {
    mapping(address => uint256) public balanceOf;
    bytes public callback;

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function arm(bytes calldata callback_) external {
        callback = callback_;
    }

    function transfer(address to, uint256 amount) external returns (bool) {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
        if (callback.length > 0) {
            (bool ok, bytes memory reason) = msg.sender.call(callback);
            if (!ok) {
                assembly ("memory-safe") {
                    revert(add(reason, 32), mload(reason))
                }
            }
        }
        return true;
    }
}
