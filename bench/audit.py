"""What auditing costs: a replay against the generation of the same answer, and all of it at the default policy.

Usage: audit.py PATH_OF_ASSAY [--model GGUF] [--answers N] [--steady N]. About ten minutes on two cores and 1 GB of memory with
the random model of 0.37 B parameters that it writes by default. The machine has to be quiet.

CPU time by the kernel's own accounting, of `assay up` with one provider and the auditor beside it, all with one thread:

- replay / generation: a new provider, one request at a time; the auditor's CPU for each answer that it replayed (its
  questions to the gateway and its proofs included) over the provider's for each answer that it generated. A replay
  computes the prompt once more, as the generation did: the longer it is beside the answer, the higher the ratio. A prompt
  of 432 tokens before 256 gave 0.23 on a busy machine.
- overhead: the same network when the provider's work was proven often, so that the rate of audits is at its floor of 2 %. The
  history (proven tokens) is written into the gateway's database while nothing runs: replaying so much first would take
  an hour. The auditor's CPU over the provider's, for answers generated four at a time; the auditor's share while it has
  nothing to do is in it. With few answers the number that is drawn varies, so what the rate and the first figure
  give is recorded beside what was measured.
"""

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import random_model
from measure import record

# About 64 tokens where every byte is one.
PROMPT_WORDS, REPLY = 7, 256
# A provider has the floor's rate from about this many proven tokens on.
PROVEN = 4_000_000
GOALS = {"replay_over_generation": 1 / 8, "overhead": 0.02}
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
WAIT_S = 600


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def auditor_of(parent):
    """The process id of the auditor among the children of `assay up`."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        for pid in (task / "children").read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if len(words) > 1 and words[1] == b"audit":
                return int(pid)
    raise SystemExit("no auditor runs")


class Network:
    def __init__(self, assay, state, model):
        self.process = subprocess.Popen(
            [assay, "up", "--json", "--dir", state, "--port", "0", "--providers", "1", "--threads", "1", "--model", model,
             "--challenge-every", "0"],
            stdout=subprocess.PIPE, text=True,
        )
        self.ready = json.loads(self.process.stdout.readline())
        self.provider = self.ready["providers"][0]["pid"]
        self.auditor = auditor_of(self.process.pid)
        self.id = self.ready["providers"][0]["id"]
        self.model = self.get("/models")["data"][0]["id"]

    def get(self, path):
        request = urllib.request.Request(self.ready["gateway"] + path, headers=self.headers())
        return json.load(urllib.request.urlopen(request, timeout=WAIT_S))

    def headers(self):
        return {"Authorization": f"Bearer {self.ready['key']}", "Content-Type": "application/json"}

    def ask(self, number):
        body = {
            "model": self.model, "prompt": " ".join(f"word{number}x{i}" for i in range(PROMPT_WORDS)),
            "max_tokens": REPLY, "temperature": 1, "seed": number, "ignore_eos": True,
        }
        request = urllib.request.Request(
            f"{self.ready['gateway']}/completions", json.dumps(body).encode(), self.headers()
        )
        return json.load(urllib.request.urlopen(request, timeout=WAIT_S))["usage"]

    def settled_audits(self):
        """Audits that have ended, decoys included, once none waits."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            audits = self.get("/audits")
            account = audits["auditors"][0]
            if audits["waiting"] == 0:
                return account["proven"] + account["caught"], account["failed"]
            time.sleep(0.5)
        raise SystemExit("answers wait for the auditor without end")

    def cpu(self):
        return {"provider": cpu_s(self.provider), "auditor": cpu_s(self.auditor), "parent": cpu_s(self.process.pid)}

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)


def differences(before, after):
    return {name: after[name] - before[name] for name in before}


def new_identity(assay, state, model, answers):
    network = Network(assay, state, model)
    try:
        # The auditor loads its model for the first task.
        prompt_tokens = network.ask(0)["prompt_tokens"]
        audits, _ = network.settled_audits()
        before = network.cpu()
        for number in range(1, answers + 1):
            network.ask(number)
        after_audits, failed = network.settled_audits()
        spent = differences(before, network.cpu())
        if failed:
            raise SystemExit(f"{failed} audits of an honest provider failed")
        audited = after_audits - audits
        if audited < answers // 4:
            raise SystemExit(f"{audited} of {answers} answers of a new provider were audited")
        row = {
            "answers": answers, "prompt_tokens": prompt_tokens, "output_tokens": REPLY, "audits": audited,
            "provider_cpu_s_per_answer": spent["provider"] / answers,
            "auditor_cpu_s_per_audit": spent["auditor"] / audited,
        }
        row["replay_over_generation"] = row["auditor_cpu_s_per_audit"] / row["provider_cpu_s_per_answer"]
        return row, network.id
    finally:
        network.stop()


def write_history(state, provider):
    with sqlite3.connect(Path(state) / "gateway" / "gateway.sqlite") as database:
        deed = json.dumps({"deed": "proven", "tokens": PROVEN, "fees": "400000"})
        row = (int(time.time()), bytes.fromhex(provider[2:]), deed)
        database.execute("INSERT INTO deeds (at, provider, deed, receipt_id) VALUES (?, ?, ?, NULL)", row)
    database.close()


def steady(assay, state, model, answers):
    network = Network(assay, state, model)
    try:
        listed = next(one for one in network.get("/providers")["data"] if one["id"].lower() == network.id.lower())
        rate = listed["audit_rate_ppm"] / 1e6
        # The auditor's model is loaded before what is measured, as it is in a service that runs for days.
        audits, _ = network.settled_audits()
        network.ask(10_000)
        before = network.cpu()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(network.ask, range(20_000, 20_000 + answers)))
        after_audits, failed = network.settled_audits()
        spent = differences(before, network.cpu())
        if failed:
            raise SystemExit(f"{failed} audits of an honest provider failed")
        return {
            "answers": answers, "rate": rate, "audits": after_audits - audits,
            "provider_cpu_s": spent["provider"], "auditor_cpu_s": spent["auditor"], "parent_cpu_s": spent["parent"],
            "overhead": spent["auditor"] / spent["provider"],
        }
    finally:
        network.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assay")
    parser.add_argument("--model", help="GGUF file [default: random weights, 0.37 B parameters, Q8_0]")
    parser.add_argument("--answers", type=int, default=16, help="of the new provider")
    parser.add_argument("--steady", type=int, default=200, help="answers at the floor's rate")
    arguments = parser.parse_args()
    assay = os.path.abspath(arguments.assay)
    with tempfile.TemporaryDirectory() as state:
        model = arguments.model
        if model is None:
            model = f"{state}/random.gguf"
            random_model.write(model, "0.35b", "Q8_0")
        first, provider = new_identity(assay, f"{state}/net", os.path.abspath(model), arguments.answers)
        print(json.dumps(first), flush=True)
        write_history(f"{state}/net", provider)
        second = steady(assay, f"{state}/net", os.path.abspath(model), arguments.steady)
        # Each audit that the rate draws costs what one cost above; of four answers at a time each is cheaper to generate.
        per_answer = second["provider_cpu_s"] / second["answers"]
        second["overhead_by_rate"] = second["rate"] * first["auditor_cpu_s_per_audit"] / per_answer
        print(json.dumps(second), flush=True)
    met = {
        "replay_over_generation": first["replay_over_generation"] <= GOALS["replay_over_generation"],
        "overhead": second["overhead"] <= GOALS["overhead"],
    }
    record("audit", {
        "what": "CPU seconds of the auditor and of one provider, one thread each",
        "model": Path(model).name, "new_identity": first, "steady": second, "goals": GOALS, "met": met,
    })


if __name__ == "__main__":
    main()
