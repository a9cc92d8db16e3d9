"""However many rows a pass has, integrated gradients stay what they are; and it has no more."""

from functools import partial

import pytest
import torch

import attribution.integrated as integrated
from attribution import integrated_each, logit_diff, total_effects
from circuits import ErrorNode, Prompt, Site, UserError, corrupted_reference

PROMPT = Prompt("w1 w5 w9 w2 w7", target="w19", foil="w31", corrupted="w4 w5 w9 w2 w7")
METRIC = logit_diff(PROMPT)


@pytest.fixture(scope="module")
def nodes(model):
    return [*total_effects(model, PROMPT, METRIC).strongest(3), ErrorNode(Site(1, "mlp"), 3)]


@pytest.fixture
def passes(monkeypatch):
    """The rows of every pass, and how to make it again."""
    seen, real = [], integrated.gradients

    def counted(model, ids, *args, **options):
        seen.append((len(ids), partial(real, model, ids, *args, **options)))
        return real(model, ids, *args, **options)

    monkeypatch.setattr(integrated, "gradients", counted)
    return seen


def rows_of(passes):
    return [rows for rows, _ in passes]


def kept_by(model, run):
    """Bytes that a pass keeps for its way back."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    for parameter in model.bridge.original_model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def each(model, nodes, **options):
    return integrated_each(
        model, PROMPT, METRIC, nodes, n=3, reference=corrupted_reference(model, PROMPT), **options
    )


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 500])
def test_a_pass_has_no_more_rows_than_asked_for(model, nodes, passes, batch_size, downstream):
    """Also where that is fewer than the points of one node."""
    whole = each(model, nodes, downstream=downstream)
    passes.clear()
    found = each(model, nodes, downstream=downstream, batch_size=batch_size)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)
    assert sum(rows_of(passes)) == 3 * len(nodes)
    assert max(rows_of(passes)) <= batch_size


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_a_pass_takes_no_more_memory_than_asked_for(model, passes, downstream):
    nodes = [ErrorNode(model.sites[0], pos) for pos in range(1, 5)]  # all of the model is above
    whole = each(model, nodes, downstream=downstream, batch_size=6)
    largest = max(passes, key=lambda found: found[0])
    a_row = kept_by(model, largest[1]) / largest[0]
    sizes = []
    for n_rows in (3, 6):
        passes.clear()
        each(model, nodes, downstream=downstream, memory=int(n_rows * a_row))
        assert max(kept_by(model, run) for _, run in passes) <= n_rows * a_row
        sizes.append(max(rows_of(passes)))
    assert 1 <= sizes[0] < sizes[1] <= 6
    passes.clear()
    few = each(model, nodes[:1], downstream=downstream, memory="1kB")
    assert set(rows_of(passes)) == {1}  # nothing can have fewer
    torch.testing.assert_close(few, whole[:1], rtol=1e-4, atol=1e-6)
    passes.clear()
    each(model, nodes, downstream=downstream, memory="10GB", batch_size=2)
    assert max(rows_of(passes)) == 2


def test_a_pass_without_memory_for_it_is_halved(model, nodes, monkeypatch):
    whole, real = each(model, nodes), integrated.gradients

    def small(model, ids, *args, **options):
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, ids, *args, **options)

    monkeypatch.setattr(integrated, "gradients", small)
    torch.testing.assert_close(each(model, nodes), whole, rtol=1e-4, atol=1e-6)


def test_what_is_no_amount_is_refused(model, nodes):
    with pytest.raises(UserError, match="write for example '20GB'"):
        each(model, nodes, memory="much")
    with pytest.raises(UserError, match="batch_size=0; give a whole number from 1 on"):
        each(model, nodes, batch_size=0)
