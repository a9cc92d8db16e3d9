"""What is on the planted circuit, by construction: nothing here runs the model.

A latent is on it if giving it its reference value changes the answer. That depends on the
reference. With zero, it is the way that is active on the prompt, and `ask`, by which the verb's
neuron multiplies. With the corrupted prompt it is that way without `ask`, which has the same value
there, and the way of the other number: its latents are off, and switching one of them on (*off to
on*) writes the wrong verb form as well.
"""

from __future__ import annotations

from circuits import LatentNode, Site
from experiments.planted.language import NUMBERS
from experiments.planted.model import latent

METRIC = "metric"
"""Stands for what is explained, as the target of an edge."""

Edge = tuple[LatentNode, LatentNode | str]
"""A source and a target: a latent, or the metric."""


def path(number: str, last: int) -> tuple[LatentNode, ...]:
    """From the head that copies to the verb form, at the position `last` of `often`."""
    steps = (
        (Site(0, "attn"), f"copy {number}"),
        (Site(0, "resid"), f"subject {number}"),
        (Site(1, "mlp"), f"verb {number}"),
        (Site(1, "resid"), f"verb {number}"),
    )
    return tuple(LatentNode(site, latent(site, name), last) for site, name in steps)


def circuit_nodes(number: str, last: int, reference: str) -> set[LatentNode]:
    """The latents on the circuit of a prompt whose animal has this number.

    Args:
        number: Of `NUMBERS`.
        last: The last position.
        reference: `zero` or `corrupted`.
    """
    assert reference in ("zero", "corrupted"), reference
    if reference == "zero":
        return {*path(number, last), _ask(last)}
    return {node for each in NUMBERS for node in path(each, last)}


def circuit_edges(number: str, last: int, reference: str) -> set[Edge]:
    """The edges between them, and to the metric. Arguments as for `circuit_nodes`."""
    assert reference in ("zero", "corrupted"), reference
    edges: set[Edge] = set()
    for each in (number,) if reference == "zero" else NUMBERS:
        copied, subject, verb, answer = path(each, last)
        edges |= {(copied, subject), (subject, verb), (verb, answer), (answer, METRIC)}
        if reference == "zero":
            edges.add((_ask(last), verb))
    return edges


def blind_spots(number: str, last: int, downstream: str) -> set[LatentNode]:
    """What gradient x activation against the corrupted prompt cannot see, and why.

    The other number's gate is at -10, where the slope of gelu is 0: the derivative with respect to
    what would open it is 0, however much opening it does. Under `freeze` gradients also stop at
    latents that are off: the other verb form at `mlp.1` has no way through `resid.1`.
    """
    (other,) = (each for each in NUMBERS if each != number)
    copied, subject, verb, _ = path(other, last)
    return {copied, subject, verb} if downstream == "freeze" else {copied, subject}


def reaches(source: LatentNode, target: LatentNode | str, last: int) -> bool:
    """Whether a pass goes from one to the other without crossing another of the six sites."""
    if isinstance(target, str):
        return source.site == Site(1, "resid") and source.pos == last
    kind, same_layer = target.site.kind, source.site.layer == target.site.layer
    if source.site.kind == "resid":  # of the layer below
        near = source.site.layer == target.site.layer - 1
        return near and (source.pos <= target.pos if kind == "attn" else source.pos == target.pos)
    writes_to = {"attn": ("mlp", "resid"), "mlp": ("resid",)}[source.site.kind]
    return same_layer and kind in writes_to and source.pos == target.pos


def _ask(last: int) -> LatentNode:
    site = Site(0, "resid")
    return LatentNode(site, latent(site, "ask"), last)
