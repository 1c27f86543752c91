"""What the benchmarks share: the machine in words, medians, the record on disk."""

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def machine():
    """Processor, cores and memory of this machine, from /proc."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = next(line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith("model name"))
    flags = next(line for line in cpu.splitlines() if line.startswith("flags")).split()
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": model,
        "cores": cpu.count("processor\t:"),
        "memory_gib": round(int(memory.split()[1]) / 2**20, 1),
        "isa": [f for f in ("avx2", "avx_vnni", "avx512_vnni") if f in flags],
        "kernel": platform.release(),
    }


def summary(values):
    """Median, least and most of a list of numbers."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def commit():
    """The commit that was measured, with a mark if files differ from it."""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()


def previous(name):
    """The results that bench/record/NAME.json holds, or nothing."""
    path = ROOT / "bench" / "record" / f"{name}.json"
    return json.loads(path.read_text())["results"] if path.exists() else {}


def record(name, results):
    """Writes bench/record/NAME.json with how and where it was measured."""
    path = ROOT / "bench" / "record" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    document = {
        "command": f"cargo xtask bench {name}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "results": results,
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"recorded in {path.relative_to(ROOT)}", file=sys.stderr)
