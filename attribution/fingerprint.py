"""What tells a model and its dictionaries from others of the same name and shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from circuits import SplicedModel, UserError

SAMPLES = 32
"""Values of each axis of an array that its fingerprint is made of."""

_OF_DICTIONARIES: WeakKeyDictionary[SplicedModel, str] = WeakKeyDictionary()


def fingerprint(model: SplicedModel) -> str:
    """From a grid of values of every array: weights that were trained differ, a single edited one
    may not.

    The model's own weights are looked at each time. Its dictionaries are looked at once, as those
    that pass through memory are read from the disk for it.
    """
    if model not in _OF_DICTIONARIES:
        dictionaries = (model.dictionaries[site] for site in model.sites)
        _OF_DICTIONARIES[model] = _digest(a for d in dictionaries for a in d.arrays.values())
    # without names: versions of transformer-lens differ in them
    own = _digest(model.bridge.original_model.parameters())
    return hashlib.sha256(f"{own} {_OF_DICTIONARIES[model]}".encode()).hexdigest()[:32]


def weights_of(model: SplicedModel) -> dict[str, str]:
    """The part of a record that says which weights its numbers are of."""
    return {"dtype": str(model.dtype).removeprefix("torch."), "weights": fingerprint(model)}


def differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of different weights.

    Nobody knows of different dtypes, in which the same weights are rounded differently, nor of
    records without fingerprints, as earlier versions made them.
    """
    known = all(record.get("weights") for record in (one, other))
    return known and one.get("dtype") == other.get("dtype") and one["weights"] != other["weights"]


def check_weights(model: SplicedModel, record: Mapping[str, Any], what: object) -> None:
    """Refuse to set numbers of `model` beside those that `record` is of.

    Args:
        what: Was made, for the message.

    Raises:
        UserError: the record is of other weights.
    """
    if differ(record, weights_of(model)):
        raise UserError(
            f"{what} was made with other weights than {model.name} and its dictionaries have now; "
            "make it again, or load the model that it was made with"
        )


def _digest(arrays: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{tuple(array.shape)}".encode() + _sample(array))
    return found.hexdigest()


def _sample(array: Tensor) -> bytes:
    grid = tuple(slice(None, None, -(-n // SAMPLES) or 1) for n in array.shape)
    return array.detach()[grid].float().cpu().numpy().tobytes()
