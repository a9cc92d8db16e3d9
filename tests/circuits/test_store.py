"""Whatever the memory budget, the numbers are the same, and the budget is kept."""

import random
import weakref
from concurrent.futures import Future
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution import attribute, logit_diff, total_effects
from attribution.fingerprint import fingerprint
from circuits import Site, UserError, splice, zero_reference
from circuits.loading import store
from circuits.loading.mapped import open_mapped, save_mapped
from circuits.loading.store import DictionaryStore
from circuits.memory import show_bytes
from experiments import ablate_each, faithfulness_curve
from tests.circuits.small_dictionaries import as_dictionary, random_arrays
from tests.random_gemma import TEXT, random_dictionaries

METRIC = logit_diff("w3", "w4")
DICTIONARIES = random_dictionaries()
LARGEST = max(dictionary.n_bytes for dictionary in DICTIONARIES.values())
BUDGETS = [3 * LARGEST, 5 * LARGEST, None]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    for site, dictionary in DICTIONARIES.items():
        save_mapped(dictionary, folder / str(site))
    return {site: folder / str(site) for site in DICTIONARIES}


@pytest.fixture(params=BUDGETS, ids=["all pass", "some stay", "all stay"])
def streamed(request, bridge, paths):
    return splice(bridge, DictionaryStore(paths, budget=request.param), name="random")


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_total_effects_do_not_depend_on_the_budget(model, streamed, downstream):
    here, there = (total_effects(m, TEXT, METRIC, downstream=downstream) for m in (model, streamed))
    for site in model.sites:
        torch.testing.assert_close(here.sites[site].effect, there.sites[site].effect)
        torch.testing.assert_close(here.sites[site].error_effect, there.sites[site].error_effect)


def test_graphs_do_not_depend_on_the_budget(model, streamed):
    here, there = (attribute(m, TEXT, METRIC, max_latents=60) for m in (model, streamed))
    assert here.nodes == there.nodes
    np.testing.assert_allclose(here.edges.toarray(), there.edges.toarray(), rtol=1.3e-6, atol=1e-5)


def test_fingerprints_do_not_depend_on_the_budget_and_read_dictionaries_once(
    model, streamed, monkeypatch
):
    assert fingerprint(streamed) == fingerprint(model)
    monkeypatch.setattr(DictionaryStore, "__getitem__", None)
    assert fingerprint(streamed) == fingerprint(model)


@pytest.mark.parametrize("downstream", ["recompute", "freeze", "drop"])
def test_ablations_do_not_depend_on_the_budget(model, streamed, downstream):
    nodes = total_effects(model, TEXT, METRIC).strongest(6)
    here, there = (
        [row.measured for row in ablate_each(m, TEXT, METRIC, nodes, downstream=downstream)]
        for m in (model, streamed)
    )
    assert here == pytest.approx(there, abs=1e-5)


def ablations(model, downstream):
    nodes = total_effects(model, TEXT, METRIC).strongest(6)
    return ablate_each(model, TEXT, METRIC, nodes, downstream=downstream)


STUDIES = {
    "trace": lambda model: model.trace(TEXT),
    "total effects": lambda model: total_effects(model, TEXT, METRIC),
    "frozen effects": lambda model: total_effects(model, TEXT, METRIC, downstream="freeze"),
    "graph": lambda model: attribute(model, TEXT, METRIC, max_latents=60),
    "ablations": lambda model: ablations(model, "recompute"),
    "frozen ablations": lambda model: ablations(model, "freeze"),
    "ablations without errors": lambda model: ablations(model, "drop"),
    "faithfulness": lambda model: faithfulness_curve(
        model, TEXT, METRIC, total_effects(model, TEXT, METRIC).strongest(20), sizes=[5]
    ),
}


class Alive:
    """Opens dictionaries; `most` is the most bytes that those in memory ever took."""

    def __init__(self) -> None:
        self.most = 0
        self._seen: list[tuple[weakref.ref, int]] = []

    def open(self, path):
        dictionary = open_mapped(path)
        self._seen.append((weakref.ref(dictionary.W_dec), dictionary.n_bytes))  # copies share it
        self.most = max(self.most, sum(n for ref, n in self._seen if ref() is not None))
        return dictionary


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("budget", BUDGETS[:2])
def test_the_budget_is_kept(bridge, paths, monkeypatch, budget, study):
    alive = Alive()
    model = splice(bridge, DictionaryStore(paths, budget=budget), name="random")
    monkeypatch.setattr(store, "open_mapped", alive.open)
    STUDIES[study](model)
    assert 0 < alive.most <= budget


def test_what_stays_is_read_once(bridge, paths, monkeypatch):
    """The first sites of the forward pass stay, as many as fit beside the three that pass."""
    model = splice(bridge, DictionaryStore(paths, budget=5 * LARGEST), name="random")
    filled = accumulate(model.dictionaries.summary(site).n_bytes for site in model.sites)
    first = [site for site, n_bytes in zip(model.sites, filled, strict=True)
             if n_bytes <= 2 * LARGEST]  # fmt: skip
    assert model.dictionaries.staying == set(first)
    assert 0 < len(first) < len(model.sites)
    reads: list[str] = []
    monkeypatch.setattr(store, "open_mapped", lambda p: reads.append(p.name) or open_mapped(p))
    for _ in range(3):
        model.trace(TEXT)
    assert [reads.count(str(site)) for site in first] == [1] * len(first)
    assert all(reads.count(str(site)) >= 3 for site in model.sites if site not in first)


def test_names_and_sizes_are_known_without_reading(bridge, paths, monkeypatch):
    model = splice(bridge, DictionaryStore(paths, budget=3 * LARGEST), name="random")
    monkeypatch.setattr(store, "open_mapped", None)
    assert Site(0, "mlp") in model.dictionaries
    assert Site(9, "mlp") not in model.dictionaries
    assert model.dictionaries.summary(Site(1, "attn")).d_sae == 96
    assert zero_reference(model, TEXT).acts(Site(2, "resid")).sum() == 0
    assert "9 sites" in repr(model.dictionaries)


def test_too_little_memory_is_refused_with_what_is_needed(paths):
    with pytest.raises(UserError, match=r"they need at least \d+ kB"):
        DictionaryStore(paths, budget=2 * LARGEST)


def test_a_dictionary_with_nan_is_refused_when_it_is_spliced_in(bridge):
    whole = DICTIONARIES[Site(0, "mlp")]
    W_dec = whole.W_dec.clone()
    W_dec[3, 4] = torch.nan
    damaged = replace(whole, W_dec=W_dec)
    with pytest.raises(UserError, match=r"1 of the .* values of W_dec are NaN or infinite"):
        splice(bridge, {Site(0, "mlp"): damaged})


class Unequal:
    """Mapped copies of dictionaries that take different numbers of bytes, ascending."""

    def __init__(self, folder: Path, n: int) -> None:
        made = [as_dictionary(random_arrays(d_sae=8 * 2**i)) for i in range(n)]
        self.sizes = [dictionary.n_bytes for dictionary in made]
        self.paths = {Site(layer, "mlp"): folder / str(layer) for layer in range(n)}
        for dictionary, path in zip(made, self.paths.values(), strict=True):
            save_mapped(dictionary, path)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_three_at_a_time_are_the_least_or_as_many_as_there_are(tmp_path, n):
    some = Unequal(tmp_path, n)
    least = sum(some.sizes[-3:])
    with pytest.raises(UserError, match=f"at least {show_bytes(least)}: up to three at a time"):
        DictionaryStore(some.paths, budget=least - 1)
    assert len(DictionaryStore(some.paths, budget=least).staying) == (n if n < 4 else 0)


def test_the_least_is_enough_in_whatever_order_sites_are_asked_for(tmp_path, monkeypatch):
    """What was given last is still in the caller's hands, and reading ahead ends at once."""

    class AtOnce:
        def submit(self, function, *args):
            done = Future()
            done.set_result(function(*args))
            return done

    some = Unequal(tmp_path, 5)
    least = sum(some.sizes[-3:])
    monkeypatch.setattr(store, "ThreadPoolExecutor", lambda *_: AtOnce())
    dictionaries = DictionaryStore(some.paths, budget=least)
    alive = Alive()
    monkeypatch.setattr(store, "open_mapped", alive.open)
    shuffled = random.Random(0)
    for _ in range(300):
        hands = dictionaries[shuffled.choice(list(some.paths))]
        assert hands.d_in == 5
    assert alive.most == least
