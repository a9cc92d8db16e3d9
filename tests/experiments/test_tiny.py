"""The bundled model does its tasks, its dictionaries are good, and its training can be retraced."""

import json
from itertools import islice

import pytest
import torch
from transformers import AutoTokenizer

from circuits import load
from circuits.loading.gemma_scope import dictionaries_from_folder
from circuits.sites import KINDS, Site
from experiments.tasks import TASKS
from experiments.tiny.activations import batches, collect, hooked, reads, sites
from experiments.tiny.jumprelu import Recipe, fit
from experiments.tiny.language import PAD, build_tokenizer, encode, token_ids
from experiments.tiny.muon import orthogonal
from experiments.tiny.quality import site_quality, spliced, zeroed
from experiments.tiny.success import task_success
from experiments.tiny.train_dictionaries import load_model
from experiments.tiny.train_model import BUNDLED, Settings, build, training

AUTOENCODERS = [Site(layer, kind) for layer in range(4) for kind in KINDS]
TRANSCODERS = [Site(layer, "transcoder") for layer in range(4)]
ALL_SITES = [*AUTOENCODERS, *TRANSCODERS]


@pytest.fixture(scope="module")
def model():
    return load_model(BUNDLED)


@pytest.fixture(scope="module")
def dictionaries():
    folder = BUNDLED / "dictionaries"
    transcoders = dictionaries_from_folder(folder, sites=["transcoder"], width="1k")
    return {**dictionaries_from_folder(folder, width="1k"), **transcoders}


@pytest.fixture(scope="module")
def activations(model):
    return collect(model, tuple(ALL_SITES), n_tokens=20_000, seed=77, split="heldout")


@pytest.fixture(scope="module")
def texts():
    return list(islice(batches(78, "heldout"), 2))


@pytest.mark.parametrize("name", list(TASKS))
def test_the_model_answers_held_out_prompts(model, name):
    assert task_success(model, name, 100, seed=7) >= 0.99


def test_the_model_answers_the_demo_sentence(model):
    ids = encode(["when Mary and John went to the store , John gave a drink to"])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    assert logits.argmax() == token_ids()["Mary"]
    assert logits[token_ids()["Mary"]] - logits[token_ids()["John"]] > 2


def test_every_part_of_gemma_2_is_at_work(model):
    config = model.config
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.attn_logit_softcapping == 50
    assert config.final_logit_softcapping == 30
    assert config.layer_types[:2] == ["sliding_attention", "full_attention"]
    longest = max(len(p.text.split()) for task in TASKS.values() for p in task.prompts(n=50))
    assert config.sliding_window < longest
    assert config.tie_word_embeddings


def test_the_saved_tokenizer_reads_as_the_training_did():
    saved = AutoTokenizer.from_pretrained(BUNDLED / "model")
    texts = [p.text for task in TASKS.values() for p in task.prompts(n=5)]
    ids = saved(texts, padding=True, return_tensors="pt").input_ids
    assert torch.equal(ids, encode(texts))
    assert saved.get_vocab() == build_tokenizer().get_vocab() == token_ids()


def test_the_start_of_the_training_is_deterministic_and_is_the_recorded_one():
    recorded = json.loads((BUNDLED / "training.json").read_text())
    settings = Settings(**recorded["settings"])
    threads = torch.get_num_threads()
    torch.set_num_threads(recorded["threads"])
    try:
        first, second = (
            list(islice(training(build(settings.seed), settings), 5)) for _ in range(2)
        )
    finally:
        torch.set_num_threads(threads)
    assert first == second
    # bfloat16 products are summed in another order on another processor
    assert first == pytest.approx(recorded["losses"][:5], abs=5e-3)


@pytest.mark.parametrize("site", ALL_SITES, ids=str)
def test_a_dictionary_explains_its_site(model, dictionaries, activations, texts, site):
    quality = site_quality(model, site, dictionaries[site], activations[site], texts)
    assert quality.explained >= 0.95
    assert quality.l0 <= 32
    assert quality.recovered >= 0.97
    # the folder is named by the mean L0
    assert quality.l0 == pytest.approx(dictionaries[site].average_l0, rel=0.1)


def test_dictionaries_lie_as_gemma_scope_lays_them_out(dictionaries):
    assert list(dictionaries) == ALL_SITES
    files = sorted(p.relative_to(BUNDLED) for p in (BUNDLED / "dictionaries").rglob("*.npz"))
    assert len(files) == len(ALL_SITES)
    for site, dictionary in dictionaries.items():
        assert (dictionary.d_in, dictionary.d_sae, dictionary.d_out) == (128, 1024, 128), site
        norms = dictionary.W_dec.norm(dim=1)
        assert torch.allclose(norms, torch.ones_like(norms), atol=1e-4)
        assert (dictionary.threshold > 0).all()


def test_all_weights_together_are_small():
    assert sum(p.stat().st_size for p in BUNDLED.rglob("*") if p.is_file()) <= 22e6


def test_example_texts_are_in_the_language():
    texts = (BUNDLED / "texts.txt").read_text().splitlines()
    assert len(texts) == 400
    assert {word for text in texts for word in text.split()} <= set(token_ids())


def test_hooks_see_what_the_layer_writes(model):
    """Each replacement by the activation itself changes nothing; by zero, something."""
    ids = encode(["the tall farmers greet the aunt ."])
    here = reads(ids)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        for site in sites(model, (*KINDS, "transcoder")):
            with hooked(model, {site: lambda read, written: written.clone()}):
                assert torch.equal(model(input_ids=ids).logits, plain)
            with hooked(model, {site: zeroed(here)}):
                assert not torch.equal(model(input_ids=ids).logits, plain)


@pytest.mark.parametrize("kinds", [KINDS, ("attn", "transcoder", "resid")], ids=" ".join)
def test_hooks_see_what_the_splice_sees(model, kinds):
    """What a site reads and what is written there, by two implementations."""
    spliced_model = load("tiny", sites=kinds, device="cpu")
    ids = encode(["the tall farmers greet the aunt .", "when Mary met Amy"])
    _, read, written = spliced_model.activations(ids)
    seen = {}

    def keeper(site):
        def keep(*activations):
            seen[site] = activations
            return activations[1]

        return keep

    with torch.no_grad(), hooked(model, {site: keeper(site) for site in spliced_model.sites}):
        model(input_ids=ids)
    assert list(spliced_model.sites) == list(sites(model, kinds))
    padded = ids == token_ids()[PAD]
    for site in spliced_model.sites:
        for ours, theirs in zip(seen[site], (read[site], written[site]), strict=True):
            torch.testing.assert_close(ours[~padded], theirs[~padded], rtol=1e-5, atol=1e-5)


def test_a_spliced_dictionary_leaves_bos_alone(model, dictionaries):
    ids = encode(["the tall farmers"])
    here = reads(ids)
    assert here.tolist() == [[False, True, True, True]]
    read, written = torch.randn(1, 4, 128), torch.randn(1, 4, 128)
    out = spliced(dictionaries[Site(0, "mlp")], here)(read, written)
    assert torch.equal(out[0, 0], written[0, 0])
    dictionary = dictionaries[Site(0, "mlp")]
    torch.testing.assert_close(out[0, 1:], dictionary.decode(dictionary.encode(read[0, 1:])))


@pytest.mark.parametrize("kind", ["autoencoder", "transcoder"])
def test_a_dictionary_finds_planted_directions(kind):
    """Activations that are sparse sums of 24 directions: most of their variance is explained.

    A transcoder reads them and writes the same sums of 24 others, at another scale.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, 32, generator=generator), dim=1)
    on = torch.rand(4000, 24, generator=generator) < 0.1
    acts = on * (1 + torch.rand(4000, 24, generator=generator))
    others = torch.nn.functional.normalize(torch.randn(24, 32, generator=generator), dim=1)
    read = 7 * acts @ directions
    written = read if kind == "autoencoder" else 0.3 * acts @ others
    recipe = Recipe(d_sae=64, target_l0=3.0, steps=400, batch=512, warmup=100)
    *_, (_, l0, dictionary) = fit(read, written, recipe)
    assert dictionary is not None
    left = (written - dictionary.decode(dictionary.encode(read))).square().sum()
    assert left / (written - written.mean(0)).square().sum() < 0.1
    assert l0 < 6


def test_newton_schulz_makes_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((16, 48), (48, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(*shape, generator=generator)))
        assert values.min() > 0.6
        assert values.max() < 1.3
