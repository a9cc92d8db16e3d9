"""What a study found, in one page: HTML with its plots inside, and Markdown."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from circuits.files import write_atomically
from experiments.records import svg_text, write_table
from experiments.study.declaration import Study

if TYPE_CHECKING:
    from pandas import DataFrame

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True, eq=False, repr=False)
class StudyReport:
    """All cells of a study.

    Attributes:
        study: Its declaration.
        cells: What `run_study` wrote of each, in the order of the declaration.
    """

    study: Study
    cells: tuple[Mapping[str, Any], ...]

    def __repr__(self) -> str:
        return f"StudyReport({self.study.name}: {len(self.cells)} cells)"

    def frame(self) -> DataFrame:
        """One line a cell and a size: the circuit's F, its complement's, and random circuits'."""
        import pandas as pd

        rows = [{**cell["cell"], **row} for cell in self.cells for row in cell["curve"]]
        return pd.DataFrame(rows)

    def summary(self) -> DataFrame:
        """One line a task, ablation and method, over seeds: F by size, and areas.

        `area`: mean F over the logarithm of the size; `excess`: less that of matched random
        circuits. Best area of a task and ablation first.
        """
        import pandas as pd

        frame = self.frame()
        keys = ["task", "ablation", "method"]
        by_size = frame.pivot_table(index=keys, columns="size", values="faithfulness")
        by_size.columns = [f"F({size})" for size in by_size.columns]
        areas = pd.DataFrame(
            [
                {**cell["cell"], "area": cell["area"], "excess": cell["excess_area"]}
                for cell in self.cells
            ]
        )
        means = areas.groupby(keys).agg(
            area=("area", "mean"), excess=("excess", "mean"), seeds=("seed", "count")
        )
        table = by_size.join(means).reset_index()
        return table.sort_values(
            ["task", "ablation", "area"], ascending=[True, True, False], ignore_index=True
        )

    def figure(self, task: str, ablation: str) -> Figure:
        """F by size of every method on one task; seeds are thin lines, random circuits a band."""
        frame: Any = self.frame()
        frame = frame[(frame["task"] == task) & (frame["ablation"] == ablation)]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for level in (0, 1):
            axes.axhline(level, color="0.85", zorder=0)
        band = frame.groupby("size")[["random_low", "random_high"]].mean()
        if self.study.n_random:
            axes.fill_between(
                band.index, band["random_low"], band["random_high"], color="0.88", linewidth=0,
                label="matched random circuits, 5-95 %",
            )  # fmt: skip
        for number, method in enumerate(self.study.methods):
            colour = COLOURS[number % len(COLOURS)]
            own = frame[frame["method"] == method]
            for _, one in own.groupby("seed"):
                axes.plot(one["size"], one["faithfulness"], color=colour, lw=0.6, alpha=0.5)
            mean = own.groupby("size")["faithfulness"].mean()
            axes.plot(mean.index, mean, "o-", color=colour, label=method)
        axes.set_xscale("log")
        axes.set_xlabel("nodes kept")
        axes.set_ylabel("F(C)")
        axes.set_title(
            f"{task}: others by {ablation}, errors {self.study.errors}, "
            f"downstream {self.study.downstream}",
            fontsize=10,
            parse_math=False,
        )
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
        return figure

    def write(self, folder: str | Path) -> Path:
        """Write `report.html`, `report.md`, `table.csv` and the plots; an older report is replaced.

        Returns:
            The path of `report.html`.
        """
        folder = Path(folder)
        write_table(folder / "table.csv", self.frame(), kind="study", provenance={}, overwrite=True)
        plots = {}
        for task in self.study.tasks:
            for ablation in self.study.ablations:
                safe = "".join(letter if letter.isalnum() else "-" for letter in task)
                plots[f"{task}, {ablation}"] = (
                    f"{safe}_{ablation}.svg".replace(" ", "-"),
                    svg_text(self.figure(task, ablation)),
                )
        for name, svg in plots.values():
            write_atomically(folder / name, svg, overwrite=True)
        write_atomically(folder / "report.md", self._markdown(plots), overwrite=True)
        return write_atomically(folder / "report.html", self._html(plots), overwrite=True)

    def _markdown(self, plots: Mapping[str, tuple[str, str]]) -> str:
        summary = self.summary()
        lines = [f"# {self.study.name}", "", NOTE, ""]
        lines += [f"- {key}: {value}" for key, value in self._settings().items()]
        lines += ["", *markdown_table(summary), ""]
        for title, (name, _) in plots.items():
            lines += [f"## {title}", "", f"![F by size]({name})", ""]
        return "\n".join(lines)

    def _html(self, plots: Mapping[str, tuple[str, str]]) -> str:
        from jinja2 import Environment
        from markupsafe import Markup

        table = io.StringIO()
        self.summary().to_html(table, index=False, float_format=lambda x: f"{x:.3f}", border=0)
        page = Environment(autoescape=True).from_string(PAGE)
        return page.render(
            name=self.study.name,
            note=NOTE,
            settings=self._settings(),
            table=Markup(table.getvalue()),
            plots={title: b64encode(svg.encode()).decode() for title, (_, svg) in plots.items()},
        )

    def _settings(self) -> dict[str, str]:
        told = {**self.study.settings(), "seeds": list(self.study.seeds)}
        provenance = self.cells[0]["provenance"]
        told |= {"versions": ", ".join(f"{k} {v}" for k, v in provenance["versions"].items())}
        told |= {"dtype": provenance["dtype"], "device": provenance["device"]}
        for task in self.study.tasks:  # seeds may draw pairs of which others do not fit
            pairs = [cell["pairs"] for cell in self.cells if cell["cell"]["task"] == task]
            told[f"pairs of {task}"] = " / ".join(dict.fromkeys(pairs))
        return {key.replace("_", " "): _text(value) for key, value in told.items() if value}


NOTE = (
    "F(C) = (m(C) - m(empty)) / (m(M) - m(empty)) on held-out prompts: the share of the metric "
    "that a circuit of the first nodes of a ranking keeps. Area: mean F over the logarithm of the "
    "size; excess: less that of random circuits with as many nodes at every site. A ranking says "
    "something where it is well above random circuits and its rivals at the same size."
)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: 13px; }
dd { margin: 0; } dt { color: #666; } figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
</style></head><body>
<h1>{{ name }}</h1>
<p>{{ note }}</p>
<div class="wide">{{ table }}</div>
{% for title, svg in plots.items() %}<figure><figcaption>{{ title }}</figcaption>
<img alt="F by size: {{ title }}" src="data:image/svg+xml;base64,{{ svg }}"></figure>
{% endfor %}
<h2>Settings</h2>
<dl>{% for key, value in settings.items() %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</body></html>
"""


def markdown_table(frame: DataFrame) -> list[str]:
    """A table's lines; numbers with three decimals."""
    head = [str(column) for column in frame.columns]
    rows = [[_text(value) for value in row] for row in frame.to_numpy().tolist()]
    numeric = [frame[column].dtype.kind in "fiu" for column in frame.columns]
    rule = ["---:" if number else "---" for number in numeric]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
