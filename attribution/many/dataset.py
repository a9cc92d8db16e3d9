"""From many prompts to mean effects of nodes and edges, with intervals.

1. *Total effects* of every latent on every prompt, each prompt a file.
2. *Choice*, once for all prompts: the `max_latents` latents with the largest mean absolute effects.
3. *Direct effects* between the chosen nodes on every prompt, each prompt a file: an edge that is
   missing there is zero there, not one that was not looked at.
4. *Statistics* over prompts, from the files, one at a time.

Memory does not depend on the number of prompts, and a run that stops goes on where it was. With P
prompts, L active latents on a prompt, S sites, N chosen nodes and B replicates, phases 2 and 4 read
each file S + 2 times, take O(P (S + L log L + B (N + max_edges))) time and hold one site's latents
(`n_pos * d_sae` numbers), one prompt's arrays, the edges that were ever there (at most N²) and the
replicates, `8 B max(N, max_edges)` bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from attribution.attribute import attribute, edge_rule
from attribution.bootstrap import checked_draws
from attribution.choice import NO_LATENTS
from attribution.digest import digest
from attribution.effects import GRADIENT_X_ACTIVATION, total_effects
from attribution.gradients import check_convention
from attribution.many.choice import choose_edges, choose_latents, each
from attribution.many.pooling import (
    POSITIONS,
    Keys,
    Space,
    chosen_latents,
    edge_arrays,
    edge_row,
    effect_arrays,
    node_row,
)
from attribution.many.prompt_store import PromptStore, open_store, prompt_key
from attribution.many.statistics import statistics
from attribution.many.tables import DatasetAttribution
from attribution.metrics import (
    Metric,
    Score,
    Targets,
    check_not_flat,
    logit_diff,
    metric_name,
    total,
)
from attribution.record import record
from circuits import Prompt, Reference, Site, SplicedModel, UserError
from circuits.freeze import LIVE, Freeze
from circuits.gated import POINTS
from circuits.memory import parse_bytes
from circuits.whole_numbers import whole_number

MetricOf = Callable[[Any], Metric | Targets | Score]
"""From a prompt to its metric: `logit_diff`, or `task.metric`."""

ReferenceOf = Callable[[Any], Reference]
"""From a prompt to its baseline: `lambda prompt: corrupted_reference(model, prompt)`."""


def attribute_dataset(
    model: SplicedModel,
    prompts: Sequence[str | Prompt],
    metric: MetricOf = logit_diff,
    *,
    positions: str = "aligned",
    max_latents: int = 400,
    max_edges: int = 10_000,
    downstream: str = "recompute",
    attention: str = "frozen",
    norms: str = "frozen",
    mlp: str = "jacobian",
    points: int = POINTS,
    reference: ReferenceOf | None = None,
    memory: str | int | None = None,
    path: str | Path | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> DatasetAttribution:
    """Score the latents and edges that move the metric over many prompts.

    Intervals are of the mean over prompts, by resampling prompts (`attribution.bootstrap`). They
    are of each number alone; and as the nodes were chosen for being large on these very prompts,
    their means are a little too large: confirm on other prompts what matters.

    Args:
        model: The spliced model.
        prompts: Texts, or `Prompt`s.
        metric: From a prompt to its metric: `logit_diff`, `log_prob`, or `task.metric`.
        positions: `aligned`: position by position, for prompts that are equally long and built
            alike. `summed`: over positions, for any prompts.
        max_latents: How many latents become nodes (with `aligned` positions, each at its own
            position), by the mean over prompts of the absolute effect.
        max_edges: How many edges are reported, by the same of the edge; 0 computes none.
        downstream, attention, norms, mlp, points, memory: As in `attribute`.
        reference: From a prompt to the baseline of its effects and edges; zero by default.
        path: A folder for what was computed of each prompt. A run with the same folder and settings
            goes on where an earlier one stopped, also with other prompts, metrics, or choices of
            nodes. Metrics and references are known by their names alone: give a new folder where
            a function of the same name has changed; one without a name is refused. A temporary
            one by default.
        n_bootstrap: Replicates of the intervals.
        seed: Of the intervals.

    Raises:
        UserError: an option that does not exist, a prompt given more than once, prompts of several
            lengths with `aligned` positions, a metric without a gradient, or a folder with
            something else in it.
    """
    _check_options(positions, metric, reference, downstream, memory)
    max_latents = whole_number("max_latents", max_latents)
    max_edges = whole_number("max_edges", max_edges, 0)
    n_bootstrap, seed = checked_draws(n_bootstrap, seed)
    freeze = Freeze.of(attention=attention, norms=norms, mlp=mlp, points=points)
    n_pos = _common_length(model, prompts, positions)
    if path is not None:
        _check_named(metric(prompts[0]))
    how = {"downstream": downstream, "attention": attention, "norms": norms, "mlp": mlp}
    run = _Run(
        model=model,
        prompts=prompts,
        metric=metric,
        reference=reference or (lambda prompt: None),
        space=Space(_d_sae(model), n_pos, _name(metric)),
        freeze=LIVE if downstream == "recompute" else freeze,
        options={**how, "points": points, "memory": memory},
    )
    against = _reference_name(reference, prompts[0])
    settings = {
        "estimator": GRADIENT_X_ACTIVATION,
        **how,
        "reference": against,
        "edges": edge_rule(mlp, points),
        "edge_reference": against,
    }
    told = record(model, None, _name(metric), settings)
    bootstrap = {"n_bootstrap": n_bootstrap, "seed": seed}
    with open_store(path, {} if path is None else _dependencies(told, reference)) as store:
        names = score_nodes(run, store)
        keys = choose_latents(run.space, store, names, max_latents)
        rows = (node_row(keys, arrays) for arrays in each(store, names, "nodes"))
        of_nodes = statistics(rows, len(names), len(keys.nodes), **bootstrap)
        edge_names = score_edges(run, store, keys, names) if max_edges else []
        codes = choose_edges(store, edge_names, len(keys.nodes), max_edges)
        rows = (edge_row(codes, arrays) for arrays in each(store, edge_names, "edges"))
        of_edges = statistics(rows, len(edge_names), len(codes), **bootstrap)
    chosen = {"positions": positions, "max_latents": max_latents, "max_edges": max_edges}
    return DatasetAttribution(
        positions=positions,
        n_prompts=len(prompts),
        nodes=keys.nodes,
        node_statistics=of_nodes,
        edges=np.stack([codes % len(keys.nodes), codes // len(keys.nodes)], axis=1),
        edge_statistics=of_edges,
        provenance={
            **told,
            "prompts": {"n": len(prompts), "digest": digest(names)},
            "settings": {**settings, **chosen, "n_bootstrap": n_bootstrap},
            "seed": seed,
        },
    )


@dataclass(frozen=True)
class _Run:
    """What every prompt is attributed with; `options` are those of `attribute`."""

    model: SplicedModel
    prompts: Sequence[str | Prompt]
    metric: MetricOf
    reference: Callable[[Any], Reference | None]
    space: Space
    freeze: Freeze
    options: dict[str, Any]


def score_nodes(run: _Run, store: PromptStore) -> list[str]:
    """Phase 1: the name in `store` of each prompt's total effects, computed where missing."""
    names = []
    for prompt in tqdm(run.prompts, "effects", unit="prompt", disable=None, delay=1):
        metric = _metric(run, prompt)
        name = f"effects/{prompt_key(prompt, metric_name(metric))}"
        names.append(name)
        if name not in store:
            effects = total_effects(
                run.model,
                prompt,
                metric,
                downstream=run.options["downstream"],
                reference=run.reference(prompt),
                freeze=run.freeze,
            )
            store.write(name, effect_arrays(effects))
    return names


def score_edges(run: _Run, store: PromptStore, keys: Keys, names: Sequence[str]) -> list[str]:
    """Phase 3: the name in `store` of each prompt's edges, computed where missing."""
    folder = f"edges-{digest([str(node) for node in keys.nodes])}"
    edge_names = [f"{folder}/{name.removeprefix('effects/')}" for name in names]
    places = zip(run.prompts, names, edge_names, strict=True)
    for prompt, name, edge_name in tqdm(
        places, "edges", total=len(names), unit="prompt", disable=None, delay=1
    ):
        if edge_name not in store:
            attribution = attribute(
                run.model,
                prompt,
                _metric(run, prompt),
                latents=chosen_latents(keys, store.read(name)) or NO_LATENTS,
                reference=run.reference(prompt),
                **run.options,
            )
            store.write(edge_name, edge_arrays(keys, attribution))
    return edge_names


def _metric(run: _Run, prompt: str | Prompt) -> Metric | Score:
    """The metric of one prompt; of several targets, their weighted sum."""
    metric = run.metric(prompt)
    check_not_flat(metric)
    return total(metric) if isinstance(metric, Targets) else metric


def _common_length(
    model: SplicedModel, prompts: Sequence[str | Prompt], positions: str
) -> int | None:
    """How many positions `aligned` prompts have; None where positions are summed over."""
    if isinstance(prompts, str | Prompt) or not isinstance(prompts, Sequence):
        raise UserError(f"give a list of prompts; got {type(prompts).__name__}")
    if not prompts:
        raise UserError("no prompts given; give at least one")
    twice = next((prompt for prompt, n in Counter(map(repr, prompts)).items() if n > 1), None)
    if twice is not None:
        raise UserError(
            f"{twice} is given more than once, which makes intervals too narrow; "
            "give each prompt once: list(dict.fromkeys(prompts))"
        )
    lengths = sorted({model.tokens(prompt).shape[1] for prompt in prompts})
    if positions == "summed":
        return None
    if len(lengths) > 1:
        raise UserError(
            f"prompts of {', '.join(map(str, lengths))} tokens have no positions in common; give "
            'prompts of one length, or positions="summed"'
        )
    return lengths[0]


def _check_options(
    positions: str, metric: Any, reference: Any, downstream: str, memory: str | int | None
) -> None:
    """Refuse what cannot be meant, before anything is computed or written."""
    check_convention(downstream)
    if memory is not None:
        parse_bytes(memory)
    if positions not in POSITIONS:
        raise UserError(f"positions={positions!r}; choose {' or '.join(POSITIONS)}")
    if isinstance(metric, Metric | Targets) or not callable(metric):
        raise UserError(
            f"metric={metric!r}; give a function from a prompt to its metric, such as logit_diff"
        )
    if reference is not None and not callable(reference):
        raise UserError(
            f"reference={reference!r}; give a function from a prompt to its reference, such as "
            "lambda prompt: corrupted_reference(model, prompt)"
        )


def _reference_name(reference: ReferenceOf | None, prompt: str | Prompt) -> str:
    if reference is None:
        return "zero"
    made = reference(prompt)
    if not isinstance(made, Reference):
        raise UserError(f"reference={_name(reference)} gave {made!r}; it has to give a Reference")
    return made.name


def _dependencies(told: dict[str, Any], reference: ReferenceOf | None) -> dict[str, Any]:
    """What all numbers in a store depend on, but for the prompt and its metric."""
    return {
        **{key: told[key] for key in ("model", "dtype", "dictionaries", "weights")},
        **told["settings"],
        "reference function": None if reference is None else _name(reference),
    }


def _d_sae(model: SplicedModel) -> dict[Site, int]:
    return {site: model.dictionaries.summary(site).d_sae for site in model.sites}


def _check_named(metric: Metric | Targets | Score) -> None:
    """Refuse a function that a folder cannot tell from others."""
    if callable(metric) and getattr(metric, "__name__", "<lambda>") == "<lambda>":
        raise UserError(
            f"path= tells metrics apart by their names, and {metric!r} has none; "
            "write it as a function with def and a name of its own"
        )


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
