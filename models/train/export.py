"""Writes a checkpoint as GGUF files: F16, Q8_0 and, on request, F32.

Only matrices change type; norms stay F32. The output matrix is the embedding, so `output.weight` is absent.
"""

import argparse
import json
import pickle
from pathlib import Path

import gguf
import numpy as np

import tokenizer
from model import Shape

NAME = "assay-tiny"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ '<|system|>' + message['content'] | trim }}"
    "{%- elif message['role'] == 'user' -%}{{ '<|user|>' + message['content'] | trim }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<|assistant|>' + message['content'] | trim + '<|end|>' }}"
    "{%- else -%}{{ raise_exception('unknown role: ' + message['role']) }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
QUANTS = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    saved = json.loads(tokenizer.PATH.read_text())
    by_id = sorted(saved["model"]["vocab"].items(), key=lambda item: item[1])
    control = {entry["id"] for entry in saved["added_tokens"]}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in saved["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in by_id])
    writer.add_token_types([gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL for _, i in by_id])
    writer.add_token_merges(merges)
    # The model has no beginning-of-text token; readers that insist on an id get the separator of documents, and none is ever added.
    writer.add_bos_token_id(tokenizer.END_ID)
    writer.add_eos_token_id(tokenizer.END_ID)
    writer.add_pad_token_id(tokenizer.PAD_ID)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_vocab_size(shape.n_vocab)
    writer.add_context_length(shape.n_context)
    writer.add_embedding_length(shape.d_model)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_dimension_count(shape.d_head)
    writer.add_rope_freq_base(shape.rope_theta)


def named_tensors(params: dict) -> dict[str, np.ndarray]:
    tensors = {"token_embd.weight": params["token_embd"], "output_norm.weight": params["output_norm"]}
    for index, layer in enumerate(params["layers"]):
        tensors.update({f"blk.{index}.{name}.weight": value for name, value in layer.items()})
    return {name: np.asarray(value, np.float32) for name, value in tensors.items()}


def write(path: Path, params: dict, kind: str) -> None:
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name(NAME)
    writer.add_license("apache-2.0")
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, Shape())
    add_tokenizer(writer)
    for name, value in named_tensors(params).items():
        if value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, QUANTS[kind]), raw_dtype=QUANTS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--checkpoint", type=Path, required=True)
    args.add_argument("--out", type=Path, default=tokenizer.PATH.parent, help="folder for assay-tiny-TYPE.gguf")
    args.add_argument("--types", nargs="+", choices=list(QUANTS), default=["f16", "q8_0"])
    args = args.parse_args()
    params = pickle.loads(args.checkpoint.read_bytes())["params"]
    for kind in args.types:
        write(args.out / f"{NAME}-{kind}.gguf", params, kind)
