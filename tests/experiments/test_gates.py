"""Gates of first use: right numbers however they are summed, and each mistake is named."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from circuits import Dictionary, Site, SplicedModel, UserError, load_gemma, splice
from circuits.loading.mapped import save_mapped
from circuits.loading.store import DictionaryStore
from experiments import GateReport, check_dictionaries
from experiments.gates import GateRow, _Sums, default_texts
from tests.random_gemma import D_MODEL, chosen_dictionaries, random_dictionaries

TEXTS = [" ".join(f"w{(3 * i + j * (i + 1)) % 36}" for j in range(3 + 2 * i)) for i in range(11)]


def text_activations(model: SplicedModel, texts: list[str]) -> dict[Site, torch.Tensor]:
    """Every site's activation at every text token, one text at a time, `[tokens, d]`, float64."""
    parts: dict[Site, list[torch.Tensor]] = {site: [] for site in model.sites}
    for text in texts:
        for site, x in model.activations(model.tokens(text))[1].items():
            parts[site].append(x[0, 1:].double())
    return {site: torch.cat(part) for site, part in parts.items()}


def slow_numbers(d: Dictionary, x: torch.Tensor) -> tuple[float, float]:
    """L0 and explained variance of everything at once, densely, as the paper writes them."""
    acts = torch.relu(x @ d.W_enc.double() + d.b_enc.double())
    acts = acts * (acts > d.threshold)
    error = x - (acts @ d.W_dec.double() + d.b_dec.double())
    explained = 1 - error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    return ((acts > 0).sum() / len(x)).item(), explained.item()


@pytest.fixture(scope="module")
def activations(model) -> dict[Site, torch.Tensor]:
    return text_activations(model, TEXTS)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_streaming_sums_equal_the_slow_twin(model, activations, batch_size):
    report = check_dictionaries(model, TEXTS, batch_size=batch_size)
    assert (report.n_texts, report.n_tokens) == (11, sum(3 + 2 * i for i in range(11)))
    assert [row.site for row in report] == list(model.sites)
    for row in report:
        l0, explained = slow_numbers(model.dictionaries[row.site], activations[row.site])
        assert row.l0 == pytest.approx(l0, rel=1e-5)
        assert row.explained == pytest.approx(explained, rel=1e-5)


def test_a_cross_layer_transcoder_is_judged_by_what_all_layers_write(bridge):
    model = splice(bridge, chosen_dictionaries(["cross"]), name="random")
    x, error = ([], [])
    for text in TEXTS:
        outputs, trace = model.activations(model.tokens(text))[2], model.trace(text)
        x.append(outputs[Site(2, "transcoder")][0, 1:].double())
        error.append(trace.sites[Site(2, "transcoder")].error[1:].double())
    x, error = torch.cat(x), torch.cat(error)
    expected = 1 - error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    row = list(check_dictionaries(model, TEXTS))[2]
    assert row.explained == pytest.approx(expected.item(), rel=1e-4)


def test_one_dictionary_at_a_time_gives_the_same_rows(model, bridge, tmp_path):
    """Two of nine in memory: the one that is used, and the next."""
    for site in model.sites:
        save_mapped(model.dictionaries[site], tmp_path / str(site))
    largest = max(model.dictionaries.summary(site).n_bytes for site in model.sites)
    store = DictionaryStore({s: tmp_path / str(s) for s in model.sites}, budget=3 * largest)
    streamed = check_dictionaries(splice(bridge, store), TEXTS)
    for row, kept in zip(streamed, check_dictionaries(model, TEXTS), strict=True):
        assert row.l0 == kept.l0
        assert row.explained == pytest.approx(kept.explained, rel=1e-6)


def test_in_bfloat16_sums_are_float32(gemma_folder):
    narrow = torch.bfloat16
    model = splice(
        load_gemma(str(gemma_folder), device="cpu", dtype=narrow), random_dictionaries(dtype=narrow)
    )
    seen = text_activations(model, TEXTS)
    for row in check_dictionaries(model, TEXTS, batch_size=1):
        l0, explained = slow_numbers(model.dictionaries[row.site], seen[row.site])
        assert row.l0 == pytest.approx(l0, rel=0.02)
        assert row.explained == pytest.approx(explained, rel=0.02)


@pytest.mark.parametrize("n_rows", [1, 7, 1000])
def test_activations_far_from_zero_lose_no_digits(activations, n_rows):
    """Where sum x^2 - n mean^2 would cancel: the mean is 100,000 times the spread."""
    far = activations[Site(1, "resid")].float() * 1e-2 + 1e3
    sums = _Sums()
    for part in far.split(n_rows):
        sums.add(part, torch.zeros_like(part), 0)
    exact = (far.double() - far.double().mean(0)).pow(2).sum().item()
    assert sums.spread == pytest.approx(exact, rel=1e-5)


def perfect(d: int = D_MODEL) -> Dictionary:
    """relu(x) - relu(-x) = x."""
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    zeros = torch.zeros(2 * d)
    return Dictionary(both.T.contiguous(), zeros, zeros, both, torch.zeros(d), average_l0=float(d))


def test_a_perfect_dictionary_explains_everything(bridge):
    report = check_dictionaries(splice(bridge, {Site(1, "resid"): perfect()}), TEXTS)
    (row,) = report
    assert row.explained == pytest.approx(1, abs=1e-12)
    assert row.l0 == D_MODEL  # each coordinate is on one side of zero
    assert report.passed


def test_the_mean_alone_explains_nothing(bridge, activations):
    site = Site(1, "mlp")
    never = replace(
        perfect(),
        threshold=torch.full((2 * D_MODEL,), 1e9),
        b_dec=activations[site].mean(0).float(),
    )
    (row,) = check_dictionaries(splice(bridge, {site: never}), TEXTS)
    assert row.explained == pytest.approx(0, abs=1e-6)
    assert row.l0 == 0
    assert row.verdict == "fails: L0, explained variance"


@pytest.fixture(scope="module")
def texts(tiny) -> list[str]:
    return list(tiny.example_texts[::8])  # of every task


def test_the_bundled_model_passes(tiny):
    report = check_dictionaries(tiny, batch_size=32)
    assert report.passed
    assert report.n_texts == len(tiny.example_texts) == len(default_texts(tiny))
    assert str(report).startswith("all 12 sites pass, over 5,582 tokens")


def swapped(tiny: SplicedModel, one: Site, other: Site) -> SplicedModel:
    dictionaries = dict(tiny.dictionaries)
    dictionaries[one], dictionaries[other] = dictionaries[other], dictionaries[one]
    return splice(tiny.bridge, dictionaries)


def test_dictionaries_of_two_kinds_swapped(tiny, texts):
    sites = Site(1, "mlp"), Site(1, "resid")
    report = check_dictionaries(swapped(tiny, *sites), texts)
    assert {row.site for row in report.failures} == set(sites)
    assert not report.passed
    (below,) = [line for line in str(report).splitlines() if "below 0" in line]
    assert "at mlp.1, resid.1: the reconstruction is worse than the mean" in below
    assert "another hook point" in below
    assert "BOS" in below
    assert "folded" in below


def test_dictionaries_of_two_layers_swapped(tiny, texts):
    report = check_dictionaries(swapped(tiny, Site(1, "mlp"), Site(2, "mlp")), texts)
    assert {row.site for row in report.failures} == {Site(1, "mlp"), Site(2, "mlp")}
    assert "at mlp.1-2: the dictionary is of another layer or model" in str(report)


@pytest.mark.parametrize(("factor", "message"), [(0.5, "30% above"), (4, "30% below")])
def test_thresholds_that_were_changed(tiny, texts, factor, message):
    site = Site(2, "resid")
    changed = replace(tiny.dictionaries[site], threshold=tiny.dictionaries[site].threshold * factor)
    model = splice(tiny.bridge, {**tiny.dictionaries, site: changed})
    report = check_dictionaries(model, texts)
    (row,) = report.failures
    assert row.site == site
    assert row.l0_passes is False
    assert f"{message} the folder's number at resid.2: thresholds" in str(report)


def test_where_bos_is_read_too_less_is_explained(tiny, texts):
    """No dictionary was trained on it. (Of this model so little less that the gate would pass.)"""
    site = Site(2, "resid")
    d = tiny.dictionaries[site]
    x = torch.cat([tiny.activations(tiny.tokens(text))[1][site][0] for text in texts]).double()
    _, with_bos = slow_numbers(d, x)
    (row,) = [row for row in check_dictionaries(tiny, texts) if row.site == site]
    assert row.explained is not None
    assert with_bos < row.explained


def test_what_is_not_known_does_not_fail(model):
    """The random dictionaries come from no folder that says an L0."""
    report = check_dictionaries(model, TEXTS)
    assert all(row.l0_passes is None for row in report)
    transcoder = GateRow(Site(0, "transcoder"), "t", 5.0, None, None)
    assert transcoder.verdict == "not known"
    assert replace(transcoder, expected_l0=6.0).verdict == "passes"
    assert replace(transcoder, expected_l0=9.0).verdict == "fails: L0"
    unknown = GateReport((transcoder,), 1, 4, {})
    assert unknown.passed
    assert str(unknown) == (
        "all 1 sites pass (1 with a number that is not known), over 4 tokens of 1 texts"
    )


def test_activations_that_do_not_vary_have_no_explained_variance(bridge):
    (row,) = check_dictionaries(splice(bridge, {Site(0, "mlp"): perfect()}), ["w1"])
    assert row.explained is None


def test_gates_at_their_bounds():
    row = GateRow(Site(0, "mlp"), "d", 130.0, 100.0, 0.6)
    assert row.l0_passes
    assert not row.explained_passes  # above, not at
    assert replace(row, l0=70.0).l0_passes
    assert not replace(row, l0=131.0).l0_passes
    assert not replace(row, l0=69.0).l0_passes


def test_saved_tables_hold_the_numbers(model, tmp_path):
    report = check_dictionaries(model, TEXTS)
    frame = pd.read_csv(report.save(tmp_path / "gates.csv"))
    assert frame["explained_variance"].to_list() == pytest.approx([r.explained for r in report])
    assert frame["expected_l0"].isna().to_list() == [True] * len(report)
    content = json.loads(report.save(tmp_path / "gates.json").read_text())
    assert content["format"] == "gemma-circuits gates"
    assert content["rows"][0]["expected_l0"] is None
    assert content["provenance"]["settings"]["tokens"] == report.n_tokens
    assert set(content["provenance"]["dictionaries"]) == set(map(str, model.sites))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts to check"),
        (["w1 w2", ""], "text 2 of 2 cannot be read: the prompt is empty"),
        (["w1 zebra"], "text 1 of 1 cannot be read: .* does not know 'zebra'"),
        (["w1", "w2 " * 40], "text 2 of 2 cannot be read: the prompt has 41 tokens"),
        (["<eos>"], "no text tokens"),
        ([3], "texts are strings; got int"),
    ],
)
def test_texts_that_cannot_be_used(model, texts, message):
    with pytest.raises(UserError, match=message):
        check_dictionaries(model, texts)


def test_of_many_unknown_words_the_first_are_told_and_the_advice_is_seen(model):
    with pytest.raises(UserError) as error:
        check_dictionaries(replace(model, example_texts=("w1 a b w2 a c d e",)))
    assert str(error.value).endswith(
        "does not know 'a', 'b', 'c' and 2 more; use words of its vocabulary, separated by spaces; "
        "give texts of its own (--text)"
    )


def test_texts_of_specials_alone_change_nothing(model):
    plain = check_dictionaries(model, ["w1 w2 w3"])
    assert check_dictionaries(model, ["w1 w2 w3", "<eos>"], batch_size=1).rows == plain.rows


def test_shipped_texts_are_many_and_varied(model):
    texts = default_texts(model)  # it brings none
    assert len(texts) >= 60
    assert len(set(texts)) == len(texts)
    assert sum(len(text.split()) for text in texts) > 1600  # some 2,300 tokens of Gemma's
    assert all(text == text.strip() and text for text in texts)
