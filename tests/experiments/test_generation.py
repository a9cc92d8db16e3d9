"""Continuations are Hugging Face's, and steered ones those of the same vectors added by hand."""

import pytest
import torch

from circuits import UserError
from experiments.spans import SpanNode
from experiments.steering.generation import generate
from tests.experiments.test_steering import by_hand, vectors_of
from tests.random_gemma import TEXT

STEER = {"attn.1/latent.7": 30.0, "mlp.0/latent.30": 45.0, "resid.1/latent.12": -20.0}
EOS = 1


@pytest.mark.parametrize("text", [TEXT, "w7", "w30 w2 w2"])
def test_greedy_is_that_of_hugging_face(model, plain, text):
    ids = model.tokens(text)
    expected = plain.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
    )
    found = generate(model, text, max_new_tokens=12)
    assert list(found.ids) == expected[0, ids.shape[1] :].tolist()
    assert list(found.words) == model.words(torch.tensor(found.ids))
    assert str(found) == f"{text} {found.text}"


@pytest.mark.parametrize("temperature", [0.0, 4.0])
def test_steered_is_the_vectors_added_at_every_position_by_hand(model, plain, temperature):
    ids, generator = model.tokens(TEXT), torch.Generator().manual_seed(3)
    n_given = ids.shape[1]
    for _ in range(12):
        logits = by_hand(plain, ids, vectors_of(model, STEER))[0, -1].double()
        if temperature:
            p = (logits / temperature).exp() / (logits / temperature).exp().sum()
            token = torch.multinomial(p, 1, generator=generator)
        else:
            token = logits.argmax()[None]
        ids = torch.cat([ids, token[None]], 1)
    how = {"max_new_tokens": 12, "temperature": temperature, "seed": 3}
    found = generate(model, TEXT, steer=STEER, **how)
    assert list(found.ids) == ids[0, n_given:].tolist()
    assert found.ids != generate(model, TEXT, **how).ids
    by_node = {SpanNode.parse(f"{name}@all"): amount for name, amount in STEER.items()}
    assert generate(model, TEXT, steer=by_node, **how) == found


def test_nothing_to_steer_and_amounts_of_0_are_the_clean_model(model):
    clean = generate(model, TEXT, max_new_tokens=6)
    assert generate(model, TEXT, steer={}, max_new_tokens=6) == clean
    assert generate(model, TEXT, steer=dict.fromkeys(STEER, 0.0), max_new_tokens=6) == clean


def test_draws_follow_the_seed_and_the_temperature(model):
    def draw(temperature, seed):
        how = {"temperature": temperature, "seed": seed, "steer": STEER}
        return generate(model, TEXT, max_new_tokens=10, **how).ids

    assert draw(1.0, 3) == draw(1.0, 3)
    assert len({draw(1.0, seed) for seed in range(5)}) > 1
    assert draw(1e-6, 4) == draw(0.0, 0)


def test_it_stops_at_eos(model):
    several = [generate(model, "w5", temperature=50.0, seed=seed) for seed in range(5)]
    ended = [found for found in several if found.ended]
    assert 0 < len(ended) < len(several)
    for found in several:
        assert found.ids.index(EOS) == len(found.ids) - 1 if found.ended else EOS not in found.ids
        assert found.ended or len(found.ids) == 20
        assert "<eos>" not in found.text


def test_the_last_token_that_fits_is_made(model):
    room = model.n_ctx - model.tokens(TEXT).shape[1]
    found = generate(model, TEXT, max_new_tokens=room)
    assert found.ended or len(found.ids) == room


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_new_tokens": 30}, "random reads at most 32, so ask for at most 21"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "a temperature of nan"),
        ({"prompt": ["w1", "w2"]}, "a continuation is of one prompt; got 2"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "house"}, "does not know 'house'"),
        ({"steer": {"mlp.0/latent.3@end": 1.0}}, "leave @end out"),
        ({"steer": {"mlp.0/latent.96": 1.0}}, "no latent 96"),
        ({"steer": {"mlp.0/latent.3": float("inf")}}, "an amount of inf"),
        ({"steer": {"mlp.0/latent.3": "4"}}, "an amount of '4'"),
        ({"steer": "mlp.0/latent.3"}, "give the latents with their amounts"),
        ({"downstream": "hold"}, "downstream='hold'"),
    ],
)
def test_bad_input_is_told_in_a_sentence(model, change, told):
    with pytest.raises(UserError) as error:
        generate(model, **{"prompt": TEXT, **change})
    assert told in str(error.value)
    assert "\n" not in str(error.value)
