"""The GGUF parser and writer against the PyPI package `gguf`: `gguf_files.py PROGRAM`.

PROGRAM is the example `files` of assay-gguf. Files come from both writers, with every type of metadata and tensor;
names, shapes, offsets, metadata and the values of every format that the engine runs must agree.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V
from gguf import quants

# Formats that are not compared: those that the parser gives no name to (whoever adds one takes it from this list), and
# Q8_1, never in files, whose block has 36 bytes in ggml and 40 in the Python package.
LEFT_OUT = {"NVFP4", "Q1_0", "Q8_1"}
# Formats whose values the engine computes with.
RUN = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K"}
# Where a block has f16 scales, so that random blocks are finite.
SCALES = {"Q4_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
NAMES = {
    V.UINT8: "u8", V.INT8: "i8", V.UINT16: "u16", V.INT16: "i16", V.UINT32: "u32", V.INT32: "i32", V.UINT64: "u64",
    V.INT64: "i64", V.FLOAT32: "f32", V.FLOAT64: "f64", V.BOOL: "bool", V.STRING: "string",
}  # fmt: skip
BITS = {V.FLOAT32: (np.float32, np.uint32), V.FLOAT64: (np.float64, np.uint64)}


def plain(kind, value):
    """A metadata value as PROGRAM prints it: floats by their bits."""
    if kind in BITS:
        float_type, int_type = BITS[kind]
        return np.asarray(value, dtype=float_type).view(int_type).tolist()
    return np.asarray(value).tolist() if kind != V.STRING else value


def field(reader, key):
    """Type and value of a key, as PROGRAM prints them."""
    found = reader.fields[key]
    if found.types[0] != V.ARRAY:
        return [NAMES[found.types[0]], plain(found.types[0], found.contents())]
    kind = found.types[-1]
    name = "array of strings" if kind == V.STRING else f"array of {NAMES[kind]}"
    return [name, [plain(kind, value) for value in found.contents()]]


def blocks(rng, ty, rows, row_len):
    """Rows of a format, random where `gguf` has no encoder."""
    name = ty.name
    values = rng.normal(size=(rows, row_len)).astype(np.float32)
    if name in ("F32", "F16", "F64"):
        return values.astype({"F32": np.float32, "F16": np.float16, "F64": np.float64}[name])
    if name in ("I8", "I16", "I32", "I64"):
        return (values * 40).astype({"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}[name])
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[ty]
    data = rng.integers(0, 256, size=(rows, row_len // block_len, block_bytes), dtype=np.uint8)
    for at in SCALES.get(name, []):
        scale = rng.normal(size=data.shape[:2]).astype(np.float16)
        data[:, :, at : at + 2] = scale[..., None].view(np.uint8)
    if name == "BF16":
        return quants.quantize(values, ty)
    return data.reshape(rows, -1)


def write(path, seed, alignment):
    """A file by Python's writer."""
    rng = np.random.default_rng(seed)
    pick = random.Random(seed)
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    numbers = {
        V.UINT8: (0, 2**8 - 1), V.INT8: (-(2**7), 2**7 - 1), V.UINT16: (0, 2**16 - 1), V.INT16: (-(2**15), 2**15 - 1),
        V.UINT32: (0, 2**32 - 1), V.INT32: (-(2**31), 2**31 - 1), V.UINT64: (0, 2**64 - 1),
        V.INT64: (-(2**63), 2**63 - 1),
    }  # fmt: skip
    for kind, (low, high) in numbers.items():
        writer.add_key_value(NAMES[kind], pick.randint(low, high), kind)
        writer.add_key_value(f"{NAMES[kind]}s", [low, high, pick.randint(low, high)], V.ARRAY, kind)
    for kind in (V.FLOAT32, V.FLOAT64):
        writer.add_key_value(NAMES[kind], pick.uniform(-1, 1), kind)
        writer.add_key_value(f"{NAMES[kind]}s", [pick.uniform(-1e9, 1e9) for _ in range(3)], V.ARRAY, kind)
    writer.add_bool("bool", True)
    writer.add_key_value("bools", [True, False], V.ARRAY, V.BOOL)
    writer.add_string("text", "a\u0301\n\u4e00\U0001f600")
    writer.add_array("texts", ["a", "", "\u00e9" * 300])
    for ty in T:
        if ty.name in LEFT_OUT:
            continue
        for shape in [(256,), (3, 512), (2, 1, 256)]:
            rows = int(np.prod(shape[:-1], dtype=int))
            data = blocks(rng, ty, rows, shape[-1])
            data = data.reshape(*shape[:-1], -1) if len(shape) > 1 else data.reshape(-1)
            writer.add_tensor(f"{ty.name}.{len(shape)}", data, raw_dtype=ty)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(program, path):
    """What both read in one file; the number of values compared."""
    ours = json.loads(subprocess.run([program, "read", path], check=True, capture_output=True).stdout)
    theirs = gguf.GGUFReader(path)
    keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
    assert sorted(ours["metadata"]) == sorted(keys), path
    for key in keys:
        assert ours["metadata"][key] == field(theirs, key), (path, key, ours["metadata"][key], field(theirs, key))
    assert ours["alignment"] == theirs.alignment and ours["version"] == theirs.fields["GGUF.version"].contents()
    assert [tensor["name"] for tensor in ours["tensors"]] == [tensor.name for tensor in theirs.tensors]
    count = 0
    for mine, other in zip(ours["tensors"], theirs.tensors, strict=True):
        place = (mine["dims"], mine["type"], mine["offset"], mine["len"])
        expect = ([int(dim) for dim in other.shape], other.tensor_type.name, other.data_offset, int(other.n_bytes))
        assert place == expect, (path, mine["name"], place, expect)
        assert (mine["values"] is not None) == (other.tensor_type.name in RUN), mine["name"]
        if mine["values"] is None:
            continue
        if other.tensor_type.name in ("F32", "F16"):
            wanted = other.data.astype(np.float32)
        else:
            wanted = quants.dequantize(other.data, other.tensor_type)
        values = np.array(mine["values"], dtype=np.uint32).view(np.float32)
        wanted = wanted.reshape(-1)
        same = (values.view(np.uint32) == wanted.view(np.uint32)) | ((values == 0) & (wanted == 0))
        assert same.all(), (path, mine["name"], int((~same).sum()), values[~same][:4], wanted[~same][:4])
        count += len(values)
    return len(keys), len(theirs.tensors), count


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(3):
            path = str(Path(folder) / f"ours-{seed}.gguf")
            subprocess.run([program, "write", path, str(seed)], check=True)
            print("our writer, %d keys, %d tensors, %d values: equal" % compare(program, path))
            path = str(Path(folder) / f"python-{seed}.gguf")
            write(path, seed, [None, 64, 256][seed])
            print("Python's writer, %d keys, %d tensors, %d values: equal" % compare(program, path))


main()
