"""Prefill and decode tokens/s of llama.cpp. Usage: llama_speed.py MODEL THREADS PROMPT GEN. Prints one JSON line.

Calls llama_decode itself, so that Python's share of the time is one call a token; the logits are not copied.
"""

import ctypes
import json
import sys
import time

import llama_cpp as lib


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def quiet(_level, _text, _data):
    pass


def main():
    model_path, threads, n_prompt, n_gen = sys.argv[1], *map(int, sys.argv[2:5])
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(model_path.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = n_prompt + n_gen + 64
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = threads
    context = lib.llama_init_from_model(model, params)
    tokens = (lib.llama_token * n_prompt)(*[(i * 7 + 3) % 250 for i in range(n_prompt)])

    def decode(array, n):
        if lib.llama_decode(context, lib.llama_batch_get_one(array, n)) != 0:
            raise SystemExit("llama_decode failed")
        lib.llama_synchronize(context)

    def prefill():
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        for start in range(0, n_prompt, 512):
            n = min(512, n_prompt - start)
            decode(ctypes.cast(ctypes.byref(tokens, 4 * start), ctypes.POINTER(lib.llama_token)), n)

    prefill()  # pages the weights in
    start = time.perf_counter()
    prefill()
    prefill_s = time.perf_counter() - start
    one = (lib.llama_token * 1)(5)
    decode(one, 1)
    start = time.perf_counter()
    for _ in range(n_gen):
        decode(one, 1)
    decode_s = time.perf_counter() - start
    print(json.dumps({"prefill_tokens_per_s": n_prompt / prefill_s, "decode_tokens_per_s": n_gen / decode_s}))


if __name__ == "__main__":
    main()
