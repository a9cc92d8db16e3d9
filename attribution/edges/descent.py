"""Down the model from a target to the leaves that reach it, one transposed map after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor

from attribution.edges.adjoints import Adjoint, NormMap
from attribution.edges.local_pass import LayerMaps, LocalPass
from attribution.edges.path_maps import PathMaps
from attribution.edges.paths import Paths
from circuits import Site

ARRIVED = "arrived"
"""The place of the tokens past the first attention: see `attribution.edges.arrivals`."""


def descend(
    cut: LocalPass,
    site: Site,
    reads: Adjoint,
    *,
    arrived: bool = False,
    maps: PathMaps | None = None,
) -> Iterator[tuple[Site | str | None, Adjoint | Paths]]:
    """Every leaf that reaches `site`, from the top down, with the targets' gradients there.

    Args:
        cut: The pass; attention is crossed with its pattern held.
        site: Where the targets read.
        reads: Their encoder columns, alone.
        arrived: End before the first attention, where the tokens have arrived.
        maps: To go down as paths as far as that pays.
    """
    leaves = cut.leaves
    if site.kind == "embed":
        yield None, reads
        return
    grad = _enter(cut.layers[site.layer], site, reads, maps)
    for number in range(site.layer, -1, -1):
        layer = cut.layers[number]
        at_target = number == site.layer
        if not at_target and Site(number, "resid") in leaves:
            yield Site(number, "resid"), grad
            return
        if not at_target or site.kind == "resid":
            written = next((s for s in _writers(number) if s in leaves), None)
            if written is None:
                grad = grad.dense()
                grad = grad + _through_mlp(layer, grad)
            else:
                yield written, grad
                if layer.W_skip is not None:
                    grad = grad.dense()
                    grad = grad + _through_skip(layer, grad, layer.W_skip, cut.reads)
        if not at_target or site.kind != "attn":
            if arrived and number == 0:
                yield ARRIVED, grad
                return
            if Site(number, "attn") in leaves:
                grad = grad.dense()
                yield Site(number, "attn"), _to_heads(layer, grad)
            else:
                grad = _below_attention(layer, number, grad, maps)
    yield (Site(0, "embed") if Site(0, "embed") in leaves else None), grad


def attentions_below(site: Site, leaves: Collection[Site | None]) -> int:
    """How many attentions at most lie between `site` and a leaf that reaches it."""
    n = 0
    for layer in range(site.layer, -1, -1):  # down the residual stream, to where it is cut
        if site.kind == "embed" or (layer < site.layer and Site(layer, "resid") in leaves):
            break
        n += site == Site(layer, "attn") or Site(layer, "attn") not in leaves
    return n


def _writers(layer: int) -> tuple[Site, Site]:
    """The sites at which the output of a layer's MLP may be cut; never both."""
    return Site(layer, "mlp"), Site(layer, "transcoder")


def _enter(layer: LayerMaps, site: Site, grad: Adjoint, maps: PathMaps | None) -> Adjoint | Paths:
    """From what the targets read to the residual stream of their layer."""
    if site.kind == "mlp":
        return _through_mlp(layer, grad)
    if site.kind == "transcoder":
        return layer.from_transcoder(grad)
    if site.kind == "attn":
        if maps is not None:
            return Paths.from_heads(maps, site.layer, grad)
        return layer.before_attn.adjoint(layer.attention.to_input(grad))
    return grad


def _below_attention(
    layer: LayerMaps, number: int, grad: Adjoint | Paths, maps: PathMaps | None
) -> Adjoint | Paths:
    """What a layer's attention adds to the gradient, and the gradient itself."""
    if isinstance(grad, Paths) and grad.may_cross(number):
        return grad.cross(number)
    grad = grad.dense()
    if grad.first is None and maps is not None:
        return Paths.from_residual(maps, number, grad)
    return grad + layer.before_attn.adjoint(layer.attention.to_input(_to_heads(layer, grad)))


def _to_heads(layer: LayerMaps, grad: Adjoint) -> Adjoint:
    return layer.attention.to_heads(_norm(layer.after_attn, grad))


def _through_mlp(layer: LayerMaps, grad: Adjoint) -> Adjoint:
    return layer.before_mlp.adjoint(layer.mlp.adjoint(_norm(layer.after_mlp, grad)))


def _through_skip(layer: LayerMaps, grad: Adjoint, W_skip: Tensor, reads: Tensor) -> Adjoint:
    """A skip connection acts where its dictionary reads."""
    values = (grad.values * grad.here(reads[:, None])) @ W_skip.T.float()
    return layer.from_transcoder(grad.map(values))


def _norm(norm: NormMap | None, grad: Adjoint) -> Adjoint:
    return grad if norm is None else norm.adjoint(grad)
