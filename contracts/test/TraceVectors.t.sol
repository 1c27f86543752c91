// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {F32} from "../src/F32.sol";
import {Graph} from "../src/Graph.sol";
import {Judge} from "../src/Judge.sol";
import {Preimages} from "../src/Preimages.sol";
import {TraceTree} from "../src/TraceTree.sol";
import {IJudge} from "../src/interfaces/IJudge.sol";
import {Base} from "./Base.sol";

/// @notice Holds graph and judge to the traces of real models: vectors/trace.json, which Rust writes and checks, and more of
/// the same kind in cache/judge/trace.bin (`npm run judge`).
contract TraceVectorsTest is Base {
    string private constant FILE = "../vectors/trace.json";
    string private constant MORE = "cache/judge/trace.bin";

    IJudge private judge;
    string private json;

    /// @dev A record's fields; crates/assay-graph/tests/trace/records.rs says what they are.
    struct Record {
        Graph.Site site;
        uint256 step;
        uint256 steps;
        uint256 input;
        uint256 before;
        uint256 value;
        uint256 number;
        bytes leaf;
        bytes stated;
    }

    function setUp() public {
        judge = new Judge();
        json = vm.readFile(FILE);
    }

    // ------------------------------------------------------------------ steps

    function test_everyStepReadsAndGivesWhatTheTraceHas() public view {
        (uint256 count, uint256 kinds) = this.check(vm.parseJsonBytes(json, ".records"));
        vm.assertLe(100, count, "records");
        // Every kind but CHOOSE, which has no step.
        vm.assertEq(kinds, ((1 << 25) - 1) ^ 1, "kinds that occurred");
        if (vm.exists(MORE)) {
            (count,) = this.check(vm.readFileBinary(MORE));
            vm.assertLe(1, count, "records in cache/judge");
        }
    }

    function check(bytes calldata data) external view returns (uint256 count, uint256 kinds) {
        for (uint256 at = 0; at < data.length; ++count) {
            (Record memory r, uint256 operands) = _record(data, at);
            _checkRecord(r, string.concat("record ", vm.toString(count)));
            at = _checkOperands(r, data, operands, string.concat("record ", vm.toString(count)));
            kinds |= 1 << Graph.kind(r.site.word);
        }
    }

    function _u(bytes calldata data, uint256 at, uint256 length) private pure returns (uint256) {
        return uint256(bytes32(data[at:at + length])) >> (8 * (32 - length));
    }

    function _record(bytes calldata data, uint256 at) private pure returns (Record memory r, uint256 next) {
        r.site = Graph.Site(
            uint256(bytes32(data[at:at + 32])),
            _u(data, at + 32, 2),
            _u(data, at + 34, 4),
            _u(data, at + 38, 4),
            _u(data, at + 42, 2)
        );
        (r.step, r.steps, r.input) = (_u(data, at + 44, 4), _u(data, at + 48, 4), _u(data, at + 52, 4));
        (r.before, r.value, r.number) = (_u(data, at + 56, 4), _u(data, at + 60, 4), _u(data, at + 64, 4));
        next = at + 70 + _u(data, at + 68, 2);
        r.leaf = data[at + 70:next];
        uint256 end = next + 2 + _u(data, next, 2);
        r.stated = data[next + 2:end];
        next = end;
    }

    function _checkRecord(Record memory r, string memory what) private view {
        (uint256 leaves, uint256 length) = judge.layout(r.site.word, r.site.position, r.input);
        vm.assertLe(r.site.leaf + 1, leaves, what);
        vm.assertEq(length, r.leaf.length, what);
        (uint256 number, uint256 steps) = judge.claimOf(r.site, r.input, r.leaf);
        vm.assertEq(number, r.number, string.concat(what, ": number"));
        vm.assertEq(steps, r.steps, string.concat(what, ": steps"));
        uint256 value = judge.evaluate(r.site, r.step, r.before, r.stated);
        vm.assertEq(bytes32(value), bytes32(r.value), string.concat(what, ": value"));
        vm.assertTrue(!F32.isNan(value), what);
        if (r.step + 1 == r.steps) vm.assertEq(value, r.number, what);
    }

    /// @dev Operands are where the trace says, no more of them, and as long as what is stated.
    function _checkOperands(Record memory r, bytes calldata data, uint256 at, string memory what)
        private
        view
        returns (uint256)
    {
        uint256 count = _u(data, at++, 1);
        uint256 offset;
        for (uint256 i = 0; i < count; ++i) {
            (Graph.Operand memory o, uint256 begin) = judge.operandOf(r.site, r.step, r.stated, i);
            vm.assertEq(begin, offset, what);
            vm.assertEq(uint256(o.source), _u(data, at, 1), string.concat(what, ": source"));
            vm.assertEq(o.position, _u(data, at + 1, 4), string.concat(what, ": position"));
            vm.assertEq(o.op, _u(data, at + 5, 2), string.concat(what, ": operation"));
            vm.assertEq(o.leaf, _u(data, at + 7, 4), string.concat(what, ": leaf"));
            vm.assertEq(o.offset, _u(data, at + 11, 8), string.concat(what, ": offset"));
            vm.assertEq(o.length, _u(data, at + 19, 2), string.concat(what, ": length"));
            offset += o.length;
            at += 21;
        }
        vm.assertEq(judge.statedLength(r.site, r.step, r.stated), r.stated.length, what);
        vm.assertEq(offset, r.stated.length, what);
        try judge.operandOf(r.site, r.step, r.stated, count) {
            vm.assertTrue(false, string.concat(what, ": one operand more"));
        } catch {}
        return at;
    }

    /// @dev Any bit of the number that is claimed: the step gives another.
    function testFuzz_aFlippedBitIsRefused(uint256 which, uint8 bit) public view {
        bytes memory data = vm.parseJsonBytes(json, ".records");
        this.checkFlipped(data, which, bit % 32);
    }

    function checkFlipped(bytes calldata data, uint256 which, uint256 bit) external view {
        uint256[] memory starts = new uint256[](data.length / 64);
        uint256 count;
        for (uint256 at = 0; at < data.length; ++count) {
            starts[count] = at;
            (, at) = _record(data, at);
            at += 1 + 21 * _u(data, at, 1);
        }
        (Record memory r,) = _record(data, starts[which % count]);
        uint256 value = judge.evaluate(r.site, r.step, r.before, r.stated);
        vm.assertTrue(value != r.value ^ (1 << bit), "a wrong value is refused");
        // Another byte of the number's leaf: the claim is another one, or of another number.
        uint256 slot = Graph.isQuantizer(r.site.word) ? r.site.slot : 4 * r.site.slot;
        r.leaf[slot] ^= bytes1(uint8(1 << (bit % 8)));
        (uint256 number,) = judge.claimOf(r.site, r.input, r.leaf);
        vm.assertTrue(number != r.number, "another leaf has another number");
    }

    function test_aLeafOfAnotherLengthIsRefused() public {
        (Record memory r,) = this.firstRecord(vm.parseJsonBytes(json, ".records"));
        uint256 length = r.leaf.length;
        for (uint256 wrong = length - 1; wrong <= length + 1; wrong += 2) {
            vm.expectRevert(abi.encodeWithSelector(IJudge.BadLength.selector, wrong, length));
            judge.claimOf(r.site, r.input, new bytes(wrong));
        }
        vm.expectRevert(abi.encodeWithSelector(IJudge.BadLength.selector, 0, length));
        judge.claimOf(r.site, r.input, "");
    }

    function firstRecord(bytes calldata data) external pure returns (Record memory, uint256) {
        return _record(data, 0);
    }

    // ------------------------------------------------------------------ documents

    function test_graphsHashAsTheManifestSays() public view {
        for (uint256 i = 0; vm.keyExistsJson(json, string.concat(".graphs[", vm.toString(i), "]")); ++i) {
            string memory at = string.concat(".graphs[", vm.toString(i), "].");
            bytes memory words = vm.parseJsonBytes(json, string.concat(at, "words"));
            uint256 ops = vm.parseJsonUint(json, string.concat(at, "ops"));
            vm.assertEq(words.length, 32 * ops, at);
            uint256 height = TraceTree.heightOf(ops);
            bytes32[] memory leaves = new bytes32[](1 << height);
            for (uint256 op = 0; op < ops; ++op) {
                uint256 word;
                assembly ("memory-safe") {
                    word := mload(add(add(words, 32), mul(op, 32)))
                }
                leaves[op] = TraceTree.leafHash(abi.encode(word));
            }
            bytes32 opsRoot = vm.parseJsonBytes32(json, string.concat(at, "opsRoot"));
            vm.assertEq(TraceTree.fold(leaves, ops, height, 0), opsRoot, at);
            bytes32 graphHash = keccak256(
                abi.encodePacked(
                    "assay/graph/1",
                    uint32(ops),
                    uint32(vm.parseJsonUint(json, string.concat(at, "weightLeaves"))),
                    uint32(vm.parseJsonUint(json, string.concat(at, "rotationLeaves"))),
                    vm.parseJsonBytes32(json, string.concat(at, "rotationRoot")),
                    opsRoot
                )
            );
            vm.assertEq(graphHash, vm.parseJsonBytes32(json, string.concat(at, "graphHash")), at);
            (bytes32 weightsRoot, bytes32 found) = judge.modelOf(
                vm.parseJsonBytes(json, string.concat(at, "manifest")),
                vm.parseJsonBytes32(json, string.concat(at, "modelId"))
            );
            vm.assertEq(found, graphHash, at);
            vm.assertEq(weightsRoot, vm.parseJsonBytes32(json, string.concat(at, "weightsRoot")), at);
        }
    }

    function test_jobsAreReadAsRustWritesThem() public {
        uint256 i;
        for (; vm.keyExistsJson(json, string.concat(".jobs[", vm.toString(i), "]")); ++i) {
            string memory at = string.concat(".jobs[", vm.toString(i), "].");
            bytes memory job = vm.parseJsonBytes(json, string.concat(at, "job"));
            bytes32 hash = vm.parseJsonBytes32(json, string.concat(at, "requestHash"));
            uint256[] memory input = vm.parseJsonUintArray(json, string.concat(at, "input"));
            bool greedy = vm.parseJsonBool(json, string.concat(at, "greedy"));
            for (uint256 p = 0; p < input.length; ++p) {
                (uint256 token, bool found) = judge.inputToken(job, hash, p);
                vm.assertEq(token, input[p], at);
                vm.assertTrue(found == greedy, string.concat(at, "greedy"));
            }
            vm.expectRevert(abi.encodeWithSelector(Preimages.NoSuchToken.selector, input.length));
            judge.inputToken(job, hash, input.length);
        }
        vm.assertLe(5, i, "jobs");
    }

    function test_answersAreReadAsRustWritesThem() public {
        uint256 i;
        for (; vm.keyExistsJson(json, string.concat(".responses[", vm.toString(i), "]")); ++i) {
            string memory at = string.concat(".responses[", vm.toString(i), "].");
            bytes memory response = vm.parseJsonBytes(json, string.concat(at, "response"));
            bytes32 hash = vm.parseJsonBytes32(json, string.concat(at, "responseHash"));
            uint256[] memory output = vm.parseJsonUintArray(json, string.concat(at, "output"));
            for (uint256 p = 0; p < output.length; ++p) {
                vm.assertEq(judge.outputToken(response, hash, p), output[p], at);
            }
            vm.expectRevert(abi.encodeWithSelector(Preimages.NoSuchToken.selector, output.length));
            judge.outputToken(response, hash, output.length);
        }
        vm.assertLe(3, i, "responses");
    }
}
