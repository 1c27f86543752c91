"""MiniLM for onnxruntime: the graph with the runtime's own fused operators, made from the published safetensors.

The PyPI package of the model holds no ONNX file, so this writes one: EmbedLayerNormalization, then per block Attention,
SkipLayerNormalization, BiasGelu. Those are the operators that onnxruntime's optimizer for BERT makes of an export, and
the fastest it has for this model on a CPU.

As a program: minilm_onnx.py MODEL.onnx TOKENIZER.json THREADS REPS < lines: times REPS passes over the lines (after one
that is not counted), tokenizing included, in batches of 32 sorted by length, and prints JSON.
"""

import json
import sys
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BATCH = 32
MAX_TOKENS = 256


def read_safetensors(path):
    """Name to array of an F32 file."""
    data = open(path, "rb").read()
    header_len = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_len])
    start = 8 + header_len
    out = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            out[name] = np.frombuffer(data[start + begin : start + end], np.float32).reshape(entry["shape"])
    return out


def write_onnx(weights, config, path):
    """Writes the encoder of `config` with inputs ids, types, mask (int32 [batch, length]) and output states."""
    nodes, initializers = [], []

    def const(name, array):
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(op, inputs, outputs, domain="com.microsoft", **attributes):
        nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    eps = config["layer_norm_eps"]
    embeddings = [
        const(part, weights[f"embeddings.{part}_embeddings.weight"]) for part in ("word", "position", "token_type")
    ]
    norm = [const(f"norm.{part}", weights[f"embeddings.LayerNorm.{part}"]) for part in ("weight", "bias")]
    x = node(
        "EmbedLayerNormalization", ["ids", "types", *embeddings, *norm, "mask"], ["embedded", "lengths"], epsilon=eps
    )
    for i in range(config["num_hidden_layers"]):
        def part(name):
            return weights[f"encoder.layer.{i}.{name}"]

        qkv = [part(f"attention.self.{p}.weight").T for p in ("query", "key", "value")]
        bias = [part(f"attention.self.{p}.bias") for p in ("query", "key", "value")]
        w, b = const(f"{i}.qkv", np.concatenate(qkv, 1)), const(f"{i}.qkv.bias", np.concatenate(bias))
        a = node("Attention", [x, w, b, "lengths"], [f"{i}.a"], num_heads=config["num_attention_heads"])
        o = node("MatMul", [a, const(f"{i}.o", part("attention.output.dense.weight").T)], [f"{i}.o.out"], domain="")
        norm = [const(f"{i}.n1.{p}", part(f"attention.output.LayerNorm.{p}")) for p in ("weight", "bias")]
        bias = const(f"{i}.o.bias", part("attention.output.dense.bias"))
        x = node("SkipLayerNormalization", [o, x, *norm, bias], [f"{i}.x1"], epsilon=eps)
        up = node("MatMul", [x, const(f"{i}.up", part("intermediate.dense.weight").T)], [f"{i}.up.out"], domain="")
        h = node("BiasGelu", [up, const(f"{i}.up.bias", part("intermediate.dense.bias"))], [f"{i}.h"])
        down = node("MatMul", [h, const(f"{i}.down", part("output.dense.weight").T)], [f"{i}.down.out"], domain="")
        norm = [const(f"{i}.n2.{p}", part(f"output.LayerNorm.{p}")) for p in ("weight", "bias")]
        bias = const(f"{i}.down.bias", part("output.dense.bias"))
        out = "states" if i == config["num_hidden_layers"] - 1 else f"{i}.x2"
        x = node("SkipLayerNormalization", [down, x, *norm, bias], [out], epsilon=eps)
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT32, ["batch", "length"]) for n in ("ids", "types", "mask")]
    outputs = [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["batch", "length", config["hidden_size"]])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "minilm", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


class Model:
    """Texts to vectors: mean over each text's tokens, length 1."""

    def __init__(self, path, tokenizer, threads):
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(tokenizer)
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()

    def embed(self, texts):
        encoded = [e.ids for e in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        out = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            length = max(len(encoded[i]) for i in batch)
            ids = np.zeros((len(batch), length), np.int32)
            mask = np.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(encoded[i])] = encoded[i]
                mask[row, : len(encoded[i])] = 1
            states = self.session.run(["states"], {"ids": ids, "types": np.zeros_like(ids), "mask": mask})[0]
            mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
            out[batch] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return out, sum(map(len, encoded))


def main():
    path, tokenizer, threads, reps = sys.argv[1:]
    import os

    os.environ["RAYON_NUM_THREADS"] = threads
    model = Model(path, tokenizer, int(threads))
    texts = sys.stdin.read().split("\n")[:-1]
    _, tokens = model.embed(texts)
    seconds = []
    for _ in range(int(reps)):
        start = time.perf_counter()
        model.embed(texts)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"texts": len(texts), "tokens": tokens, "seconds": seconds}))


if __name__ == "__main__":
    main()
