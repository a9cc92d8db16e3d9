"""The record of everything that an attribution's or an experiment's numbers depend on."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from typing import Any

from attribution.fingerprint import weights_of
from circuits import Prompt, SplicedModel

VERSIONS = ("gemma-circuits", "torch", "transformers", "transformer-lens")
"""Distributions whose versions are recorded."""


def record(
    model: SplicedModel,
    prompt: str | Prompt | None,
    metric: str | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Everything that the numbers depend on, JSON-able; no prompt or metric where that is None."""
    question: dict[str, Any] = {"prompt": prompt, "metric": metric}
    if prompt is not None:
        question["prompt"] = asdict(prompt) if isinstance(prompt, Prompt) else {"text": prompt}
    return {
        "model": model.name,
        **weights_of(model),
        "device": model.device.type,
        "dictionaries": {
            str(site): {"name": d.name, "average_l0": d.average_l0, "d_sae": d.d_sae}
            for site in model.sites
            for d in [model.dictionaries.summary(site)]
        },
        "dictionaries_from": model.dictionaries_from,
        **{key: value for key, value in question.items() if value is not None},
        "settings": settings,
        "versions": {**versions()},
        "seed": None,  # nothing here is random
    }


@cache
def versions() -> dict[str, str]:
    """Of everything that numbers depend on; reading them takes milliseconds."""
    return {name: version(name) for name in VERSIONS}
