"""CPU per request of the gateway against nginx as a plain proxy, in one interleaved run.

Usage: gateway.py PATH_OF_ASSAY. Needs `nginx` and `wrk` (Debian packages of these names).

The gateway's figure is the real path: `assay up` with its own providers, one output token a request. Providers are
processes of their own, so the CPU time of the parent process is that of the gateway (and of the embedded chain, which
does nothing between claims). nginx forwards the same request to another nginx that returns a fixed body; only the
forwarding process is counted. Both are loaded by wrk with 32 connections; the figure is CPU time by the kernel's own
accounting over the number of requests that were answered.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import record, summary

CONNECTIONS = 32
ROUNDS = 5
ROUND_S = 6
BODY = {"model": "assay-tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0}
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid):
    """User and system seconds of one process, its threads included, its children not."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def rss_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def load(url, key, folder):
    """One round of wrk; the number of answers and the latency in microseconds. An answer other than 200 ends the run."""
    script = Path(folder) / "post.lua"
    script.write_text(
        'wrk.method = "POST"\n'
        f"wrk.body = [==[{json.dumps(BODY)}]==]\n"
        'wrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.headers["Authorization"] = "Bearer {key}"\n'
    )
    out = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{ROUND_S}s", "--latency", "-s", script, url],
        capture_output=True, text=True, check=True,
    ).stdout
    if "Non-2xx" in out:
        raise SystemExit(f"{url} answered with errors:\n{out}")
    p50, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", out).groups()
    scale = {"us": 1, "ms": 1e3, "s": 1e6}[unit]
    return int(re.search(r"(\d+) requests in", out)[1]), float(p50) * scale


def start_nginx(folder, config):
    path = Path(folder)
    path.mkdir()
    (path / "nginx.conf").write_text(
        "daemon off; master_process off; error_log stderr crit; pid nginx.pid;\n"
        "events { worker_connections 1024; }\n"
        "http { access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n"
        "uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n" + config + "}\n"
    )
    return subprocess.Popen(["nginx", "-p", folder, "-c", "nginx.conf"])


def main():
    for tool in ("nginx", "wrk"):
        if not shutil.which(tool):
            raise SystemExit(f"the gateway benchmark needs {tool}: apt-get install {tool}")
    assay = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as state:
        network = subprocess.Popen(
            [assay, "up", "--json", "--dir", f"{state}/assay", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        ready = json.loads(network.stdout.readline())
        url = f"{ready['gateway']}/chat/completions"
        fixed, front = free_port(), free_port()
        answer = json.dumps({"object": "chat.completion", "choices": [{"message": {"content": "x" * 400}}]})
        upstream = start_nginx(
            f"{state}/upstream",
            f"server {{ listen 127.0.0.1:{fixed}; location / {{ return 200 '{answer}'; }} }}\n",
        )
        proxy = start_nginx(
            f"{state}/proxy",
            f"upstream fixed {{ server 127.0.0.1:{fixed}; keepalive 64; }}\n"
            f"server {{ listen 127.0.0.1:{front}; location / {{ proxy_pass http://fixed; proxy_http_version 1.1; "
            "proxy_set_header Connection ''; } }\n",
        )
        try:
            rows = {"assay": [], "nginx": []}
            latency = {"assay": [], "nginx": []}
            for _ in range(ROUNDS):
                for name, pid, target in (
                    ("assay", network.pid, url),
                    ("nginx", proxy.pid, f"http://127.0.0.1:{front}/"),
                ):
                    before = cpu_s(pid)
                    requests, p50_us = load(target, ready["key"], state)
                    rows[name].append((cpu_s(pid) - before) / requests * 1e6)
                    latency[name].append(p50_us)
                    print(f"{name}: {rows[name][-1]:.1f} us CPU per request, {requests} requests", flush=True)
            ratios = [a / n for a, n in zip(rows["assay"], rows["nginx"])]
            record("gateway", {
                "what": "CPU microseconds per request at 32 connections, one output token, signed receipt stored",
                "assay_cpu_us_per_request": summary(rows["assay"]),
                "nginx_cpu_us_per_request": summary(rows["nginx"]),
                "ratio": summary(ratios),
                "assay_p50_us_with_inference": summary(latency["assay"]),
                "nginx_p50_us": summary(latency["nginx"]),
                "assay_parent_rss_mib": round(rss_mib(network.pid), 1),
            })
        finally:
            for process in (proxy, upstream, network):
                process.send_signal(signal.SIGTERM)
            for process in (proxy, upstream, network):
                process.wait(30)


if __name__ == "__main__":
    main()
