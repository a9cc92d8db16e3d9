"""The code in the README runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.usefixtures("load_once")
@pytest.mark.parametrize("path", [p for p in DOCS if blocks(p)], ids=lambda p: p.name)
def test_python_in_the_docs_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = {"__name__": "__main__"}  # a page is read from its top
    for block in blocks(path):
        exec(compile(block, path.name, "exec"), page)
    if path.name == "README.md":
        assert "attributed" in capsys.readouterr().out
        written = {p.name for p in tmp_path.iterdir()}
        assert written == {"ioi.html", "ioi_faithfulness.svg"}


def test_links_between_documents_lead_somewhere():
    for path in DOCS:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
