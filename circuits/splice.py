"""Dictionaries that fit a model, put into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.families import family_of
from circuits.loading.models import model_config
from circuits.loading.store import DictionaryStore
from circuits.model import SplicedModel
from circuits.sites import Site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def splice(
    bridge: TransformerBridge,
    dictionaries: Mapping[Site, Dictionary],
    *,
    name: str = "model",
    example_texts: Sequence[str] = (),
) -> SplicedModel:
    """Put `dictionaries` into the model; its output stays what it was, bit for bit.

    Raises:
        UserError: a site the model does not have, a dictionary of another width than the model's
            activation there, both an autoencoder and a transcoder for one MLP, or no dictionaries.
    """
    config = model_config(bridge)
    widths = family_of(bridge.original_model).widths(config)
    if not dictionaries:
        raise UserError("no dictionaries to splice in; choose at least one site")
    device = next(bridge.original_model.parameters()).device
    store = DictionaryStore.of(dictionaries, device)
    for site in store:
        if site.kind == "transcoder" and Site(site.layer, "mlp") in store:
            raise UserError(
                f"dictionaries at both {site} and mlp.{site.layer}, which write the same place; "
                "leave one of the two out"
            )
        dictionary = store.summary(site)
        if site.layer >= config.num_hidden_layers:
            raise UserError(
                f"no layer {site.layer} for the dictionary at {site}; "
                f"{name} has layers 0-{config.num_hidden_layers - 1}"
            )
        width = widths[site.kind]
        if (dictionary.d_in, dictionary.d_out) != (width, width):
            raise UserError(
                f"the dictionary at {site} reads {dictionary.d_in} and writes {dictionary.d_out} "
                f"numbers a position; {name} has {width} there"
            )
        _check_later(store, site)
    return SplicedModel(name, bridge, store, tuple(example_texts))


def _check_later(store: DictionaryStore, site: Site) -> None:
    """Refuse what only a transcoder can have elsewhere, and one that writes where there is none."""
    summary = store.summary(site)
    if site.kind != "transcoder" and (summary.n_later or summary.reads_residual):
        raise UserError(
            f"the dictionary at {site} has what only transcoders have (later decoders, or reading "
            f"the residual stream); splice it in at transcoder.{site.layer}"
        )
    for there in (Site(site.layer + n, site.kind) for n in range(1, summary.n_later + 1)):
        if there not in store:
            raise UserError(
                f"the cross-layer transcoder at {site} also writes to {there}, which has no "
                "dictionary; splice in those of all the layers that it writes to"
            )
