"""llama.cpp in turns: for each line of JSON on standard input, one workload; prints its figures as a line of JSON.

Usage: llama_speed.py MODEL REPACK (1: with ggml's own weight layouts, its default; 0: without). A turn: {"threads",
"prompt", "gen", "flash", "ubatch"}. Calls llama_decode itself, so that Python's share of the time is one call a token;
the logits are not copied. LLAMA_CPP_LIB_PATH names another folder with libllama.so than that of llama-cpp-python.
"""

import ctypes
import json
import sys
import time

import llama_cpp as lib


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def quiet(_level, _text, _data):
    pass


class Context:
    def __init__(self, model, turn):
        params = lib.llama_context_default_params()
        params.n_ctx = turn["prompt"] + turn["gen"] + 64
        params.n_batch, params.n_ubatch = max(512, turn["ubatch"]), turn["ubatch"]
        params.n_threads = params.n_threads_batch = turn["threads"]
        params.flash_attn_type = (
            lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if turn["flash"] else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self.context = lib.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit("llama.cpp makes no context")

    def decode(self, array, n):
        if lib.llama_decode(self.context, lib.llama_batch_get_one(array, n)) != 0:
            raise SystemExit("llama_decode failed")
        lib.llama_synchronize(self.context)

    def prefill(self, n_prompt):
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        tokens = (lib.llama_token * n_prompt)(*[(i * 7 + 3) % 250 for i in range(n_prompt)])
        for start in range(0, n_prompt, 512):
            n = min(512, n_prompt - start)
            self.decode(ctypes.cast(ctypes.byref(tokens, 4 * start), ctypes.POINTER(lib.llama_token)), n)

    def run(self, n_prompt, n_gen):
        # Buffers are made by the first tokens, not by the measured ones.
        self.prefill(2)
        start = time.perf_counter()
        self.prefill(n_prompt)
        prefill_s = time.perf_counter() - start
        one = (lib.llama_token * 1)(5)
        start = time.perf_counter()
        for _ in range(n_gen):
            self.decode(one, 1)
        decode_s = time.perf_counter() - start
        return {"prefill_tokens_per_s": n_prompt / prefill_s, "decode_tokens_per_s": n_gen / decode_s}


def main():
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.use_extra_bufts = sys.argv[2] == "1"
    model = lib.llama_model_load_from_file(sys.argv[1].encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp does not load {sys.argv[1]}")
    print(json.dumps({"features": lib.llama_print_system_info().decode()}), flush=True)
    for line in sys.stdin:
        turn = json.loads(line)
        context = Context(model, turn)
        print(json.dumps(context.run(turn["prompt"], turn["gen"])), flush=True)
        lib.llama_free(context.context)


if __name__ == "__main__":
    main()
