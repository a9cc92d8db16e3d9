"""The one place where hooks enter the forward pass: what TransformerLens carries out for us."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from torch import Tensor

from circuits.errors import UserError
from circuits.freeze import LIVE, ForwardHook, Freeze
from circuits.outputs import HookPoint, Logits, Part
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.model import SplicedModel

SiteHook = Callable[[Tensor, Tensor], Tensor]
"""From what a site reads, `[batch, pos, d_in]`, and what the model writes there,
`[batch, pos, d_out]`, to what the model goes on with in the place of the latter."""

Watch = Callable[[Tensor], None]
"""Is shown a tensor as the pass goes, and keeps what it wants of it; it changes nothing."""


def site_hooks(
    model: SplicedModel, site: Site, hook: SiteHook, freeze: Freeze = LIVE
) -> list[ForwardHook]:
    """`hook` as TransformerLens' hooks: where the site writes, and before it where it reads."""
    family = model.family
    found = family.read_norm(model.bridge.original_model, site)
    if found is None:
        return [(family.hook_point(site), _as_hook(lambda x: hook(x, x)))]
    name, norm = found
    held: list[Tensor] = []

    def read(x: Tensor, hook: Any) -> None:
        held.append(x)

    def write(written: Tensor) -> Tensor:
        return hook(_enter(model, site, norm, held.pop(), freeze), written)

    return [(f"{name}.hook_in", read), (family.hook_point(site), _as_hook(write))]


def output_hooks(
    model: SplicedModel, part: Part, seen: dict[Part, Tensor], freeze: Freeze
) -> list[ForwardHook]:
    """The hooks that put into `seen` what `part` names; none for the logits themselves."""

    def keep(x: Tensor) -> None:
        seen[part] = x

    if isinstance(part, HookPoint):
        return [(part.name, as_watch(keep))]
    if isinstance(part, Logits):
        return [] if part.soft_capped else [("unembed.hook_out", as_watch(keep))]
    site = part.site
    if site.layer >= model.n_layers:
        raise UserError(f"no layer {site.layer}; {model.name} has layers 0-{model.n_layers - 1}")
    found = model.family.read_norm(model.bridge.original_model, site)
    if found is None:
        return [(model.family.hook_point(site), as_watch(lambda x: keep(x.flatten(2))))]
    name, norm = found

    def enter(x: Tensor) -> None:
        keep(_enter(model, site, norm, x, freeze))

    return [(f"{name}.hook_in", as_watch(enter))]


def as_watch(look: Watch) -> Callable[..., None]:
    """`look` as TransformerLens calls it; what it returns is not put into the pass."""

    def wrapped(x: Tensor, hook: Any) -> None:
        look(x)

    return wrapped


def as_contiguous(x: Tensor, hook: Any) -> Tensor:
    """The last positions of a batch, cut out of all, as a tensor of their own.

    On a CPU torch multiplies a slice of a batch by the weights row by row: in bfloat16 the logits
    of 64 rows take minutes where these take a fraction of a second.
    """
    return x.contiguous()


def check_hook_points(model: SplicedModel, names: Sequence[str]) -> None:
    """Refuse hook points that the model does not have; a mistyped one is a user's mistake."""
    known = model.bridge.hook_dict if names else {}
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=3) or ["blocks.0.hook_resid_post"]
            raise UserError(
                f"no hook point {name!r} in {model.name}; did you mean {', '.join(close)}?"
            )


@contextmanager
def hooked(bridge: Any, table: list[ForwardHook]):
    """Passes inside go through the hooks of `table`."""
    known = bridge.hook_dict if table else {}
    unknown = [name for name, _ in table if name not in known]
    assert not unknown, f"no hook points {unknown}"  # silent in TransformerLens 3.2
    with ExitStack() as stack:
        try:
            stack.enter_context(bridge.hooks(fwd_hooks=table))
        except ValueError as error:  # a hook point that TransformerLens passes only if asked to
            raise UserError(f"a hook point that cannot be watched: {error}") from error
        yield


@contextmanager
def attention_cache(bridge: Any, cache: Any):
    """Attention inside asks `cache` for the keys and values of positions that it is not given.

    It is handed to TransformerLens' attention itself: Hugging Face's layers name it differently
    from version to version.
    """

    def give(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**without_cache(kwargs), "past_key_values": cache}

    with ExitStack() as stack:
        for block in bridge.blocks:
            handle = block.attn.register_forward_pre_hook(give, with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def watched_layers(bridge: Any, enter: Callable[[Tensor, dict[str, Any]], None], leave: Watch):
    """Passes inside show what enters each layer and how it is called, and what leaves the last."""

    def entered(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        enter(args[0], without_cache(kwargs))

    with ExitStack() as stack:
        for block in bridge.blocks:
            handle = block.register_forward_pre_hook(entered, with_kwargs=True)
            stack.callback(handle.remove)
        handle = bridge.ln_final.register_forward_pre_hook(lambda module, args: leave(args[0]))
        stack.callback(handle.remove)
        yield


def has_hooks(bridge: Any) -> bool:
    """Whether somebody else has put hooks into the model."""
    return any(point.fwd_hooks for point in bridge.hook_dict.values())


def without_cache(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """What a layer is called with, without Hugging Face's own cache."""
    return {name: x for name, x in keywords.items() if name not in ("past_key_values", "cache")}


def _enter(model: SplicedModel, site: Site, norm: Any, x: Tensor, freeze: Freeze) -> Tensor:
    """What a site that reads at `norm` makes of the norm's input `x`."""
    if site in model.dictionaries and model.dictionaries.summary(site).reads_residual:
        return x
    return model.family.normalized(norm, x, frozen=freeze.norms)


def _as_hook(hook: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """`hook` as TransformerLens calls it; the heads of `attn` are joined and split again."""

    def wrapped(x: Tensor, hook_point: Any = None, **_: Any) -> Tensor:
        return hook(x.flatten(2)).view_as(x)  # returned, not only read: `hook_z` is a side view

    return wrapped
