"""The tops of the contenders are the tops of all columns."""

import numpy as np
import pytest
from scipy import sparse

from circuits import UserError
from experiments.statistics import top_k_inclusion
from experiments.statistics.contenders import contenders


def effects(n: int, n_columns: int, seed: int, density: float = 0.3) -> sparse.csr_array:
    """Heavy-tailed and mostly zero, as effects of latents are; some columns tie.

    Rounded, so that sums are exact and tied columns tie wherever they stand.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(-4, 2.5, n_columns)
    dense = (rng.normal(size=(n, n_columns)) + rng.normal(size=n_columns)) * sizes
    dense[rng.random((n, n_columns)) > density] = 0
    dense[:, ::7] = dense[:, :1]
    return sparse.csr_array(np.round(dense * 2**20) / 2**20)


@pytest.mark.parametrize("k_top", [1, 5, 20])
@pytest.mark.parametrize(("n", "n_clusters"), [(2, 2), (12, 5), (30, 30)])
def test_tops_of_the_contenders_are_those_of_all_columns(n, n_clusters, k_top):
    values = effects(n, 400, seed=10 * n + k_top)
    clusters = np.arange(n) % n_clusters
    draws = {"k_top": k_top, "n_bootstrap": 200, "seed": 3}
    kept = contenders(values, clusters, **draws)
    every = top_k_inclusion(values.toarray(), clusters, **draws)
    found = top_k_inclusion(values[:, kept].toarray(), clusters, **draws)
    inclusion = np.zeros(400)
    inclusion[kept] = found.inclusion
    np.testing.assert_array_equal(inclusion, every.inclusion)
    np.testing.assert_array_equal(kept[found.full], np.flatnonzero(every.full))
    for name in ("jaccard", "jaccard_low", "jaccard_high", "pairwise", "pairwise_low"):
        assert getattr(found, name) == pytest.approx(getattr(every, name))
    strongest = np.argsort(-np.abs(values.toarray().mean(0)), kind="stable")[: k_top + 1]
    assert set(strongest) <= set(kept)


def test_few_of_many_columns_are_contenders():
    values = effects(20, 20_000, seed=0)
    assert len(contenders(values, k_top=10)) < 1000


def test_columns_of_zeros_are_none_and_all_stay_where_there_are_few():
    values = sparse.csr_array(np.eye(3, 100))
    assert contenders(values, k_top=2).tolist() == list(range(9))  # 4 k + 1, most of them zero
    assert contenders(values[:, :5], k_top=2).tolist() == list(range(5))


def test_another_number_of_labels_is_refused():
    with pytest.raises(UserError, match="2 cluster labels for 20 examples"):
        contenders(effects(20, 100, seed=0), [0, 1], k_top=3)
