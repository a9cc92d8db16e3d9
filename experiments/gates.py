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
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.gradients import check_batch_size
from attribution.record import record
from circuits import Site, SplicedModel, UserError
from circuits.active import find_active, reconstruct, write_each
from circuits.cross_layer import Carried
from circuits.hooks import SiteHook
from circuits.outputs import LAST_LOGITS
from experiments.gate_report import L0_TOLERANCE, LEAST_EXPLAINED, GateReport, GateRow

TEXTS = Path(__file__).parent / "data" / "check_texts.txt"
"""English texts of several kinds, one a line, for models that bring none of their own."""


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
    check_batch_size(batch_size, automatic=False)
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
    provenance = record(model, None, None, settings)
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
            error = target - decoded.up(
                site, own, write_each(dictionary.decoders[1:], active, len(x))
            )
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
