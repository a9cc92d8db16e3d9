"""Many changes in batches are the same changes one by one; no pass is larger than was asked for."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attribution import latent, logit_diff
from attribution.metrics import BoundMetric, bind
from circuits import LatentNode, Logits, Site, UserError, set_to, splice
from circuits.formula import DOWNSTREAM
from circuits.interventions import edits
from experiments.measure import measure
from experiments.rows import pack
from tests.random_gemma import TEXT, chosen_dictionaries

METRIC = logit_diff("w3", "w4")


def rows_of(model):
    """Each spliced site at each position but BOS, one latent each; and some together."""
    n_pos = model.tokens(TEXT).shape[1]
    nodes = [LatentNode(site, 7, pos) for site in model.sites for pos in range(1, n_pos)]
    changes = [set_to(node, 2.0) for node in nodes]
    return [*([change] for change in changes), [], changes[::7], changes[5:60:11]]


@pytest.fixture(scope="module")
def one_by_one(model):
    """The metric of the clean pass and under each of `rows_of`, in passes of their own."""

    @cache
    def measured(downstream):
        rows = [[], *rows_of(model)]
        logits = [model(TEXT, row, downstream=downstream)[:, -1:] for row in rows]
        return bind(METRIC, model)(torch.cat(logits))

    return measured


@pytest.mark.parametrize("batch_size", [None, 1, 7])
@pytest.mark.parametrize("downstream", DOWNSTREAM)
def test_rows_in_batches_are_rows_one_by_one(model, one_by_one, downstream, batch_size):
    ids, score, rows = model.tokens(TEXT), bind(METRIC, model), rows_of(model)
    clean, values = measure(model, ids, score, rows, downstream=downstream, batch_size=batch_size)
    alone = one_by_one(downstream)
    assert clean == pytest.approx(alone[0].item(), abs=1e-5)
    torch.testing.assert_close(values, alone[1:], rtol=0, atol=3e-5)
    assert (values - clean).abs().max() > 0.1  # not about nothing


@pytest.mark.parametrize(
    ("kinds", "metric"),
    [(["attn", "mlp"], latent(LatentNode(Site(2, "mlp"), 3, 5))), (["cross"], METRIC)],
    ids=["a latent as metric", "cross-layer transcoders"],
)
def test_what_cannot_be_resumed_takes_whole_passes(bridge, kinds, metric):
    model = splice(bridge, chosen_dictionaries(kinds))
    ids, score, rows = model.tokens(TEXT), bind(metric, model), rows_of(model)
    clean, values = measure(model, ids, score, rows, batch_size=9)
    for row, value in [([], clean), *zip(rows[::5], values[::5], strict=True)]:
        alone = score(model.run(ids, edits(model, ids, [row]), output=score.output))
        assert float(value) == pytest.approx(alone.item(), abs=3e-5)


@pytest.mark.parametrize("kinds", [["attn", "mlp"], ["cross"]], ids=["resumed", "whole"])
def test_an_unknown_convention_is_refused(bridge, kinds):
    model = splice(bridge, chosen_dictionaries(kinds))
    with pytest.raises(UserError, match="downstream='nonsense'; choose recompute, freeze, drop"):
        measure(
            model, model.tokens(TEXT), bind(METRIC, model), rows_of(model), downstream="nonsense"
        )


def test_inside_foreign_hooks_the_pass_is_what_they_make_of_it(model):
    """They may count positions and layers: so passes are whole there."""
    ids, score, rows = model.tokens(TEXT), bind(METRIC, model), rows_of(model)[:40]

    def third_is_zero(x, hook):
        return x.index_fill(1, torch.tensor([3]), 0)

    with model.bridge.hooks(fwd_hooks=[("blocks.0.hook_attn_out", third_is_zero)]):
        _, values = measure(model, ids, score, rows)
        alone = [score(model(TEXT, row)[:, -1:]).item() for row in rows]
    torch.testing.assert_close(values, torch.tensor(alone), rtol=0, atol=3e-5)
    assert (values - measure(model, ids, score, rows)[1]).abs().max() > 1e-3


def test_rows_whose_logits_take_much_memory_go_in_few(model):
    ids, seen = model.tokens(TEXT), []
    handle = model.bridge.unembed.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    last = [[set_to(LatentNode(Site(0, "mlp"), n, 10), 2.0)] for n in range(90)]
    whole = BoundMetric(Logits(), lambda logits: logits[:, -1, 3])
    of_all = measure(model, ids, whole, last, memory="100kB")[1]
    assert 1 < max(seen) < 20
    seen.clear()
    of_one = measure(model, ids, BoundMetric(Logits(-1), whole.score), last, memory="100kB")[1]
    assert max(seen) > 20
    handle.remove()
    torch.testing.assert_close(of_all, of_one, rtol=1e-5, atol=1e-5)


def test_no_rows_are_no_values(model):
    clean, values = measure(model, model.tokens(TEXT), bind(METRIC, model), [])
    assert values.shape == (0,)
    assert clean == pytest.approx(bind(METRIC, model)(model(TEXT)[:, -1:]).item(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [4, 50])
def test_no_pass_has_more_rows_than_asked_for(model, batch_size):
    seen = []
    handle = model.bridge.blocks[-1].register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    measure(model, model.tokens(TEXT), bind(METRIC, model), rows_of(model), batch_size=batch_size)
    handle.remove()
    assert 1 < max(seen) <= batch_size


@given(
    lengths=st.lists(st.integers(1, 30), max_size=60).map(lambda x: sorted(x, reverse=True)),
    n_tokens=st.integers(1, 200),
    most=st.integers(1, 20),
)
def test_packs_are_all_rows_in_order_and_within_bounds(lengths, n_tokens, most):
    packs = [lengths[some] for some in pack(lengths, n_tokens, most)]
    assert [length for some in packs for length in some] == lengths
    for some in packs:
        assert len(some) <= most
        assert len(some) == 1 or len(some) * some[0] <= n_tokens
