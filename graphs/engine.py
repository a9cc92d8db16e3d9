"""Graphviz, from the system or from pygraphviz' wheel, run in a process of its own.

Positions are fixed beforehand (`neato -n2`), so either one draws the same picture. The wheel
carries Graphviz as libraries without programs; `NEATO` is the program: DOT on stdin, the picture on
stdout. A process of its own keeps Graphviz' and fontconfig's messages and global state out of the
caller's, and lets fonts be found on machines that have none.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from circuits.errors import UserError

NEATO = """
import sys, pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format=sys.argv[1], prog="nop2"))
"""

FONTCONFIG = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <include ignore_missing="yes">/etc/fonts/fonts.conf</include>
  <dir>{fonts}</dir>
  <cachedir>{cache}</cachedir>
</fontconfig>
"""


def draw(source: str, file_format: str) -> bytes:
    """The picture of a DOT source with positions, as `svg`, `png` or `pdf`.

    Raises:
        UserError: Graphviz is neither on the path nor in pygraphviz, or refuses the source.
    """
    system = shutil.which("neato")
    wheel = [sys.executable, "-P", "-c", NEATO, file_format]
    command = [system, "-n2", f"-T{file_format}"] if system else wheel
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | _with_fonts(Path(folder))
        done = subprocess.run(command, input=source.encode(), capture_output=True, env=environment)
    if done.returncode != 0 or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(
            f"Graphviz could not draw {file_format} ({said[-1] if said else 'it said nothing'}); "
            "reinstall pygraphviz, or put Graphviz' neato on the path"
        )
    return done.stdout


def _with_fonts(folder: Path) -> dict[str, str]:
    """Settings that add matplotlib's DejaVu Sans to the system's fonts."""
    import matplotlib

    settings = folder / "fonts.conf"
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    settings.write_text(FONTCONFIG.format(fonts=fonts, cache=folder / "cache"))
    return {"FONTCONFIG_FILE": str(settings)}
