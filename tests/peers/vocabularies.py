"""Unpacks llama.cpp's vocabulary files and their vectors into DIR: `vocabularies.py DIR`.

They come with the source distribution of the PyPI package llama-cpp-python, which is fetched, not built: pip only asks
the build backend for metadata, and that is installed already.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "llama-cpp-python==0.3.36"
PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]


def main():
    out = Path(sys.argv[1])
    stamp = out / "package.txt"
    if stamp.exists() and stamp.read_text() == PACKAGE:
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
        subprocess.run([*PIP, *source, "--dest", folder, PACKAGE], check=True)
        (archive,) = Path(folder).iterdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if member.isfile() and name.startswith("ggml-vocab-"):
                    (out / name).write_bytes(tar.extractfile(member).read())
    stamp.write_text(PACKAGE)


main()
