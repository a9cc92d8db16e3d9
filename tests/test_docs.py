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


def anchors(path):
    """The names of a page's titles, as GitHub makes them, and those it gives itself."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'id="([^"]+)"', text))


@pytest.mark.parametrize("path", [*DOCS, ROOT / "benchmarks" / "RESULTS.md"], ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path):
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", path.read_text()):
        name, _, anchor = link.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), link
        assert not anchor or anchor in anchors(page), link
