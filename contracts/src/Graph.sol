// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title Graph
/// @notice How a model's computation is written down, so that a contract knows what each number of it was made of.
/// @dev docs/COURT.md is the normative text. A graph is a list of operations, the same for every position; an operation
/// is one word. The trace of a request has, for each position and operation, the numbers that it gave, cut into leaves.
///
/// ```text
/// bits   0 kind | 8 format | 16 flags | 24 a | 40 b | 56 c | 72 rows | 96 cols | 120 heads | 136 extra
///      160 x | 192 y | 224 tensor
/// ```
/// a, b and c are the indexes of earlier operations that are read; x and y are constants, f32; `tensor` is the first leaf
/// of a tensor in the weights tree, or of a table in the rotation tree.
library Graph {
    // What an operation gives; `e` is the index of a number, p the position.
    /// @dev The id of token p.
    uint256 internal constant TOKEN = 1;
    /// @dev Row token of a table `[rows, cols]`, times x if x is not zero. a: TOKEN.
    uint256 internal constant EMBED = 2;
    /// @dev Per row of a, 16 lanes of the sum of squares. `[rows, 16]`
    uint256 internal constant SQUARES = 3;
    /// @dev `(a * inverse) * weight[column]`, with the inverse root mean square of the row from lanes b and epsilon x.
    /// `[rows, cols]`
    uint256 internal constant NORM = 4;
    /// @dev a in blocks of 32, cols in all; a leaf is a block.
    uint256 internal constant QUANTIZE = 5;
    /// @dev a in super-blocks of 256, cols in all; a leaf is a super-block.
    uint256 internal constant QUANTIZE_SUPER = 6;
    /// @dev Rows `extra..extra + rows` of a block-quantized matrix with cols columns, times a.
    uint256 internal constant PRODUCT = 7;
    /// @dev The same of a matrix of floats, 16 lanes a row. `[rows, 16]`
    uint256 internal constant LANES = 8;
    /// @dev Sums of the lanes a. `[rows]`
    uint256 internal constant LANE_SUM = 9;
    /// @dev `a + weight`. `[cols]`
    uint256 internal constant BIAS = 10;
    /// @dev a as heads `[rows, cols]`, of each the first `heads` dimensions rotated; the table has `extra` positions.
    uint256 internal constant ROTATE = 11;
    /// @dev a rounded to binary16. `[cols]`
    uint256 internal constant NARROW = 12;
    /// @dev Scores of query heads a, `[rows, cols]`, with keys b of `heads` heads, scaled by x, capped by y if not zero;
    /// `extra` is the window, 0 for none. `[rows, keys]`
    uint256 internal constant SCORE = 13;
    /// @dev Largest score a of each chunk of 256 positions. `[rows, chunks]`
    uint256 internal constant CHUNK_MAX = 14;
    /// @dev `exp(a - b[chunk])`. `[rows, keys]`
    uint256 internal constant WEIGH = 15;
    /// @dev 16 lanes of the sum of weights a of each chunk. `[rows, chunks, 16]`
    uint256 internal constant CHUNK_LANES = 16;
    /// @dev Values b, weighted by a, of each chunk. `[rows, chunks, cols]`
    uint256 internal constant CHUNK_OUT = 17;
    /// @dev Largest of a up to each chunk. `[rows, chunks]`
    uint256 internal constant RUN_MAX = 18;
    /// @dev Sums of the lanes a joined up to each chunk; b: CHUNK_MAX, c: RUN_MAX. `[rows, chunks]`
    uint256 internal constant RUN_SUM = 19;
    /// @dev Outputs a joined up to each chunk; b: CHUNK_MAX, c: RUN_MAX. `[rows, chunks, cols]`
    uint256 internal constant RUN_OUT = 20;
    /// @dev The last of a divided by the last of b. `[rows, cols]`
    uint256 internal constant ATTENDED = 21;
    /// @dev `a + b`. `[cols]`
    uint256 internal constant ADD = 22;
    /// @dev `silu(a) * b`, or gelu by flag. `[cols]`
    uint256 internal constant GATE = 23;
    /// @dev Soft cap x of a. `[cols]`
    uint256 internal constant CAP = 24;
    /// @dev The token that the sampler chooses from the logits a. `[1]`
    uint256 internal constant CHOOSE = 25;

    // Formats of weights: the numbers of GGUF.
    uint256 internal constant FORMAT_F32 = 0;
    uint256 internal constant FORMAT_F16 = 1;
    uint256 internal constant FORMAT_Q4_0 = 2;
    uint256 internal constant FORMAT_Q8_0 = 8;
    uint256 internal constant FORMAT_Q4_K = 12;
    uint256 internal constant FORMAT_Q5_K = 13;
    uint256 internal constant FORMAT_Q6_K = 14;
    uint256 internal constant FORMAT_BF16 = 30;

    /// @dev Only at positions whose output token the request produced.
    uint256 internal constant FLAG_HEAD = 1;
    /// @dev Rotated pairs are neighbours, not halves of the rotated part.
    uint256 internal constant FLAG_NEIGHBOURS = 2;
    /// @dev Gelu instead of silu.
    uint256 internal constant FLAG_GELU = 4;

    /// @dev Positions of a chunk of attention.
    uint256 internal constant CHUNK = 256;

    /// @notice What a number is made of. Of `source`: bytes `offset..offset + length` of leaf `leaf` of operation `op` at
    /// `position`; or of the tensor that begins at leaf `leaf` of a tree of the model; or the token at `position`.
    struct Operand {
        Source source;
        uint256 position;
        uint256 op;
        uint256 leaf;
        uint256 offset;
        uint256 length;
    }

    enum Source {
        Trace,
        Weights,
        Rotation,
        Tokens
    }

    /// @notice A number of the trace: slot `slot` in leaf `leaf` of the operation `word`, which is number `op` of the graph.
    struct Site {
        uint256 word;
        uint256 op;
        uint256 position;
        uint256 leaf;
        uint256 slot;
    }

    /// @dev What attention at a position sees: positions `first..first + keys`, in `chunks` chunks from `chunk` on.
    struct Keys {
        uint256 first;
        uint256 keys;
        uint256 chunk;
        uint256 chunks;
    }

    function kind(uint256 word) internal pure returns (uint256) {
        return word & 0xff;
    }

    function format(uint256 word) internal pure returns (uint256) {
        return (word >> 8) & 0xff;
    }

    function has(uint256 word, uint256 flag) internal pure returns (bool) {
        return (word >> 16) & flag != 0;
    }

    function a(uint256 word) internal pure returns (uint256) {
        return (word >> 24) & 0xffff;
    }

    function b(uint256 word) internal pure returns (uint256) {
        return (word >> 40) & 0xffff;
    }

    function c(uint256 word) internal pure returns (uint256) {
        return (word >> 56) & 0xffff;
    }

    function rows(uint256 word) internal pure returns (uint256) {
        return (word >> 72) & 0xffffff;
    }

    function cols(uint256 word) internal pure returns (uint256) {
        return (word >> 96) & 0xffffff;
    }

    function heads(uint256 word) internal pure returns (uint256) {
        return (word >> 120) & 0xffff;
    }

    function extra(uint256 word) internal pure returns (uint256) {
        return (word >> 136) & 0xffffff;
    }

    function x(uint256 word) internal pure returns (uint256) {
        return (word >> 160) & 0xffffffff;
    }

    function y(uint256 word) internal pure returns (uint256) {
        return (word >> 192) & 0xffffffff;
    }

    function tensor(uint256 word) internal pure returns (uint256) {
        return word >> 224;
    }

    /// @notice Columns and bytes of the unit in which a format stores weights; zero for a format that there is not.
    function unitOf(uint256 format_) internal pure returns (uint256 columns, uint256 length) {
        if (format_ == FORMAT_Q8_0) return (32, 34);
        if (format_ == FORMAT_Q4_K) return (256, 144);
        if (format_ == FORMAT_Q6_K) return (256, 210);
        if (format_ == FORMAT_Q5_K) return (256, 176);
        if (format_ == FORMAT_Q4_0) return (32, 18);
        if (format_ == FORMAT_F32) return (1, 4);
        if (format_ == FORMAT_F16 || format_ == FORMAT_BF16) return (1, 2);
    }

    function keysAt(uint256 word, uint256 position) internal pure returns (Keys memory k) {
        unchecked {
            uint256 window = extra(word);
            k.first = window != 0 && position + 1 > window ? position + 1 - window : 0;
            k.keys = position + 1 - k.first;
            k.chunk = k.first / CHUNK;
            k.chunks = position / CHUNK - k.chunk + 1;
        }
    }

    /// @notice The positions `low..high` of chunk `i` of those that are seen.
    function chunkAt(Keys memory k, uint256 i) internal pure returns (uint256 low, uint256 high) {
        unchecked {
            low = (k.chunk + i) * CHUNK;
            high = low + CHUNK;
            if (low < k.first) low = k.first;
            if (high > k.first + k.keys) high = k.first + k.keys;
        }
    }

    /// @notice How many numbers the operation gives at a position of a request with `inputTokens` tokens of input.
    /// @dev A quantizer counts blocks.
    function countAt(uint256 word, uint256 position, uint256 inputTokens) internal pure returns (uint256) {
        unchecked {
            if (has(word, FLAG_HEAD) && position + 1 < inputTokens) return 0;
            uint256 k = kind(word);
            if (k == TOKEN || k == CHOOSE) return 1;
            if (k == SQUARES || k == LANES) return rows(word) * 16;
            if (k == PRODUCT || k == LANE_SUM) return rows(word);
            if (k == NORM || k == ROTATE || k == ATTENDED) return rows(word) * cols(word);
            if (k == QUANTIZE) return cols(word) / 32;
            if (k == QUANTIZE_SUPER) return cols(word) / 256;
            if (k >= SCORE && k <= RUN_OUT) {
                Keys memory seen = keysAt(word, position);
                if (k == SCORE || k == WEIGH) return rows(word) * seen.keys;
                uint256 chunks = rows(word) * seen.chunks;
                if (k == CHUNK_LANES) return chunks * 16;
                if (k == CHUNK_OUT || k == RUN_OUT) return chunks * cols(word);
                return chunks;
            }
            return cols(word);
        }
    }

    function isQuantizer(uint256 word) internal pure returns (bool) {
        return kind(word) == QUANTIZE || kind(word) == QUANTIZE_SUPER;
    }

    /// @notice Bytes of a leaf: 32 numbers, or a block with its scale.
    function leafLength(uint256 word) internal pure returns (uint256) {
        if (kind(word) == QUANTIZE) return 36;
        if (kind(word) == QUANTIZE_SUPER) return 260;
        return 128;
    }

    function leavesAt(uint256 word, uint256 position, uint256 inputTokens) internal pure returns (uint256) {
        unchecked {
            uint256 count = countAt(word, position, inputTokens);
            return isQuantizer(word) ? count : (count + 31) / 32;
        }
    }
}
