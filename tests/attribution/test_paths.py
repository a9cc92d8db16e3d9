"""Sums over paths through heads are the gradients they stand for, and give the same edges."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attribution.edges import path_maps
from attribution.edges.adjoints import Adjoint
from attribution.edges.direct import Stretches
from attribution.edges.local_pass import local_pass
from attribution.edges.path_maps import HeldAttention, PathMaps
from attribution.edges.paths import Paths
from attribution.edges.side_by_side import side_by_side
from attribution.metrics import bind
from circuits.freeze import Freeze
from tests.attribution.random_shapes import (
    METRIC,
    build,
    close,
    crossed,
    every_latent,
    few,
    shapes,
)

D_MODEL = 5


@dataclass(frozen=True)
class Stack:
    """Layers of attention, and targets above them."""

    seed: int
    n_layers: int
    n_kv: int
    group: int
    d_head: int
    window: int
    counts: tuple[int, ...]
    """Targets at each position."""


stacks = st.builds(
    Stack,
    seed=st.integers(0, 10**6),
    n_layers=st.integers(1, 5),
    n_kv=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    d_head=st.sampled_from([1, 3]),
    window=st.sampled_from([2, 30]),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any).map(tuple),
)


def attention(stack):
    """Every layer, random; every other one has a window."""
    n_pos, n_heads = len(stack.counts), stack.n_kv * stack.group
    layers = []
    for number in range(stack.n_layers):
        window = stack.window if number % 2 else n_pos
        seen = torch.ones(n_pos, n_pos).tril().triu(1 - window)
        pattern, scale = torch.rand(n_heads, n_pos, n_pos) * seen, torch.rand(n_pos, 1) + 0.5
        layers.append(
            HeldAttention(
                pattern=pattern * scale,
                of_heads=pattern,
                W_O=torch.randn(D_MODEL, n_heads * stack.d_head),
                W_V=torch.randn(stack.n_kv * stack.d_head, D_MODEL),
                first_key=seen.argmax(-1),
            )
        )
    return layers


def by_definition(layer, pattern, heads):
    """What the heads' gradients `[pos, k, head * d_head]` bring below, head by head, in float64."""
    n_heads, d_head = len(pattern), heads.shape[-1] // len(pattern)
    below = 0
    for head in range(n_heads):
        shared = head * len(layer.W_V) // (n_heads * d_head) * d_head
        value = layer.W_V[shared : shared + d_head].double()
        mixed = torch.einsum(
            "qp,qkd->pkd", pattern[head].double(), heads[..., head * d_head :][..., :d_head]
        )
        below = below + mixed @ value
    return below


@few
@example(Stack(1, 5, 2, 2, 1, 30, (3,) * 12), True, 5)  # paths of two layers, then positions
@example(Stack(2, 5, 1, 3, 3, 2, (0, 4, 0, 0, 9, 9, 9, 9, 9)), False, 5)
@given(stack=stacks, reads_heads=st.booleans(), depth=st.integers(1, 5))
def test_paths_are_the_gradients_they_stand_for(stack, reads_heads, depth):
    """Layer by layer, against the definition of attention with its patterns held."""
    torch.manual_seed(stack.seed)
    layers = attention(stack)
    maps = PathMaps.joined(layers, min(depth, stack.n_layers))
    pos = torch.repeat_interleave(torch.tensor(stack.counts))
    n_pos, k = len(stack.counts), len(pos)
    top = stack.n_layers - 1
    width = layers[0].W_O.shape[1] if reads_heads else D_MODEL
    targets = Adjoint(torch.randn(k, width), pos)
    start = torch.zeros(n_pos, k, width, dtype=torch.double)
    start[pos, torch.arange(k)] = targets.values.double()
    if reads_heads:
        paths = Paths.from_heads(maps, top, targets)
        expected = by_definition(layers[top], layers[top].of_heads, start)
    else:
        paths = Paths.from_residual(maps, top, targets)
        heads = start @ to_heads(layers[top])
        expected = start + by_definition(layers[top], layers[top].pattern, heads)
    check(paths, expected)
    for number in range(top - 1, max(top - maps.depth, -1), -1):
        paths = paths.cross(number)
        heads = expected @ to_heads(layers[number])
        expected = expected + by_definition(layers[number], layers[number].pattern, heads)
        check(paths, expected)


def to_heads(layer):
    return layer.W_O.double()


def check(paths, expected):
    dense = paths.dense()
    assert not expected[: dense.first].any()
    found = dense.values.double()
    torch.testing.assert_close(
        found, expected[dense.first : dense.first + len(found)], rtol=0,
        atol=1e-5 * expected.abs().max().item(),
    )  # fmt: skip
    last = dense.first + len(found)
    assert not expected[last:].any()


STACKED = replace(crossed(5, ("transcoder",), residual=False), cross=False, n_tokens=10, d_head=6)


@settings(few, max_examples=6)
@example(replace(STACKED, skip=False))
@example(replace(STACKED, n_kv=1, group=3, window=5))
@example(replace(STACKED, skip=False, n_kv=1, group=3, residual=True))
@given(shape=shapes())
def test_edges_by_paths_are_those_by_gradients(folders, shape):
    """Whatever lies between: other sites, skip connections, MLPs, too many layers for paths."""
    model, text = build(shape, folders())
    ids = model.tokens(text)
    table = every_latent(model, ids)
    cut = local_pass(model, ids, [bind(METRIC, model)], Freeze(attention=True, norms=True))
    edges = []
    for enough in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(path_maps, "ENOUGH", enough)
            patch.setattr(path_maps, "ENOUGH_CROSSED", 0)
            assert (Stretches.of(model, table, cut, 2**28).maps is None) == bool(enough)
            edges.append(Stretches.of(model, table, cut).edges().toarray())
    close(*edges, rel=1e-5)


def test_paths_are_kept_while_they_are_fewer_than_positions():
    """Of four heads, two layers of four and twenty; at the first position none is fewer."""
    stack = Stack(1, 4, 2, 2, 2, 30, (40,) * 16)
    maps = PathMaps.joined(attention(stack), 4)
    for pos, n_terms in ((0, 0), (15, 2)):
        targets = Adjoint(torch.randn(40, D_MODEL), torch.full((40,), pos))
        paths = Paths.from_residual(maps, 3, targets).cross(2).cross(1)
        assert len(paths.terms) == n_terms


def test_jobs_side_by_side_give_their_results_in_order():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        seen = list(side_by_side(lambda i: (i, torch.get_num_threads()), range(20), 3))
        assert seen == [(i, 1) for i in range(20)]

        def fail(i):
            if i == 7:
                raise ValueError("the seventh")
            return i

        results = side_by_side(fail, range(20), 3)
        assert [next(results) for _ in range(7)] == list(range(7))
        with pytest.raises(ValueError, match="the seventh"):
            next(results)
        assert torch.get_num_threads() == 3
        assert list(side_by_side(lambda _: torch.get_num_threads(), range(2), 1)) == [3, 3]
    finally:
        torch.set_num_threads(before)


def test_threads_do_not_change_edges(model):
    ids = model.tokens("w1 w5 w9 w2 w7")
    table = every_latent(model, ids)
    cut = local_pass(model, ids, [bind(METRIC, model)], Freeze(attention=True, norms=True))
    before = torch.get_num_threads()
    edges = []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            edges.append(Stretches.of(model, table, cut, 100_000).edges().toarray())
    finally:
        torch.set_num_threads(before)
    close(*edges, rel=1e-6)
