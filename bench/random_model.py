"""Writes a Llama-architecture Q8_0 GGUF with random weights: the shape decides the speed, the values do not.

Usage: random_model.py OUT.gguf. 24 layers, width 1024, 16 heads, feed-forward 2816, vocabulary 32,000: 0.37 B parameters.
"""

import sys

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, FFN, VOCAB, CONTEXT = 24, 1024, 16, 16, 2816, 32_000, 4096
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def q8_0(rng, rows, cols):
    """[rows, cols / 32 * 34] bytes: f16 scale, then 32 int8; scaled so that activations neither vanish nor grow."""
    blocks = np.empty((rows, cols // 32, 34), np.uint8)
    scale = np.float16(1.7 / (127 * np.sqrt(cols)))
    blocks[:, :, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    blocks[:, :, 2:] = rng.integers(-127, 128, (rows, cols // 32, 32), np.int8).view(np.uint8)
    return blocks.reshape(rows, -1)


def main():
    rng = np.random.default_rng(1)
    out = gguf.GGUFWriter(sys.argv[1], "llama")
    out.add_name("random-0.4b")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(FFN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_rope_freq_base(10_000.0)
    out.add_vocab_size(VOCAB)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    # A byte-level vocabulary: the 256 byte symbols of GPT-2, then words that no text contains.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    symbols = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    tokens = [symbols[b] for b in range(256)] + ["th"] + [f"<unused{i}>" for i in range(VOCAB - 257)]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.UNUSED] * (VOCAB - 257))
    out.add_token_merges(["t h"])
    out.add_bos_token_id(VOCAB - 1)
    out.add_eos_token_id(VOCAB - 1)
    out.add_add_bos_token(False)
    kv_width = WIDTH // HEADS * KV_HEADS
    matrices = [("token_embd.weight", VOCAB, WIDTH), ("output.weight", VOCAB, WIDTH)]
    vectors = ["output_norm.weight"]
    for i in range(LAYERS):
        p = f"blk.{i}."
        matrices += [
            (p + "attn_q.weight", WIDTH, WIDTH), (p + "attn_k.weight", kv_width, WIDTH),
            (p + "attn_v.weight", kv_width, WIDTH), (p + "attn_output.weight", WIDTH, WIDTH),
            (p + "ffn_gate.weight", FFN, WIDTH), (p + "ffn_up.weight", FFN, WIDTH),
            (p + "ffn_down.weight", WIDTH, FFN),
        ]
        vectors += [p + "attn_norm.weight", p + "ffn_norm.weight"]
    for name, rows, cols in matrices:
        out.add_tensor(name, q8_0(rng, rows, cols), raw_dtype=Q8_0)
    for name in vectors:
        out.add_tensor(name, np.ones(WIDTH, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
