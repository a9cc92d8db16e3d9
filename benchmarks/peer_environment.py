"""An environment of circuit-tracer's own for `against_peers.py`."""

from __future__ import annotations

import subprocess
import venv
from importlib.metadata import version
from pathlib import Path

import click

PEER = "circuit-tracer==0.5.0"


def peer_environment(folder: Path) -> Path:
    """The Python of an environment with the peer and this environment's torch, made if need be."""
    python = folder / "bin" / "python"
    torch_version = version("torch").partition("+")[0]
    if python.exists() and installed(python, "torch", "circuit-tracer") == [
        torch_version,
        PEER.partition("==")[2],
    ]:
        return python
    click.echo(f"making {folder} with {PEER}", err=True)
    venv.create(folder, with_pip=True)
    # torch by itself first: the one wanted, before anything else can ask for another
    for packages in ([f"torch=={torch_version}"], [f"torch=={torch_version}", PEER]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def installed(python: Path, *names: str) -> list[str]:
    """Versions in an environment, without the build's label; empty where one is missing."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    answer = subprocess.run([python, "-c", code, *names], capture_output=True, text=True)
    return [word.partition("+")[0] for word in answer.stdout.split()]
