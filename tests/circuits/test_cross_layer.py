"""A cross-layer transcoder's latents write at several layers; all else is as with others."""

from dataclasses import replace

import pytest
import torch

from circuits import ErrorNode, LatentNode, Site, UserError, scale, splice, zero
from circuits.formats.npz import save_npz
from circuits.loading.mapped import open_mapped, save_mapped
from circuits.loading.store import DictionaryStore
from tests.random_gemma import (
    D_MODEL,
    D_SAE,
    TEXT,
    chosen_dictionaries,
    random_cross_layer,
    random_dictionaries,
    random_transcoders,
)

SITES = [Site(layer, "transcoder") for layer in range(3)]


@pytest.fixture(scope="module", params=["cross", "cross residual"])
def crossed(request, bridge):
    return splice(bridge, chosen_dictionaries([request.param]), name="random")


def strongest(model, site, pos=4):
    acts = model.trace(TEXT).sites[site].dense()[pos]
    return LatentNode(site, int(acts.argmax()), pos), acts.max()


def by_hand(model, changes):
    """Plain PyTorch: add to what the MLPs of some layers give, `[pos, d]` each."""
    layers = model.bridge.original_model.model.layers
    handles = [
        layers[layer].post_feedforward_layernorm.register_forward_hook(
            lambda module, args, out, change=change: out + change
        )
        for layer, change in changes.items()
    ]
    try:
        with torch.no_grad():
            return model.bridge.original_model(model.tokens(TEXT)).logits
    finally:
        for handle in handles:
            handle.remove()


def decoded_by_hand(model, inputs):
    """What is decoded at each layer, densely; and the activations, read from `inputs`."""
    reads = model.reads(model.tokens(TEXT))[0][:, None]
    acts = {s: d.encode(inputs[s][0]) * reads for s, d in model.dictionaries.items()}
    sums = {s: d.b_dec * reads for s, d in model.dictionaries.items()}
    for site, d in model.dictionaries.items():
        for n, W_dec in enumerate(d.decoders):
            sums[Site(site.layer + n, site.kind)] = (
                sums[Site(site.layer + n, site.kind)] + acts[site] @ W_dec
            )
    return acts, sums


def test_an_error_is_what_the_latents_of_all_layers_leave(crossed):
    _, inputs, outputs = crossed.activations(crossed.tokens(TEXT))
    acts, sums = decoded_by_hand(crossed, inputs)
    for site, t in crossed.trace(TEXT).sites.items():
        torch.testing.assert_close(t.dense(), acts[site])
        torch.testing.assert_close(t.error, outputs[site][0] - sums[site], rtol=1e-5, atol=1e-5)
    for site, error in crossed.errors(crossed.tokens(TEXT)).items():
        assert torch.equal(error[0], crossed.trace(TEXT).sites[site].error)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_an_ablation_changes_every_layer_that_the_latent_writes_to(crossed, site):
    node, act = strongest(crossed, site)
    for intervention, share in ((zero(node), -1.0), (scale(node, 2.5), 1.5)):
        changes = {}
        for n, W_dec in enumerate(crossed.dictionaries[site].decoders):
            changes[site.layer + n] = torch.zeros(len(TEXT.split()) + 1, D_MODEL)
            changes[site.layer + n][node.pos] = share * act * W_dec[node.latent]
        assert len(changes) == 3 - site.layer
        expected = by_hand(crossed, changes)
        assert not torch.allclose(expected, crossed(TEXT), atol=1e-4)
        torch.testing.assert_close(crossed(TEXT, [intervention]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("edited", [SITES[:1], SITES[1:2], SITES[::2], SITES], ids=str)
@pytest.mark.parametrize("downstream", ["recompute", "freeze", "drop"])
def test_conventions_hold_for_what_all_layers_write_together(crossed, edited, downstream):
    """Latents and errors halved at some sites, each site computed from its definition."""
    ids = crossed.tokens(TEXT)
    clean = crossed.errors(ids)
    reads = crossed.reads(ids)[..., None]
    arriving, changed = {}, {}

    def by_definition(site):
        def hook(read, written):
            arriving[site] = crossed.dictionaries[site].encode(read) * reads
            changed[site] = arriving[site] * (0.5 if site in edited else 1.0)
            sums = [crossed.dictionaries[site].b_dec * reads] * 2
            for below in SITES[: site.layer + 1]:
                W_dec = crossed.dictionaries[below].decoders[site.layer - below.layer]
                sums = [sums[0] + arriving[below] @ W_dec, sums[1] + changed[below] @ W_dec]
            error = {
                "recompute": written - sums[0],
                "freeze": clean[site],
                "drop": torch.where(reads, 0.0, written),
            }[downstream]
            return sums[1] + error * (0.5 if site in edited else 1.0)

        return hook

    with torch.no_grad():
        expected = crossed.forward(ids, {site: by_definition(site) for site in SITES})
    edits = {site: lambda acts, error: (acts * 0.5, error * 0.5) for site in edited}
    found = crossed.run(ids, edits, downstream=downstream)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_later_decoders_of_zeros_are_none(bridge):
    transcoders = random_transcoders()
    zeros = {
        site: replace(d, W_later=torch.zeros(D_SAE, 2 - site.layer, D_MODEL))
        for site, d in transcoders.items()
        if site.layer < 2
    }
    plain, crossed = (splice(bridge, d) for d in (transcoders, transcoders | zeros))
    node, _ = strongest(plain, SITES[0])
    for downstream in ("recompute", "freeze", "drop"):
        changes = [zero(node), zero(ErrorNode(SITES[1], 3))]
        found, expected = (m(TEXT, changes, downstream=downstream) for m in (crossed, plain))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_copy_keeps_all_of_it(tmp_path):
    made = random_cross_layer(residual=True)[SITES[0]]
    save_mapped(made, tmp_path / "copy.safetensors")
    opened = open_mapped(tmp_path / "copy.safetensors")
    assert opened.reads_residual
    assert opened.arrays.keys() == made.arrays.keys()
    assert all(torch.equal(opened.arrays[key], made.arrays[key]) for key in made.arrays)
    summary = DictionaryStore({SITES[0]: tmp_path / "copy.safetensors"}).summary(SITES[0])
    assert (summary.n_later, summary.reads_residual) == (2, True)
    assert summary.n_bytes == made.n_bytes
    narrow = made.to(dtype=torch.bfloat16)
    assert narrow.W_later is not None
    assert narrow.W_later.dtype == torch.bfloat16
    with pytest.raises(UserError, match="holds those alone"):
        save_npz(made, tmp_path / "params.npz")


def test_what_cannot_be_spliced_is_refused(bridge):
    crossed = random_cross_layer()
    with pytest.raises(UserError, match=r"at transcoder\.0 also writes to transcoder\.1"):
        splice(bridge, {site: crossed[site] for site in SITES[::2]})
    with pytest.raises(UserError, match="what only transcoders have"):
        splice(bridge, random_dictionaries() | {Site(1, "mlp"): crossed[SITES[1]]})
    with pytest.raises(UserError, match=r"W_later \[96, 2, 31\] \(expected \[96, 2, 32\]\)"):
        replace(crossed[SITES[0]], W_later=torch.zeros(D_SAE, 2, D_MODEL - 1))
    with pytest.raises(UserError, match=r"W_later \[96, 32\] \(expected \[96, n_later, 32\]\)"):
        replace(crossed[SITES[0]], W_later=torch.zeros(D_SAE, D_MODEL))
