"""The engine against llama.cpp: prefill and decode tokens/s, both programs in turns in one run, with the same threads.

Usage: engine.py PATH_OF_ASSAY [OPTIONS]; see --help. All of it takes about half an hour on two cores, 5 GB of disk in the
temporary folder and 6 GB of memory; no part runs longer than its number of rounds says.

llama.cpp is the PyPI source distribution llama-cpp-python, compiled for this machine. For each model and
instruction set its settings are tried first (its own weight layouts, flash attention, size of a batch), and the best for
prefill and the best for decode are measured, which need not be the same. Each round runs both programs one
after the other; ratios are formed round by round, so a drift of the machine's speed cancels.

Both restricted to AVX2: that needs a second build of llama.cpp, in a folder named by ASSAY_LLAMA_AVX2:
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF -DGGML_AVX=ON \\
      -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DLLAMA_BUILD_COMMON=OFF
    cmake --build build --target llama && export ASSAY_LLAMA_AVX2=$PWD/build/bin
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import random_model
from measure import commit, previous, record, summary

HERE = Path(__file__).parent
RATES = ("prefill_tokens_per_s", "decode_tokens_per_s")
N_PROMPT, N_GEN = 512, 64
# A try of llama.cpp's settings.
TRY_PROMPT, TRY_GEN = 256, 16
STREAMS, STREAM_PROMPT = 16, 32
REPLY = 256
# What a run must have measured of a model to replace what is recorded of it.
RECORD_ROUNDS, RECORD_THREADS = 5, {1, 2}
GOALS = {
    ("Q8_0", "native"): {"prefill": 3.0, "decode": 1.0}, ("Q4_K", "native"): {"prefill": 1.2, "decode": 1.0},
    ("Q8_0", "avx2"): {"prefill": 1.3, "decode": 1.0}, ("Q4_K", "avx2"): {"prefill": 1.3, "decode": 1.0},
}


class Program:
    """A process that answers lines of JSON; asked one at a time, so that the others are at rest."""

    def __init__(self, command, env=None):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, **turn):
        self.process.stdin.write(json.dumps(turn) + "\n")
        self.process.stdin.flush()
        return self.line()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Llama:
    """llama.cpp with and without its own weight layouts, as processes that are started when they are needed."""

    def __init__(self, model, isa):
        self.model, self.programs, self.features = model, {}, None
        self.env = {"LLAMA_CPP_LIB_PATH": os.environ["ASSAY_LLAMA_AVX2"]} if isa == "avx2" else {}
        self.isa = isa

    def ask(self, repack, **turn):
        if repack not in self.programs:
            program = Program([sys.executable, HERE / "llama_speed.py", self.model, str(int(repack))], self.env)
            self.features = program.line()["features"]
            if self.isa == "avx2" and ("AVX512 = 1" in self.features or "VNNI = 1" in self.features):
                raise SystemExit(f"the llama.cpp in ASSAY_LLAMA_AVX2 has more than AVX2: {self.features}")
            self.programs[repack] = program
        return self.programs[repack].ask(**turn)

    def keep(self, wanted):
        """Ends the processes that are not needed any more, for their memory."""
        for repack in set(self.programs) - wanted:
            self.programs.pop(repack).close()

    def close(self):
        self.keep(set())


def best_settings(llama, threads):
    """For each rate, the settings that gave the most of two tries."""
    tried = {}
    for repack in (True, False):
        for flash, ubatch in itertools.product((True, False), (512, 128)):
            settings = {"repack": repack, "flash": flash, "ubatch": ubatch}
            answers = [
                llama.ask(**settings, threads=threads, prompt=TRY_PROMPT, gen=TRY_GEN) for _ in range(2)
            ]
            tried[json.dumps(settings)] = [max(answer[rate] for answer in answers) for rate in RATES]
    return [json.loads(max(tried, key=lambda settings: tried[settings][i])) for i in range(len(RATES))]


def compare(assay, llama, isa, threads, rounds, best):
    """One cell of the table; `best` is what [best_settings] chose."""
    ours_turn = {"threads": threads, "prompt": N_PROMPT, "gen": N_GEN}
    if isa == "avx2":
        ours_turn["isa"] = isa
    assay.ask(**ours_turn)
    seen = {rate: {"assay": [], "llama.cpp": [], "ratio": []} for rate in RATES}
    read, of_read = [], []
    for _ in range(rounds):
        ours = assay.ask(**ours_turn)
        memory = assay.ask(measure="memory", threads=threads)["memory_bytes_per_s"]
        answers = {}
        for settings in best:
            key = json.dumps(settings)
            if key not in answers:
                answers[key] = llama.ask(**settings, threads=threads, prompt=N_PROMPT, gen=N_GEN)
        for rate, settings in zip(RATES, best):
            theirs = answers[json.dumps(settings)][rate]
            for name, value in (("assay", ours[rate]), ("llama.cpp", theirs), ("ratio", ours[rate] / theirs)):
                seen[rate][name].append(value)
        read.append(memory / 1e9)
        of_read.append(ours["decode_tokens_per_s"] * ours["weight_bytes"] / memory)
    return {
        "isa": ours["isa"],
        "threads": threads,
        "llama.cpp_settings": dict(zip(("prefill", "decode"), best)),
        "llama.cpp_features": llama.features,
        **{rate: {name: summary(values) for name, values in seen[rate].items()} for rate in RATES},
        "memory_read_gb_per_s": summary(read),
        "decode_share_of_memory_read": summary(of_read),
    }


def streams(assay, threads, rounds):
    """Many sequences at once against one; a reply's verification against its generation."""
    one, many, replays = [], [], []
    for _ in range(rounds + 1):
        turn = {"threads": threads, "prompt": STREAM_PROMPT, "gen": N_GEN}
        one.append(assay.ask(**turn)["decode_tokens_per_s"])
        many.append(assay.ask(**turn, concurrency=STREAMS)["decode_tokens_per_s"])
        reply = assay.ask(measure="replay", threads=threads, prompt=STREAM_PROMPT, gen=REPLY)
        replays.append(reply["generate_s"] / reply["replay_s"])
    # The first round pays for page faults and buffers.
    one, many, replays = one[1:], many[1:], replays[1:]
    return {
        "threads": threads,
        "one_stream_tokens_per_s": summary(one),
        f"{STREAMS}_streams_tokens_per_s": summary(many),
        "ratio": summary([m / o for m, o in zip(many, one)]),
        f"generation_of_{REPLY}_tokens_over_replay": summary(replays),
    }


def print_table(models):
    print("\nmodel      isa     thr   prefill tok/s  llama.cpp  ratio  goal    decode tok/s  llama.cpp  ratio  goal"
          "  of memory read")
    for name, model in models.items():
        for isa, cells in model["against llama.cpp"].items():
            for cell in cells:
                goals, line = GOALS[name.split()[1], isa], f"{name:<10} {cell['isa']:<8}{cell['threads']:>2} "
                for rate in RATES:
                    medians = [cell[rate][who]["median"] for who in ("assay", "llama.cpp", "ratio")]
                    line += "{:>15.1f}{:>11.1f}{:>7.2f}".format(*medians) + f"{goals[rate.split('_')[0]]:>6.1f}"
                share, read = (cell[key]["median"] for key in ("decode_share_of_memory_read", "memory_read_gb_per_s"))
                print(f"{line}  {share:4.0%} of {read:.1f} GB/s")
    for name, model in models.items():
        for row in model["streams"]:
            print(f"{name:<10} {row['threads']} thread(s): {STREAMS} streams give {row['ratio']['median']:.2f} times the "
                  f"tokens/s of one; a reply of {REPLY} tokens replays in "
                  f"1/{row[f'generation_of_{REPLY}_tokens_over_replay']['median']:.1f} of the time it took")


def measure_model(args, path, isas):
    result = {"bytes": os.path.getsize(path), "against llama.cpp": {}, "streams": []}
    assay = Program([args.assay, "bench", path, "--turns"])
    for isa in isas:
        llama = Llama(path, isa)
        best = best_settings(llama, args.threads[0])
        llama.keep({settings["repack"] for settings in best})
        cells = result["against llama.cpp"][isa] = []
        for threads in args.threads:
            started = time.monotonic()
            cells.append(compare(assay, llama, isa, threads, args.rounds, best))
            cell = cells[-1]
            print(f"  {isa}, {threads} thread(s): " + ", ".join(
                f"{rate.split('_')[0]} {cell[rate]['ratio']['median']:.2f}x" for rate in RATES
            ) + f" ({time.monotonic() - started:.0f} s)", flush=True)
        llama.close()
    if not args.no_streams:
        result["streams"] = [streams(assay, threads, args.rounds) for threads in args.threads]
    assay.close()
    return result


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assay", type=os.path.abspath)
    parser.add_argument("--shapes", nargs="+", choices=random_model.SHAPES, default=list(random_model.SHAPES))
    parser.add_argument("--formats", nargs="+", choices=random_model.FORMATS, default=list(random_model.FORMATS))
    parser.add_argument("--isas", nargs="+", choices=("native", "avx2"), default=["native", "avx2"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="at most 100; medians count")
    parser.add_argument("--no-streams", action="store_true", help="leave out many sequences at once and the replay")
    parser.add_argument("--models", help="a folder to keep the generated models in (default: made and deleted)")
    args = parser.parse_args()
    if not 1 <= args.rounds <= 100:
        parser.error("--rounds is 1 to 100")
    return args


def main():
    args = parse_args()
    isas = list(args.isas)
    if "avx2" in isas and not os.path.exists(os.path.join(os.environ.get("ASSAY_LLAMA_AVX2", ""), "libllama.so")):
        print("no comparison restricted to AVX2: ASSAY_LLAMA_AVX2 names no folder with libllama.so (see engine.py)",
              file=sys.stderr)
        isas.remove("avx2")
    if not isas:
        raise SystemExit("nothing left to measure")
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape, fmt in itertools.product(args.shapes, args.formats):
            path = os.path.join(args.models or folder, f"random-{shape}-{fmt}.gguf")
            if not os.path.exists(path):
                subprocess.run([sys.executable, HERE / "random_model.py", path, shape, fmt], check=True)
            print(f"{shape} {fmt}", flush=True)
            models[f"{shape} {fmt}"] = measure_model(args, path, isas)
            if not args.models:
                os.remove(path)
    print_table(models)
    if args.rounds < RECORD_ROUNDS or not set(args.threads) >= RECORD_THREADS or args.no_streams:
        print(f"not recorded: that takes {RECORD_ROUNDS} rounds, 1 and 2 threads, and the streams", file=sys.stderr)
        return
    # Models that this run did not measure keep what is recorded of them, with the commit it was measured at.
    recorded = previous("engine").get("models", {})
    for name, model in models.items():
        recorded[name] = {"commit": commit(), **model}
    record("engine", {
        "prompt_tokens": N_PROMPT,
        "decoded_tokens": N_GEN,
        "peer": "llama-cpp-python 0.3.36, compiled for this machine, its best settings",
        "models": dict(sorted(recorded.items())),
    })


if __name__ == "__main__":
    main()
