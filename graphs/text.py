"""What is written on a graph's pictures, cut to the width there is."""

import functools
import unicodedata
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.ft2font import FT2Font

from circuits.nodes import NODE_WORDS, BiasNode, ErrorNode, LatentNode, LogitNode
from graphs.graph import AttributionGraph, plural


def visible(text: str) -> str:
    """`text` on one line, with signs for what cannot be seen or is not allowed in XML.

    Line breaks and tabs become arrows, a word of spaces open boxes, control characters and broken
    surrogates the replacement character.
    """
    text = text.replace("\r\n", "\n").replace("\n", "↵").replace("\r", "↵").replace("\t", "⇥")
    text = "".join(
        "�" if unicodedata.category(c) in ("Cc", "Cs", "Cn") or c in "\u2028\u2029" else c
        for c in text
    )
    return text if text.strip() else "␣" * len(text)


def width(text: str, size: float, *, bold: bool = False) -> float:
    """How wide `text` is at font size `size`, in the same unit, set in DejaVu Sans.

    The other fonts that the pictures name are narrower.
    """
    return size * sum(_advance(character, bold) for character in text)


def fit(text: str, size: float, limit: float, *, bold: bool = False) -> str:
    """`text`, cut with an ellipsis where it is wider than `limit`."""
    if width(text, size, bold=bold) <= limit:
        return text
    while text and width(text + "…", size, bold=bold) > limit:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, size: float, limit: float, *, bold: bool = False) -> list[str]:
    """`text` over as many lines as it takes, broken between words; a word too long is cut."""
    wrapped = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if wrapped[-1] and width(longer, size, bold=bold) > limit:
            wrapped.append(word)
        else:
            wrapped[-1] = longer
    return [fit(line, size, limit, bold=bold) for line in wrapped if line]


def label_lines(label: str | None, size: float, limit: float) -> list[str]:
    """A label over two lines, the first in bold: broken at ` | `, else between words."""
    text = visible(label or "")
    if " | " in text:
        first, rest = text.split(" | ", 1)
    else:
        first, *others = wrap(text, size, limit, bold=True) or [""]
        rest = text.removeprefix(first).strip() if others else ""
    return [line for line in (fit(first, size, limit, bold=True), fit(rest, size, limit)) if line]


def short_name(node: LatentNode) -> str:
    """A latent's name without its position, which its column shows: `mlp.3/901`."""
    return f"{node.site}/{node.latent}"


def effect_text(attributes: dict[str, Any]) -> str:
    """`+1.23`, or attributed and measured effect side by side: `+1.23 / +1.10`."""
    attributed = number(attributes["effect"])
    if attributes["measured"] is None:
        return attributed
    return f"{attributed} / {number(attributes['measured'])}"


def output_text(graph: AttributionGraph, attributes: dict[str, Any]) -> str:
    """The metric's value; of one output among several, its weight in the metric."""
    several = sum(isinstance(node, LogitNode) for node in graph.digraph) > 1
    return f"weight {number(attributes['grad'])}" if several else number(graph.metric_value)


def number(value: float) -> str:
    """Signed, with two or three decimals, or as a power of ten: `+1.23`, `-0.046`, `+1.2e+05`."""
    if value == 0 or 0.001 <= abs(value) < 1000:
        digits = 2 if abs(value) >= 1 or value == 0 else 3
        return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return f"{value:+.1e}".replace("-", "\N{MINUS SIGN}")


def prompt_text(graph: AttributionGraph) -> str:
    """The prompt as the provenance has it, else the words joined."""
    prompt = graph.provenance.get("prompt")
    if isinstance(prompt, dict):
        prompt = prompt.get("text")
    return visible(prompt) if isinstance(prompt, str) else visible(" ".join(graph.words))


def caption(graph: AttributionGraph, *, left_out: str = "") -> list[str]:
    """The sentences below a picture: what was asked, by which convention, and how much is shown."""
    provenance = graph.provenance
    question = (
        f"{provenance.get('model', 'model')}, prompt \N{LEFT DOUBLE QUOTATION MARK}"
        f"{prompt_text(graph)}\N{RIGHT DOUBLE QUOTATION MARK}; "
        f"{provenance.get('metric', 'metric')} = {number(graph.metric_value)}."
    )
    counts = [
        plural(sum(isinstance(node, kind) for node in graph.digraph), NODE_WORDS[kind])
        for kind in (LatentNode, ErrorNode, BiasNode)
    ]
    shown = f"{', '.join(counts)}, {plural(graph.digraph.number_of_edges(), 'edge')}."
    if steps := provenance.get("pruned"):
        nodes, edges = (_shares(steps, name) for name in ("keep_influence", "keep_edges"))
        shown = shown[:-1] + (
            f", pruned from {plural(steps[0]['nodes_before'], 'node')}"
            f" to {nodes} of the influence and {edges} of the edge scores."
        )
    sentences = [question, _convention(provenance.get("settings"))]
    if measured := provenance.get("measured"):
        sentences.append(f"Measured: {_settings(measured)}.")
    return [visible(text) for text in (*sentences, shown, left_out) if text]


def _shares(steps: list[dict[str, Any]], name: str) -> str:
    """What was kept, step by step: `50%, then 99.6%`."""
    return ", then ".join(f"{100 * step[name]:g}%" for step in steps)


def _convention(settings: dict[str, Any] | None) -> str:
    """By which estimator and convention effects and edges were attributed."""
    settings = settings or {}
    effects = {name: settings.get(name, "not recorded") for name in ("downstream", "reference")}
    edges = {name: settings.get(name, "not recorded") for name in ("attention", "norms")}
    if "edge_reference" in settings:
        edges["reference"] = settings["edge_reference"]
    return (
        f"Effects: {settings.get('estimator', 'estimator not recorded')}, {_settings(effects)}. "
        f"Edges: {settings.get('edges', 'method not recorded')}, {_settings(edges)}."
    )


def _settings(settings: Any) -> str:
    if not isinstance(settings, dict):
        return str(settings)
    return ", ".join(f"{name} {value}" for name, value in settings.items())


@functools.cache
def _advance(character: str, bold: bool) -> float:
    """In em; of a character that the font lacks, a full square."""
    font = _font("DejaVuSans-Bold" if bold else "DejaVuSans")
    if not font.get_char_index(ord(character)):
        return 1.1
    return font.load_char(ord(character)).linearHoriAdvance / 65536 / 100


@functools.cache
def _font(name: str) -> FT2Font:
    font = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"))
    font.set_size(100, 72)
    return font
