"""Do the dictionaries fit the model? The two numbers to look at before anything else.

At every site, over the text tokens of a few texts (no BOS, EOS or padding):

    L0 = mean number of active latents a token      within 30 % of the dictionary's folder's number
    EV = 1 - sum |x - x_hat|^2 / sum |x - mean|^2   above 0.6 (a transcoder's: above 0)

where `x` is what the site writes.

1. Texts go through the model in batches, each in one pass.
2. A site's hook encodes and decodes the batch while the pass is there: one dictionary and one
   activation at a time.
3. Sums are merged batch by batch (Chan et al.'s update of a variance), so memory does not grow
   with the number of texts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.attribute import record
from attribution.gradients import check_batch_size
from circuits import Site, SplicedModel, UserError
from circuits.active import find_active, reconstruct, write_later
from circuits.catalogue import ranges
from circuits.cross_layer import Carried
from circuits.hooks import SiteHook
from circuits.outputs import LAST_LOGITS
from circuits.sites import ALL_KINDS
from experiments.records import write_table

if TYPE_CHECKING:
    from pandas import DataFrame

L0_TOLERANCE = 0.3
"""How far a mean L0 may be from the folder's number, as a share of it."""

LEAST_EXPLAINED = 0.6
"""What an autoencoder's explained variance must be above."""

TEXTS = Path(__file__).parent / "data" / "check_texts.txt"
"""English texts of several kinds, one a line, for models that bring none of their own."""


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


def check_dictionaries(
    model: SplicedModel, texts: Sequence[str] | None = None, *, batch_size: int = 8
) -> GateReport:
    """Measure L0 and explained variance at every site of `model`, and judge them.

    Args:
        model: As `load` or `splice` gives it.
        texts: What to measure on; `model.example_texts` by default, and where there are none,
            English texts that ship with the project. A few thousand tokens are enough.
        batch_size: Texts of one forward pass; lower it to save memory.

    Raises:
        UserError: no texts, or one that is empty, too long or has words the model does not know.
    """
    check_batch_size(batch_size)
    advice = "" if texts is not None else "; give texts of its own (--text)"
    texts = default_texts(model) if texts is None else _as_list(texts)
    batches = _batches(model, texts, batch_size, advice)
    sums = {site: _Sums() for site in model.sites}
    n_steps = len(batches) * len(sums)
    with tqdm(total=n_steps, desc="checking", unit="site", disable=None, delay=1) as bar:
        for batch in batches:
            _measure(model, batch, sums, bar)
    n_tokens = sums[model.sites[0]].n
    if not n_tokens:
        raise UserError("the texts hold no text tokens, only BOS, EOS or padding; give others")
    rows = tuple(_row(model, site, sums[site]) for site in model.sites)
    settings = {
        "texts": len(texts),
        "texts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "tokens": n_tokens,
        "l0_tolerance": L0_TOLERANCE,
        "least_explained_variance": LEAST_EXPLAINED,
    }
    provenance = record(model, "", "", settings)
    del provenance["prompt"], provenance["metric"]  # of a question; here there is none
    return GateReport(rows, len(texts), n_tokens, provenance)


def default_texts(model: SplicedModel) -> list[str]:
    """The texts that `model` brings, or those that ship with the project."""
    return list(model.example_texts) or TEXTS.read_text(encoding="utf-8").splitlines()


class _Sums:
    """What has been seen of one site: a count, two sums, and mean and spread of `x`."""

    def __init__(self) -> None:
        self.n = 0
        self.n_active = 0
        self.squared_error = 0.0
        self.spread = 0.0  # sum |x - mean|^2
        self.mean: Tensor | float = 0.0  # [d], float64 on the CPU

    def add(self, x: Tensor, error: Tensor, n_active: int) -> None:
        """A batch `x [n, d]` of what the site writes and its error, in float32 or wider."""
        n, rough = len(x), x.mean(0)
        rest = x - rough
        shift = rest.mean(0)  # what rounding left of the mean
        within = (rest.square().sum() - n * shift.square().sum()).item()
        mean = rough.cpu().double() + shift.cpu().double()
        apart = (mean - self.mean).square().sum().item()
        share = n / (self.n + n)
        self.spread += within + apart * self.n * share
        self.mean = self.mean + (mean - self.mean) * share
        self.n += n
        self.n_active += n_active
        self.squared_error += error.square().sum().item()


@torch.no_grad()
def _measure(model: SplicedModel, ids: Tensor, sums: Mapping[Site, _Sums], bar: tqdm) -> None:
    """One pass of `ids [batch, pos]`, in which each site's sums grow."""
    reads = model.reads(ids)
    wide = torch.promote_types(model.dtype, torch.float32)
    decoded = Carried()

    def look(site: Site) -> SiteHook:
        def hook(read: Tensor, written: Tensor) -> Tensor:
            dictionary = model.dictionaries[site]
            x, target = read[reads], written[reads].to(wide)  # [text tokens, d]
            everywhere = reads.new_ones(len(x))
            active = find_active(dictionary, x, everywhere)
            own = reconstruct(dictionary, x, everywhere, active)
            error = target - decoded.up(site, own, write_later(dictionary, active, len(x)))
            sums[site].add(target, error, len(active.pos))
            bar.update()
            return written

        return hook

    if reads.any():  # a text may be the end-of-text token alone
        model.forward(ids, {site: look(site) for site in sums}, output=LAST_LOGITS)


def _row(model: SplicedModel, site: Site, sums: _Sums) -> GateRow:
    summary = model.dictionaries.summary(site)
    explained = 1 - sums.squared_error / sums.spread if sums.spread > 0 else None
    return GateRow(site, summary.name, sums.n_active / sums.n, summary.average_l0, explained)


def _batches(
    model: SplicedModel, texts: Sequence[str], batch_size: int, advice: str
) -> list[Tensor]:
    """Token ids `[batch, pos]`, texts of one length together: little padding."""
    if not texts:
        raise UserError("no texts to check the dictionaries on; give at least one")
    rows = []
    for number, text in enumerate(texts, 1):
        try:
            rows.append(model.vocabulary.encode(text))
        except UserError as error:
            where = f"text {number} of {len(texts)}"
            raise UserError(f"{where} cannot be read: {error}{advice}") from error
    rows.sort(key=len)
    chunks = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return [_padded(chunk, model) for chunk in chunks]


def _padded(rows: list[list[int]], model: SplicedModel) -> Tensor:
    longest, pad = max(map(len, rows)), model.vocabulary.pad_id
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=model.device)


def _as_list(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise UserError(f"texts are strings; got {type(wrong).__name__}")
    return list(texts)


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
