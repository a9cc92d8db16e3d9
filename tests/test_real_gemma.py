"""Sanity gates on the real weights (`pytest -m hub`; needs access to Gemma on the hub)."""

import pytest

from circuits import Site, load

pytestmark = pytest.mark.hub
TEXT = "When Mary and John went to the store, John gave a drink to"


@pytest.mark.parametrize("kind", ["attn", "mlp", "resid"])
def test_l0_and_explained_variance_are_what_gemma_scope_says(kind):
    """A negative explained variance means the wrong hook point or a missing BOS bypass."""
    model = load("gemma-2-2b", sites=[kind])
    trace = model.trace(TEXT)
    _, activations = model.activations(model.tokens(TEXT))
    for site in (Site(layer, kind) for layer in (0, 12, 25)):
        x = activations[site][0, 1:].float()
        error = trace.sites[site].error[1:].float()
        explained = 1 - error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        assert explained > 0.6
        assert trace.l0(site) == pytest.approx(model.dictionaries[site].average_l0, rel=0.3)


def test_the_model_answers():
    model = load("gemma-2-2b", sites=["resid"])
    assert model(TEXT)[0, -1].argmax() == model.token_id(" Mary")
