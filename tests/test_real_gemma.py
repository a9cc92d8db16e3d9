"""Sanity gates on the real weights (`pytest -m hub`; needs access to Gemma on the hub)."""

import pytest

from circuits import load
from experiments import check_dictionaries

pytestmark = pytest.mark.hub
TEXT = "When Mary and John went to the store, John gave a drink to"


@pytest.mark.parametrize("kind", ["attn", "mlp", "resid"])
def test_l0_and_explained_variance_are_what_gemma_scope_says(kind):
    """A negative explained variance means the wrong hook point or a missing BOS bypass."""
    report = check_dictionaries(load("gemma-2-2b", sites=[kind]))
    assert len(report) == 26
    assert report.n_tokens > 2000
    assert all(None not in (row.l0_passes, row.explained_passes) for row in report)
    assert report.passed, str(report)


def test_the_model_answers():
    model = load("gemma-2-2b", sites=["resid"])
    assert model(TEXT)[0, -1].argmax() == model.token_id(" Mary")
