"""Whether each site's two numbers pass their gates, and what it means where they do not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits import Site
from circuits.catalogue import ranges
from circuits.sites import ALL_KINDS
from experiments.records import write_table

if TYPE_CHECKING:
    from pandas import DataFrame

L0_TOLERANCE = 0.3
"""How far a mean L0 may be from the folder's number, as a share of it."""

LEAST_EXPLAINED = 0.6
"""What an autoencoder's explained variance must be above."""


@dataclass(frozen=True)
class GateRow:
    """One site's two numbers.

    Attributes:
        site: Where.
        dictionary: The dictionary's name.
        l0: Active latents a text token.
        expected_l0: The number in the dictionary's folder; `None` where it is not known.
        explained: Explained variance of what the site writes; `None` where that does not vary.
    """

    site: Site
    dictionary: str
    l0: float
    expected_l0: float | None
    explained: float | None

    @property
    def l0_passes(self) -> bool | None:
        """`None`: not known."""
        if self.expected_l0 is None:
            return None
        return abs(self.l0 - self.expected_l0) <= L0_TOLERANCE * self.expected_l0

    @property
    def explained_passes(self) -> bool | None:
        """`None`: not known."""
        return None if self.explained is None else self.explained > self.least_explained

    @property
    def least_explained(self) -> float:
        """What explained variance must be above: a transcoder need only beat the mean.

        It predicts the MLP's output instead of copying it, and how well a good one does is not
        known for all layers; a wrong hook point shows below 0.
        """
        return 0.0 if self.site.kind == "transcoder" else LEAST_EXPLAINED

    @property
    def verdict(self) -> str:
        """`passes`, `fails: ...`, or `not known` where neither gate can be asked."""
        gates = {"L0": self.l0_passes, "explained variance": self.explained_passes}
        failed = [name for name, passes in gates.items() if passes is False]
        if failed:
            return f"fails: {', '.join(failed)}"
        return "not known" if set(gates.values()) == {None} else "passes"


@dataclass(frozen=True)
class GateReport:
    """A row for each site; `print(report)` says what failed and what that means.

    Attributes:
        rows: In the order of the forward pass.
        n_texts: How many texts.
        n_tokens: How many text tokens the means are over.
        provenance: Model, dictionaries, texts, settings, versions; JSON-able.
    """

    rows: tuple[GateRow, ...]
    n_texts: int
    n_tokens: int
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[GateRow]:
        return iter(self.rows)

    def __str__(self) -> str:
        unknown = sum(None in (row.l0_passes, row.explained_passes) for row in self)
        gaps = f" ({unknown} with a number that is not known)" if unknown else ""
        over = f"over {self.n_tokens:,} tokens of {self.n_texts:,} texts"
        if self.passed:
            return f"all {len(self)} sites pass{gaps}, {over}"
        failing = f"{len(self.failures)} of {len(self)} sites fail{gaps}, {over}"
        return "\n".join([failing, *_explanations(self.rows)])

    @property
    def failures(self) -> tuple[GateRow, ...]:
        """The rows at which a gate fails."""
        return tuple(r for r in self if False in (r.l0_passes, r.explained_passes))

    @property
    def passed(self) -> bool:
        """No gate fails; what is not known does not fail."""
        return not self.failures

    def frame(self) -> DataFrame:
        """One line a site; a number that is not known is missing."""
        import pandas as pd

        return pd.DataFrame(
            {
                "site": [str(row.site) for row in self],
                "dictionary": [row.dictionary for row in self],
                "l0": [row.l0 for row in self],
                "expected_l0": [_or_nan(row.expected_l0) for row in self],
                "explained_variance": [_or_nan(row.explained) for row in self],
                "verdict": [row.verdict for row in self],
                "n_tokens": self.n_tokens,
            }
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the table to a `.json` (with the whole provenance) or `.csv` file.

        Raises:
            UserError: another suffix, or `path` cannot be written.
        """
        return write_table(
            path, self.frame(), kind="gates", provenance=self.provenance, overwrite=overwrite
        )


def _explanations(rows: Sequence[GateRow]) -> Iterator[str]:
    """A sentence for each way in which sites fail: how far off, where, and what it means."""
    badly = [r for r in rows if r.explained_passes is False and _below(r.explained, 0)]
    poorly = [r for r in rows if r.explained_passes is False and r not in badly]
    off = [r for r in rows if r.l0_passes is False]
    few = [r for r in off if _below(r.l0, r.expected_l0)]
    many = [r for r in off if r not in few]
    if badly:
        yield (
            f"explained variance below 0 at {_sites(badly)}: the reconstruction is worse than the "
            "mean. The dictionary reads another hook point (kind or layer) than it was trained on, "
            "or BOS, EOS and padding do not bypass it, or the model's weights were folded (norm "
            "gains multiplied in, outputs centred)."
        )
    if poorly:
        yield (
            f"explained variance at most {LEAST_EXPLAINED} at {_sites(poorly)}: the dictionary is "
            "of another layer or model, or the texts are unlike those it was trained on."
        )
    if many:
        yield (
            f"L0 more than {L0_TOLERANCE:.0%} above the folder's number at {_sites(many)}: "
            "thresholds are too low, the folder is named wrongly, the dictionary is of another "
            "site, or the texts are unlike those it was trained on."
        )
    if few:
        yield (
            f"L0 more than {L0_TOLERANCE:.0%} below the folder's number at {_sites(few)}: "
            "thresholds are too high, the folder is named wrongly, the dictionary is of another "
            "site, or the texts are simpler than those it was trained on."
        )


def _sites(rows: Sequence[GateRow]) -> str:
    """`attn.0-3, mlp.2`."""
    layers: dict[str, list[int]] = {}
    for row in sorted(rows, key=lambda row: ALL_KINDS.index(row.site.kind)):
        layers.setdefault(row.site.kind, []).append(row.site.layer)
    return ", ".join(
        f"{kind}.{run}" for kind, at in layers.items() for run in ranges(at).split(", ")
    )


def _below(number: float | None, bound: float | None) -> bool:
    return number is not None and bound is not None and number < bound


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else number
