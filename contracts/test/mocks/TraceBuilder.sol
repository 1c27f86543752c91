// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Canonical} from "../../src/Canonical.sol";
import {Graph} from "../../src/Graph.sol";
import {TraceTree} from "../../src/TraceTree.sol";
import {IJudge} from "../../src/interfaces/IJudge.sol";

/// @notice A small model with every kind of operation, and its trace, computed step by step with the judge.
/// @dev Width 256, two heads of 16 over one of keys and values, vocabulary 40; every weight format occurs. The trace is
/// what an honest provider has; a liar's is this with something changed (`Lie` in DisputeFixture).
contract TraceBuilder {
    uint256 public constant VOCAB = 40;
    uint256 private constant WIDTH = 256;

    IJudge public immutable judge;
    uint256[] private _words;
    bytes[] private _weights;
    bytes[] private _rotation;
    uint32[] private _tokens;
    uint256 public inputTokens;
    uint256 public positions;
    mapping(uint256 position => mapping(uint256 op => bytes)) private _values;

    constructor(IJudge judge_) {
        judge = judge_;
        _addGraph();
        // Cosines and sines of 8 positions with 8 pairs each, after two counts.
        bytes memory table = new bytes(16);
        for (uint256 i = 0; i < 128; ++i) {
            // Numbers between 0.5 and 1.
            uint256 bits = 0x3f000000 | (uint256(keccak256(abi.encode("turn", i))) & 0x7fffff);
            table = abi.encodePacked(table, _reversed(bits, 4));
        }
        _rotation.push(table);
    }

    // ------------------------------------------------------------------ the model

    function _word(uint256 kind, uint256 a, uint256 b, uint256 rows, uint256 cols) private pure returns (uint256) {
        return kind | (a << 24) | (b << 40) | (rows << 72) | (cols << 96);
    }

    /// @dev Appends a tensor of `units` units of a format and returns the fields that name it.
    function _tensor(uint256 format, uint256 units) private returns (uint256 fields) {
        fields = (_weights.length << 224) | (format << 8);
        (, uint256 length) = Graph.unitOf(format);
        bytes memory data = new bytes(units * length);
        for (uint256 at = 0; at < data.length; at += 32) {
            uint256 w = uint256(keccak256(abi.encode("weights", _weights.length, at)));
            for (uint256 i = 0; i < 32 && at + i < data.length; ++i) {
                data[at + i] = bytes1(uint8(w >> (8 * i)));
            }
        }
        // Scales of everyday size: a binary16 below 0.02, an f32 around 1.
        for (uint256 unit = 0; unit < units; ++unit) {
            uint256 at = unit * length;
            if (format == Graph.FORMAT_F32) {
                (data[at + 3], data[at + 2]) = (0x3f, data[at + 2] & 0x7f);
            } else if (format == Graph.FORMAT_F16) {
                data[at + 1] = data[at + 1] & 0x83 | 0x24;
            } else if (format == Graph.FORMAT_Q6_K) {
                data[at + 209] = data[at + 209] & 0x03 | 0x0c;
            } else {
                data[at + 1] = data[at + 1] & 0x03 | 0x20;
                if (length > 100) data[at + 3] = data[at + 3] & 0x03 | 0x20;
            }
        }
        for (uint256 at = 0; at < data.length; at += 1024) {
            bytes memory leaf = new bytes(data.length - at < 1024 ? data.length - at : 1024);
            for (uint256 i = 0; i < leaf.length; ++i) {
                leaf[i] = data[at + i];
            }
            _weights.push(leaf);
        }
    }

    function _addGraph() private {
        uint256 head = Graph.FLAG_HEAD << 16;
        uint256 one = 1 << 120;
        _words.push(_word(Graph.TOKEN, 0, 0, 0, 0));
        uint256 table = _tensor(Graph.FORMAT_Q8_0, VOCAB * WIDTH / 32);
        _words.push(_word(Graph.EMBED, 0, 0, VOCAB, WIDTH) | table | (0x40000000 << 160));
        _words.push(_word(Graph.SQUARES, 1, 0, 1, WIDTH));
        _words.push(_word(Graph.NORM, 1, 2, 1, WIDTH) | _tensor(Graph.FORMAT_F32, WIDTH) | (0x3727c5ac << 160));
        _words.push(_word(Graph.QUANTIZE, 3, 0, 0, WIDTH));
        _words.push(_word(Graph.QUANTIZE_SUPER, 3, 0, 0, WIDTH));
        _words.push(_word(Graph.PRODUCT, 5, 0, 32, WIDTH) | _tensor(Graph.FORMAT_Q4_K, 32));
        _words.push(_word(Graph.PRODUCT, 5, 0, 16, WIDTH) | _tensor(Graph.FORMAT_Q6_K, 16));
        _words.push(_word(Graph.PRODUCT, 4, 0, 16, WIDTH) | _tensor(Graph.FORMAT_Q8_0, 16 * WIDTH / 32));
        _words.push(_word(Graph.BIAS, 6, 0, 0, 32) | _tensor(Graph.FORMAT_F32, 32));
        _words.push(_word(Graph.ROTATE, 9, 0, 2, 16) | (16 << 120) | (8 << 136));
        _words.push(_word(Graph.ROTATE, 7, 0, 1, 16) | (8 << 120) | (8 << 136) | (Graph.FLAG_NEIGHBOURS << 16));
        _words.push(_word(Graph.NARROW, 11, 0, 0, 16));
        _words.push(_word(Graph.NARROW, 8, 0, 0, 16));
        _words.push(_word(Graph.SCORE, 10, 12, 2, 16) | one | (0x3e800000 << 160) | (0x41f00000 << 192));
        _words.push(_word(Graph.CHUNK_MAX, 14, 0, 2, 0));
        _words.push(_word(Graph.WEIGH, 14, 15, 2, 0));
        _words.push(_word(Graph.CHUNK_LANES, 16, 0, 2, 0));
        _words.push(_word(Graph.CHUNK_OUT, 16, 13, 2, 16) | one);
        _words.push(_word(Graph.RUN_MAX, 15, 0, 2, 0));
        _words.push(_word(Graph.RUN_SUM, 17, 15, 2, 0) | (19 << 56));
        _words.push(_word(Graph.RUN_OUT, 18, 15, 2, 16) | (19 << 56));
        _words.push(_word(Graph.ATTENDED, 21, 20, 2, 16));
        _words.push(_word(Graph.QUANTIZE, 22, 0, 0, 32));
        _words.push(_word(Graph.PRODUCT, 23, 0, WIDTH, 32) | _tensor(Graph.FORMAT_Q4_0, WIDTH));
        _words.push(_word(Graph.ADD, 1, 24, 0, WIDTH));
        _words.push(_word(Graph.QUANTIZE_SUPER, 25, 0, 0, WIDTH));
        uint256 gateUp = _tensor(Graph.FORMAT_Q5_K, 64);
        _words.push(_word(Graph.PRODUCT, 26, 0, 32, WIDTH) | gateUp);
        _words.push(_word(Graph.PRODUCT, 26, 0, 32, WIDTH) | gateUp | (32 << 136));
        _words.push(_word(Graph.GATE, 27, 28, 0, 32));
        _words.push(_word(Graph.LANES, 29, 0, VOCAB, 32) | _tensor(Graph.FORMAT_F16, VOCAB * 32) | head);
        _words.push(_word(Graph.LANE_SUM, 30, 0, VOCAB, 0) | head);
        _words.push(_word(Graph.CAP, 31, 0, 0, VOCAB) | (0x41f00000 << 160) | head);
        _words.push(_word(Graph.CHOOSE, 32, 0, 0, VOCAB) | head);
    }

    // ------------------------------------------------------------------ the trace

    /// @notice Computes the trace of `input`, and with it the greedy answer of `outputs` tokens.
    function build(uint32[] calldata input, uint256 outputs) external {
        inputTokens = input.length;
        positions = input.length + outputs - 1;
        _tokens = input;
        for (uint256 p = 0; p < positions; ++p) {
            for (uint256 op = 0; op < _words.length; ++op) {
                _values[p][op] = _compute(p, op);
            }
            if (p + 1 >= input.length) _tokens.push(uint32(bytes4(_values[p][_words.length - 1])));
        }
    }

    function _compute(uint256 p, uint256 op) private view returns (bytes memory data) {
        uint256 word = _words[op];
        (uint256 leaves, uint256 length) = judge.layout(word, p, inputTokens);
        data = new bytes(leaves * length);
        if (Graph.kind(word) == Graph.CHOOSE) {
            if (leaves != 0) _put(data, 0, _argmax(_values[p][Graph.a(word)]), 4);
            return data;
        }
        uint256 count = Graph.countAt(word, p, inputTokens);
        for (uint256 leaf = 0; leaf < leaves; ++leaf) {
            Graph.Site memory site = Graph.Site(word, op, p, leaf, 0);
            if (Graph.isQuantizer(word)) {
                _quantize(data, site, length);
                continue;
            }
            for (; site.slot < 32 && 32 * leaf + site.slot < count; ++site.slot) {
                uint256 value;
                (, uint256 steps) = judge.claimOf(site, inputTokens, new bytes(128));
                for (uint256 step = 0; step < steps; ++step) {
                    // RUN operations read what they gave before.
                    value = judge.evaluate(site, step, value, _stated(site, step, data));
                }
                _put(data, 128 * leaf + 4 * site.slot, value, 4);
            }
        }
    }

    /// @dev The judge would look for the scale again for each of the values.
    function _quantize(bytes memory data, Graph.Site memory site, uint256 length) private view {
        bytes memory x = _stated(site, 0, data);
        uint256 d = length == 36 ? Canonical.scaleOfBlock(x) : Canonical.scaleOfSuperBlock(x);
        for (uint256 i = 0; i < length - 4; ++i) {
            _put(data, length * site.leaf + i, Canonical.quantize(Canonical.float(x, 4 * i), d), 1);
        }
        _put(data, length * site.leaf + length - 4, d, 4);
    }

    function _stated(Graph.Site memory site, uint256 step, bytes memory own)
        private
        view
        returns (bytes memory stated)
    {
        for (uint256 i = 0; stated.length < judge.statedLength(site, step, stated); ++i) {
            (Graph.Operand memory o,) = judge.operandOf(site, step, stated, i);
            bytes memory from;
            uint256 at = o.offset;
            if (o.source == Graph.Source.Tokens) {
                from = abi.encodePacked(_tokens[o.position]);
            } else if (o.source == Graph.Source.Trace) {
                bool self = o.op == site.op && o.position == site.position;
                from = self ? own : _values[o.position][o.op];
                at += o.leaf * (o.length == 36 || o.length == 260 ? o.length : 128);
            } else {
                uint256 leaf = o.leaf + at / 1024;
                from = o.source == Graph.Source.Rotation ? _rotation[leaf] : _weights[leaf];
                at %= 1024;
                if (at + o.length > from.length) from = bytes.concat(from, _weights[leaf + 1]);
            }
            stated = bytes.concat(stated, _slice(from, at, o.length));
        }
    }

    function _argmax(bytes memory logits) private pure returns (uint256 best) {
        uint256 most;
        for (uint256 id = 0; id < VOCAB; ++id) {
            uint256 bits = Canonical.float(logits, 4 * id);
            bits = bits >> 31 == 0 ? bits | 0x80000000 : bits ^ 0xffffffff;
            if (bits > most) (most, best) = (bits, id);
        }
    }

    // ------------------------------------------------------------------ what a party knows

    function words() external view returns (uint256[] memory) {
        return _words;
    }

    function weights() external view returns (bytes[] memory) {
        return _weights;
    }

    function rotation() external view returns (bytes[] memory) {
        return _rotation;
    }

    function tokens() external view returns (uint32[] memory) {
        return _tokens;
    }

    function values(uint256 p, uint256 op) external view returns (bytes memory) {
        return _values[p][op];
    }

    function statedAt(Graph.Site calldata site, uint256 step) external view returns (bytes memory) {
        return _stated(site, step, _values[site.position][site.op]);
    }

    /// @notice What the chain of a number gives after each step.
    function chain(Graph.Site calldata site, uint256 steps) external view returns (uint256[] memory after_) {
        after_ = new uint256[](steps);
        uint256 value;
        for (uint256 step = 0; step < steps; ++step) {
            value = judge.evaluate(site, step, value, _stated(site, step, _values[site.position][site.op]));
            after_[step] = value;
        }
    }

    // ------------------------------------------------------------------ bytes

    function _put(bytes memory data, uint256 at, uint256 value, uint256 length) private pure {
        for (uint256 i = 0; i < length; ++i) {
            data[at + i] = bytes1(uint8(value >> (8 * (length - 1 - i))));
        }
    }

    function _slice(bytes memory data, uint256 at, uint256 length) private pure returns (bytes memory out) {
        require(at + length <= data.length, "operand behind the end");
        out = new bytes(length);
        for (uint256 i = 0; i < length; ++i) {
            out[i] = data[at + i];
        }
    }

    function _reversed(uint256 value, uint256 length) private pure returns (bytes memory out) {
        out = new bytes(length);
        for (uint256 i = 0; i < length; ++i) {
            out[i] = bytes1(uint8(value >> (8 * i)));
        }
    }
}
