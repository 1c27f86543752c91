"""schemathesis against a running gateway, on the description that it publishes.

Usage: run.py PATH_OF_ASSAY ENCODER [SECONDS]. Starts `assay up` in a temporary folder on free ports, with as many
providers as a request may want to agree, and has schemathesis generate
requests from `/openapi.json`, right and wrong ones, for so long (45 by default). No reply may be a 5xx, have a status
or a content type that is not described, or a body of another shape; what needs a key must refuse a stranger.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

READY_S_MAX = 60
STOP_S_MAX = 30
CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "unsupported_method", "ignored_auth",
]


def main():
    assay, encoder = (os.path.abspath(path) for path in sys.argv[1:3])
    seconds = sys.argv[3] if len(sys.argv) > 3 else "45"
    with tempfile.TemporaryDirectory() as state:
        process = subprocess.Popen(
            [assay, "up", "--json", "--dir", state, "--port", "0", "--providers", "8", "--encoder", encoder],
            stdout=subprocess.PIPE, text=True,
        )
        timer = threading.Timer(READY_S_MAX, process.kill)
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            raise SystemExit(f"assay up ended before it was ready, status {process.wait()}")
        network = json.loads(line)
        url = network["gateway"].removesuffix("/v1")
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--url", url, "--no-color",
            "--header", f"Authorization: Bearer {network['key']}", "--header", f"x-api-key: {network['key']}",
            "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-time", seconds,
            "--max-examples", "100000", "--seed", "1", "--generation-database", "none", "--warnings", "off",
        ]
        try:
            # What it writes goes into the folder that is removed.
            status = subprocess.run(command, cwd=state).returncode
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                ended = process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                ended = "killed"
    if ended != 0:
        raise SystemExit(f"assay up did not stop cleanly: {ended}")
    sys.exit(status)


if __name__ == "__main__":
    main()
