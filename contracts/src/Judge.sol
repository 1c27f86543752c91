// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Canonical} from "./Canonical.sol";
import {F32} from "./F32.sol";
import {Graph} from "./Graph.sol";
import {Preimages} from "./Preimages.sol";
import {IJudge} from "./interfaces/IJudge.sol";

// Every cast is of an index or a count far below 2^255, and every division that is multiplied gives an index.
// forge-lint: disable-start(unsafe-typecast, divide-before-multiply)

/// @title Judge
/// @notice See IJudge. What each operation means is in Graph and, normatively, in docs/COURT.md.
/// @dev Without state. The arithmetic is unchecked: operands are bounded by the widths of their fields, and the graph is
/// part of the model's identity, so that one that makes no sense harms only who signed for it.
contract Judge is IJudge {
    using Graph for uint256;

    // ------------------------------------------------------------------ shape

    /// @inheritdoc IJudge
    function layout(uint256 word, uint256 position, uint256 inputTokens)
        external
        pure
        returns (uint256 leaves, uint256 length)
    {
        return (word.leavesAt(position, inputTokens), word.leafLength());
    }

    /// @inheritdoc IJudge
    function claimOf(Graph.Site calldata site, uint256 inputTokens, bytes calldata leaf)
        external
        pure
        returns (uint256 value, uint256 steps)
    {
        uint256 k = site.word.kind();
        if (leaf.length != site.word.leafLength()) revert BadLength(leaf.length, site.word.leafLength());
        if (site.word.isQuantizer()) {
            uint256 columns = k == Graph.QUANTIZE ? 32 : 256;
            if (site.slot > columns) revert NoSuchSlot(site.slot);
            value = site.slot == columns ? uint32(bytes4(leaf[columns:])) : uint8(leaf[site.slot]);
            return (value, 1);
        }
        if (site.slot >= 32) revert NoSuchSlot(site.slot);
        value = uint32(bytes4(leaf[4 * site.slot:]));
        steps = _element(site) < site.word.countAt(site.position, inputTokens) ? _steps(site) : 0;
    }

    /// @inheritdoc IJudge
    function operandOf(Graph.Site calldata site, uint256 step, bytes calldata stated, uint256 index)
        external
        pure
        returns (Graph.Operand memory, uint256 at)
    {
        Graph.Operand[] memory list = _operands(site, step, stated);
        if (index >= list.length) revert NoSuchOperand(index);
        for (uint256 i = 0; i < index; ++i) {
            at += list[i].length;
        }
        return (list[index], at);
    }

    /// @inheritdoc IJudge
    function statedLength(Graph.Site calldata site, uint256 step, bytes calldata stated)
        external
        pure
        returns (uint256 length)
    {
        Graph.Operand[] memory list = _operands(site, step, stated);
        for (uint256 i = 0; i < list.length; ++i) {
            length += list[i].length;
        }
    }

    /// @dev Into how many steps a number is divided. All but chains of additions and maxima are one.
    function _steps(Graph.Site calldata site) private pure returns (uint256) {
        unchecked {
            uint256 word = site.word;
            uint256 k = word.kind();
            if (k == Graph.SQUARES || k == Graph.LANES) return word.cols() / 16;
            if (k == Graph.PRODUCT) {
                (uint256 columns,) = Graph.unitOf(word.format());
                return columns == 0 ? 0 : word.cols() / columns;
            }
            if (k == Graph.SCORE) return word.cols();
            if (k == Graph.CHUNK_MAX || k == Graph.CHUNK_LANES || k == Graph.CHUNK_OUT) {
                Graph.Keys memory keys = Graph.keysAt(word, site.position);
                (uint256 i,) = _chunkOf(site, keys);
                (uint256 low, uint256 high) = Graph.chunkAt(keys, i);
                if (k != Graph.CHUNK_LANES) return high - low;
                uint256 lane = _element(site) % 16;
                uint256 start = low + (lane + 16 - low % 16) % 16;
                return start < high ? (high - start + 15) / 16 : 0;
            }
            return 1;
        }
    }

    // ------------------------------------------------------------------ operands

    function _operands(Graph.Site calldata site, uint256 step, bytes calldata stated)
        private
        pure
        returns (Graph.Operand[] memory list)
    {
        unchecked {
            uint256 word = site.word;
            uint256 k = word.kind();
            uint256 e = _element(site);
            uint256 p = site.position;
            if (k == Graph.TOKEN) {
                list = new Graph.Operand[](1);
                list[0] = Graph.Operand(Graph.Source.Tokens, p, 0, 0, 0, 4);
            } else if (k == Graph.EMBED) {
                list = new Graph.Operand[](2);
                list[0] = _number(p, word.a(), 0);
                // A token that is none reads a row that is not there; the step says so.
                uint256 token = stated.length < 4 ? 0 : uint32(bytes4(stated));
                (uint256 columns, uint256 length) = Graph.unitOf(word.format());
                uint256 unit = columns == 0 ? 0 : (token * word.cols() + e) / columns;
                list[1] = _weights(word, unit * length, length);
            } else if (k == Graph.SQUARES) {
                list = new Graph.Operand[](1);
                list[0] = _number(p, word.a(), (e / 16) * word.cols() + 16 * step + e % 16);
            } else if (k == Graph.LANE_SUM) {
                list = new Graph.Operand[](1);
                list[0] = _lanes(p, word.a(), e);
            } else if (k == Graph.NORM) {
                list = new Graph.Operand[](3);
                list[0] = _number(p, word.a(), e);
                list[1] = _lanes(p, word.b(), e / word.cols());
                list[2] = _weights(word, 4 * (e % word.cols()), 4);
            } else if (k == Graph.QUANTIZE) {
                list = new Graph.Operand[](1);
                list[0] = Graph.Operand(Graph.Source.Trace, p, word.a(), site.leaf, 0, 128);
            } else if (k == Graph.QUANTIZE_SUPER) {
                list = new Graph.Operand[](8);
                for (uint256 i = 0; i < 8; ++i) {
                    list[i] = Graph.Operand(Graph.Source.Trace, p, word.a(), 8 * site.leaf + i, 0, 128);
                }
            } else if (k == Graph.PRODUCT) {
                list = new Graph.Operand[](2);
                (uint256 columns, uint256 length) = Graph.unitOf(word.format());
                uint256 unit = (word.extra() + e) * (word.cols() / columns) + step;
                list[0] = _weights(word, unit * length, length);
                list[1] = Graph.Operand(Graph.Source.Trace, p, word.a(), step, 0, columns + 4);
            } else if (k == Graph.LANES) {
                list = new Graph.Operand[](2);
                uint256 column = 16 * step + e % 16;
                (, uint256 length) = Graph.unitOf(word.format());
                list[0] = _weights(word, ((word.extra() + e / 16) * word.cols() + column) * length, length);
                list[1] = _number(p, word.a(), column);
            } else if (k == Graph.BIAS) {
                list = new Graph.Operand[](2);
                list[0] = _number(p, word.a(), e);
                list[1] = _weights(word, 4 * e, 4);
            } else if (k == Graph.ROTATE) {
                list = _operandsOfRotation(word, p, e);
            } else if (k >= Graph.SCORE && k <= Graph.ATTENDED) {
                list = _operandsOfAttention(site, step, e);
            } else if (k == Graph.ADD || k == Graph.GATE) {
                list = new Graph.Operand[](2);
                list[0] = _number(p, word.a(), e);
                list[1] = _number(p, word.b(), e);
            } else if (k == Graph.NARROW || k == Graph.CAP) {
                list = new Graph.Operand[](1);
                list[0] = _number(p, word.a(), e);
            }
        }
    }

    function _operandsOfRotation(uint256 word, uint256 p, uint256 e)
        private
        pure
        returns (Graph.Operand[] memory list)
    {
        unchecked {
            (uint256 d, uint256 dims) = (e % word.cols(), word.heads());
            if (d >= dims) {
                list = new Graph.Operand[](1);
                list[0] = _number(p, word.a(), e);
                return list;
            }
            list = new Graph.Operand[](4);
            uint256 half = dims / 2;
            bool neighbours = word.has(Graph.FLAG_NEIGHBOURS);
            uint256 pair = neighbours ? d / 2 : d % half;
            uint256 first = e - d + (neighbours ? 2 * pair : pair);
            list[0] = _number(p, word.a(), first);
            list[1] = _number(p, word.a(), first + (neighbours ? 1 : half));
            // Two counts of 8 bytes, the cosines of all positions, the sines.
            uint256 angle = p * half + pair;
            list[2] = _weights(word, 16 + 4 * angle, 4);
            list[3] = _weights(word, 16 + 4 * (word.extra() * half + angle), 4);
            list[2].source = Graph.Source.Rotation;
            list[3].source = Graph.Source.Rotation;
        }
    }

    function _operandsOfAttention(Graph.Site calldata site, uint256 step, uint256 e)
        private
        pure
        returns (Graph.Operand[] memory list)
    {
        unchecked {
            (uint256 word, uint256 p) = (site.word, site.position);
            uint256 k = word.kind();
            Graph.Keys memory keys = Graph.keysAt(word, p);
            (uint256 i, uint256 head) = _chunkOf(site, keys);
            (uint256 low,) = Graph.chunkAt(keys, i);
            if (k == Graph.SCORE) {
                list = new Graph.Operand[](2);
                head = e / keys.keys;
                list[0] = _number(p, word.a(), head * word.cols() + step);
                list[1] = _number(keys.first + e % keys.keys, word.b(), _ofGroup(word, head) * word.cols() + step);
            } else if (k == Graph.CHUNK_MAX) {
                list = new Graph.Operand[](1);
                list[0] = _number(p, word.a(), head * keys.keys + low - keys.first + step);
            } else if (k == Graph.WEIGH) {
                list = new Graph.Operand[](2);
                head = e / keys.keys;
                i = (keys.first + e % keys.keys) / Graph.CHUNK - keys.chunk;
                list[0] = _number(p, word.a(), e);
                list[1] = _number(p, word.b(), head * keys.chunks + i);
            } else if (k == Graph.CHUNK_LANES) {
                list = new Graph.Operand[](1);
                uint256 at = low + (e % 16 + 16 - low % 16) % 16 + 16 * step;
                list[0] = _number(p, word.a(), head * keys.keys + at - keys.first);
            } else if (k == Graph.CHUNK_OUT) {
                list = new Graph.Operand[](2);
                list[0] = _number(p, word.a(), head * keys.keys + low - keys.first + step);
                list[1] = _number(low + step, word.b(), _ofGroup(word, head) * word.cols() + e % word.cols());
            } else if (k == Graph.ATTENDED) {
                list = new Graph.Operand[](2);
                uint256 last = (e / word.cols()) * keys.chunks + keys.chunks - 1;
                list[0] = _number(p, word.a(), last * word.cols() + e % word.cols());
                list[1] = _number(p, word.b(), last);
            } else if (i == 0) {
                list = new Graph.Operand[](1);
                list[0] = k == Graph.RUN_SUM ? _lanes(p, word.a(), e) : _number(p, word.a(), e);
            } else {
                // Joining with the chunks before: this operation's own number for them comes last.
                uint256 width = k == Graph.RUN_OUT ? word.cols() : 1;
                uint256 at = head * keys.chunks + i;
                list = new Graph.Operand[](k == Graph.RUN_MAX ? 2 : 5);
                list[0] = k == Graph.RUN_SUM ? _lanes(p, word.a(), e) : _number(p, word.a(), e);
                list[list.length - 1] = _number(p, site.op, e - width);
                if (k != Graph.RUN_MAX) {
                    list[1] = _number(p, word.b(), at);
                    list[2] = _number(p, word.c(), at);
                    list[3] = _number(p, word.c(), at - 1);
                }
            }
        }
    }

    // ------------------------------------------------------------------ one step

    /// @inheritdoc IJudge
    function evaluate(Graph.Site calldata site, uint256 step, uint256 before, bytes calldata stated)
        external
        pure
        returns (uint256 value)
    {
        unchecked {
            uint256 word = site.word;
            uint256 k = word.kind();
            bytes memory data = stated;
            if (k == Graph.PRODUCT) return _product(word.format(), before, data);
            if (k == Graph.LANES) {
                uint256 format = word.format();
                (, uint256 length) = Graph.unitOf(format);
                return F32.fma(_cell(format, data, 0), Canonical.float(data, length), before);
            }
            if (k == Graph.EMBED) return _embed(site, data);
            if (k == Graph.QUANTIZE || k == Graph.QUANTIZE_SUPER) return _quantize(site, data);
            if (k == Graph.LANE_SUM) return Canonical.laneSum(data, 0);
            if (k == Graph.RUN_SUM) {
                uint256 sum = Canonical.laneSum(data, 0);
                return data.length == 64 ? sum : _join(sum, data, 64);
            }
            if (k == Graph.ROTATE) return _rotate(site, data);

            uint256 a = Canonical.float(data, 0);
            if (k == Graph.TOKEN || k == Graph.RUN_MAX && data.length == 4) return a;
            if (k == Graph.SQUARES) return F32.fma(a, a, before);
            if (k == Graph.NARROW) return F32.fromHalf(F32.toHalf(a));
            if (k == Graph.CAP) return Canonical.softcap(a, word.x());
            if (k == Graph.CHUNK_LANES) return F32.add(before, a);
            if (k == Graph.CHUNK_MAX) return step == 0 ? a : F32.max(before, a);

            if (k == Graph.NORM) {
                uint256 inverse = Canonical.inverseRms(Canonical.laneSum(data, 4), word.cols(), word.x());
                return F32.mul(F32.mul(a, inverse), Canonical.floatOfFile(data, 68));
            }
            uint256 b = Canonical.float(data, 4);
            if (k == Graph.BIAS) return F32.add(a, Canonical.floatOfFile(data, 4));
            if (k == Graph.ADD) return F32.add(a, b);
            if (k == Graph.GATE) {
                return F32.mul(word.has(Graph.FLAG_GELU) ? Canonical.gelu(a) : Canonical.silu(a), b);
            }
            if (k == Graph.SCORE) {
                uint256 score = F32.fma(a, b, before);
                if (step + 1 < word.cols()) return score;
                score = F32.mul(score, word.x());
                return word.y() == 0 ? score : Canonical.softcap(score, word.y());
            }
            if (k == Graph.WEIGH) return Canonical.exp(F32.sub(a, b));
            if (k == Graph.CHUNK_OUT) return F32.fma(a, b, before);
            if (k == Graph.ATTENDED) return F32.div(a, b);
            if (k == Graph.RUN_MAX) return F32.max(b, a);
            if (k == Graph.RUN_OUT) return data.length == 4 ? a : _join(a, data, 4);
            revert NotJudged(k);
        }
    }

    function _product(uint256 format, uint256 before, bytes memory data) private pure returns (uint256) {
        if (format == Graph.FORMAT_Q8_0) return Canonical.stepQ8(before, data);
        if (format == Graph.FORMAT_Q4_K) return Canonical.stepQ4K(before, data);
        if (format == Graph.FORMAT_Q6_K) return Canonical.stepQ6K(before, data);
        if (format == Graph.FORMAT_Q5_K) return Canonical.stepQ5K(before, data);
        if (format == Graph.FORMAT_Q4_0) return Canonical.stepQ4(before, data);
        revert NotJudged(Graph.PRODUCT);
    }

    /// @dev Column i of the unit of weights at the beginning of `data`.
    function _cell(uint256 format, bytes memory data, uint256 i) private pure returns (uint256) {
        if (format == Graph.FORMAT_F32) return Canonical.floatOfFile(data, 0);
        if (format == Graph.FORMAT_F16) return F32.fromHalf(Canonical.half(data, 0));
        if (format == Graph.FORMAT_BF16) return F32.fromBfloat(Canonical.half(data, 0));
        if (format == Graph.FORMAT_Q8_0) return Canonical.cellQ8(data, i);
        if (format == Graph.FORMAT_Q4_0) return Canonical.cellQ4(data, i);
        if (format == Graph.FORMAT_Q4_K) return Canonical.cellQ4K(data, i);
        if (format == Graph.FORMAT_Q5_K) return Canonical.cellQ5K(data, i);
        if (format == Graph.FORMAT_Q6_K) return Canonical.cellQ6K(data, i);
        revert NotJudged(Graph.EMBED);
    }

    function _embed(Graph.Site calldata site, bytes memory data) private pure returns (uint256 value) {
        unchecked {
            uint256 word = site.word;
            // No provider may sign for a token that the model does not have.
            if (Canonical.float(data, 0) >= word.rows()) return F32.NAN;
            bytes memory unit = new bytes(data.length - 4);
            for (uint256 at = 0; at < unit.length; at += 32) {
                uint256 w = Canonical.word(data, 4 + at);
                assembly ("memory-safe") {
                    mstore(add(add(unit, 32), at), w)
                }
            }
            (uint256 columns,) = Graph.unitOf(word.format());
            value = _cell(word.format(), unit, _element(site) % columns);
            if (word.x() != 0) value = F32.mul(value, word.x());
        }
    }

    function _quantize(Graph.Site calldata site, bytes memory data) private pure returns (uint256) {
        unchecked {
            bool isSuper = site.word.kind() == Graph.QUANTIZE_SUPER;
            uint256 d = isSuper ? Canonical.scaleOfSuperBlock(data) : Canonical.scaleOfBlock(data);
            if (site.slot == (isSuper ? 256 : 32)) return d;
            return Canonical.quantize(Canonical.float(data, 4 * site.slot), d);
        }
    }

    function _rotate(Graph.Site calldata site, bytes memory data) private pure returns (uint256) {
        unchecked {
            uint256 a = Canonical.float(data, 0);
            if (data.length == 4) return a;
            uint256 b = Canonical.float(data, 4);
            uint256 cosine = Canonical.floatOfFile(data, 8);
            uint256 sine = Canonical.floatOfFile(data, 12);
            uint256 d = _element(site) % site.word.cols();
            bool second = site.word.has(Graph.FLAG_NEIGHBOURS) ? d % 2 == 1 : d >= site.word.heads() / 2;
            return second ? Canonical.turnSecond(a, b, cosine, sine) : Canonical.turnFirst(a, b, cosine, sine);
        }
    }

    /// @dev `fma(before, exp(m1 - M), this * exp(m2 - M))`, with (m2, M, m1, before) from `at` on.
    function _join(uint256 this_, bytes memory data, uint256 at) private pure returns (uint256) {
        unchecked {
            uint256 largest = Canonical.float(data, at + 4);
            uint256 ofBefore = Canonical.exp(F32.sub(Canonical.float(data, at + 8), largest));
            uint256 ofThis = Canonical.exp(F32.sub(Canonical.float(data, at), largest));
            return F32.fma(Canonical.float(data, at + 12), ofBefore, F32.mul(this_, ofThis));
        }
    }

    // ------------------------------------------------------------------ documents

    /// @inheritdoc IJudge
    function inputToken(bytes calldata job, bytes32 requestHash, uint256 position)
        external
        pure
        returns (uint256 token, bool greedy)
    {
        Preimages.Job memory j = Preimages.job(job, requestHash);
        return (Preimages.inputToken(job, j, position), j.greedy);
    }

    /// @inheritdoc IJudge
    function outputToken(bytes calldata response, bytes32 responseHash, uint256 index)
        external
        pure
        returns (uint256 token)
    {
        return Preimages.outputToken(response, responseHash, index);
    }

    /// @inheritdoc IJudge
    function modelOf(bytes calldata manifest, bytes32 modelId) external pure returns (bytes32, bytes32) {
        Preimages.Manifest memory m = Preimages.manifest(manifest, modelId);
        return (m.weightsRoot, m.graphHash);
    }

    // ------------------------------------------------------------------ indexes

    function _element(Graph.Site calldata site) private pure returns (uint256) {
        unchecked {
            return 32 * site.leaf + site.slot;
        }
    }

    /// @dev The chunk and the head of a number of an operation that gives numbers for each chunk.
    function _chunkOf(Graph.Site calldata site, Graph.Keys memory keys) private pure returns (uint256 i, uint256 head) {
        unchecked {
            uint256 k = site.word.kind();
            uint256 width =
                k == Graph.CHUNK_OUT || k == Graph.RUN_OUT ? site.word.cols() : k == Graph.CHUNK_LANES ? 16 : 1;
            uint256 at = width == 0 ? 0 : _element(site) / width;
            return (at % keys.chunks, at / keys.chunks);
        }
    }

    /// @dev The head of keys and values that a head of queries reads.
    function _ofGroup(uint256 word, uint256 head) private pure returns (uint256) {
        return head * word.heads() / word.rows();
    }

    function _number(uint256 position, uint256 op, uint256 e) private pure returns (Graph.Operand memory) {
        unchecked {
            return Graph.Operand(Graph.Source.Trace, position, op, e / 32, 4 * (e % 32), 4);
        }
    }

    /// @dev 16 lanes, number `e` of those that an operation gives.
    function _lanes(uint256 position, uint256 op, uint256 e) private pure returns (Graph.Operand memory) {
        unchecked {
            return Graph.Operand(Graph.Source.Trace, position, op, e / 2, 64 * (e % 2), 64);
        }
    }

    function _weights(uint256 word, uint256 offset, uint256 length) private pure returns (Graph.Operand memory) {
        return Graph.Operand(Graph.Source.Weights, 0, 0, word.tensor(), offset, length);
    }
}
// forge-lint: disable-end(unsafe-typecast, divide-before-multiply)
