"""Writes a Llama-architecture GGUF with random weights: shape and formats decide the speed, the values do not.

Usage: random_model.py OUT.gguf SHAPE FORMAT. Shapes: 0.35b, 1.5b, 7b. Formats: Q8_0; Q4_K, the mix of a Q4_K_M file: Q6_K in
the output, in half of the layers also in attn_v and ffn_down, Q4_K in all other matrices.
"""

import sys

import gguf
import numpy as np

# Layers, width, heads, heads of keys and values, feed-forward, vocabulary, whether the output has a matrix of its own.
SHAPES = {
    "0.35b": (24, 1024, 16, 16, 2816, 32_000, True),
    "7b": (32, 4096, 32, 32, 11008, 32_000, True),
    "1.5b": (28, 1536, 12, 2, 8960, 151_936, False),
}
FORMATS = ("Q8_0", "Q4_K")
CONTEXT = 4096
Type = gguf.GGMLQuantizationType
# Random bytes are made once and read from anywhere: a gigabyte of its own would take longer than the measurement.
POOL_BYTES = 1 << 26


class Random:
    """Rows of quantized weights, scaled so that activations neither vanish nor grow."""

    def __init__(self):
        self.rng = np.random.default_rng(1)
        self.pool = np.frombuffer(self.rng.bytes(POOL_BYTES), np.uint8)

    def bytes(self, *shape):
        n = int(np.prod(shape))
        start = int(self.rng.integers(max(1, POOL_BYTES - n)))
        return np.resize(self.pool[start:start + n], shape)

    def rows(self, kind, rows, cols):
        return {Type.Q8_0: self.q8_0, Type.Q4_K: self.q4_k, Type.Q6_K: self.q6_k}[kind](rows, cols).reshape(rows, -1)

    def q8_0(self, rows, cols):
        """f16 scale, 32 int8."""
        out = np.empty((rows, cols // 32, 34), np.uint8)
        out[:, :, :2] = f16_bytes(1 / (74 * np.sqrt(cols)))
        q = self.bytes(rows, cols // 32, 32).view(np.int8)
        out[:, :, 2:] = np.maximum(q, -127).view(np.uint8)
        return out

    def q4_k(self, rows, cols):
        """f16 d, f16 dmin, 12 bytes of 8 scales and 8 minima, 128 bytes of 4 bits; all scales and minima are 24."""
        out = np.empty((rows, cols // 256, 144), np.uint8)
        d = 1 / (24 * 4.6 * np.sqrt(cols))
        out[:, :, :2], out[:, :, 2:4] = f16_bytes(d), f16_bytes(7.5 * d)
        # Six bits each: low six (or the low halves of two) with the top two of another above them.
        out[:, :, 4:12], out[:, :, 12:16] = 24 | 24 >> 4 << 6, 24 & 15 | (24 & 15) << 4
        out[:, :, 16:] = self.bytes(rows, cols // 256, 128)
        return out

    def q6_k(self, rows, cols):
        """128 bytes of low and 64 of high bits, 16 scales, f16 d; all scales are 24."""
        out = np.empty((rows, cols // 256, 210), np.uint8)
        out[:, :, :192] = self.bytes(rows, cols // 256, 192)
        out[:, :, 192:208] = 24
        out[:, :, 208:] = f16_bytes(1 / (24 * 18.5 * np.sqrt(cols)))
        return out


def f16_bytes(x):
    return np.frombuffer(np.float16(x).tobytes(), np.uint8)


def more_bits(layer, n_layers):
    """Which layers of a Q4_K_M file have matrices in Q6_K."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def matrices(shape, fmt):
    """Name, type, rows, columns of each."""
    layers, width, heads, kv_heads, ffn, vocab, own_output = shape
    low, high = (Type.Q8_0, Type.Q8_0) if fmt == "Q8_0" else (Type.Q4_K, Type.Q6_K)
    kv = width // heads * kv_heads
    yield "token_embd.weight", low if own_output else high, vocab, width
    if own_output:
        yield "output.weight", high, vocab, width
    for i in range(layers):
        p, most = f"blk.{i}.", high if more_bits(i, layers) else low
        yield p + "attn_q.weight", low, width, width
        yield p + "attn_k.weight", low, kv, width
        yield p + "attn_v.weight", most, kv, width
        yield p + "attn_output.weight", low, width, width
        yield p + "ffn_gate.weight", low, ffn, width
        yield p + "ffn_up.weight", low, ffn, width
        yield p + "ffn_down.weight", most, width, ffn


def write(path, shape_name, fmt):
    """Writes the file; returns its number of parameters."""
    shape = SHAPES[shape_name]
    layers, width, heads, kv_heads, ffn, vocab, _ = shape
    out = gguf.GGUFWriter(path, "llama")
    out.add_name(f"random-{shape_name}")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(ffn)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(width // heads)
    out.add_rope_freq_base(10_000.0)
    out.add_vocab_size(vocab)
    file_type = gguf.LlamaFileType.MOSTLY_Q8_0 if fmt == "Q8_0" else gguf.LlamaFileType.MOSTLY_Q4_K_M
    out.add_file_type(file_type)
    # A byte-level vocabulary: the 256 byte symbols of GPT-2, then words that no text contains.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    symbols = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    tokens = [symbols[b] for b in range(256)] + ["th"] + [f"<unused{i}>" for i in range(vocab - 257)]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.UNUSED] * (vocab - 257))
    out.add_token_merges(["t h"])
    out.add_bos_token_id(vocab - 1)
    out.add_eos_token_id(vocab - 1)
    out.add_add_bos_token(False)
    random, parameters = Random(), 0
    for name, kind, rows, cols in matrices(shape, fmt):
        out.add_tensor(name, random.rows(kind, rows, cols), raw_dtype=kind)
        parameters += rows * cols
    norms = [f"blk.{i}.{norm}_norm.weight" for i in range(layers) for norm in ("attn", "ffn")]
    for name in [*norms, "output_norm.weight"]:
        out.add_tensor(name, np.ones(width, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return parameters


if __name__ == "__main__":
    write(*sys.argv[1:4])
