"""The planted model: two Gemma 2 layers with weights set by hand, and a dictionary at each site.

A feature is one dimension of the residual stream, and one latent of every `mlp` and `resid`
dictionary; an `attn` dictionary has one latent for each number that each head carries.

The circuit: in layer 0, at `often`, head `copy` looks for an animal and writes its number as
`subject singular` or `subject plural`; in layer 1 a neuron for each of them, behind a gate that
needs it and multiplied by `ask`, writes the verb form, which the unembedding reads.

The decoys:

- head `mute` (both layers) looks at the same noun and carries the same number, four times as
  strong; its `W_O` is zero;
- head `dead-end` carries it too and writes it where two neurons of layer 1 alone read it; what
  they write, `idle`, nobody reads;
- head `attractor` copies the other noun's number, in layer 0 to `there` and in layer 1 to `often`,
  where nobody reads it;
- neurons of layer 0 write the number again at the animal; one of layer 1 writes `past` at `often`,
  which moves the logit of `ran` and not the answer;
- every word has a feature of its own, three times as large as those that matter.

Norms would couple all of this: what enters any of them would change what leaves it. So each norm
also reads a dimension of 1024, the ballast, which hardly lets its scale move: a feature of size a
changes it by a^2 / 2^21 of itself. The gains undo that scale, so that features pass a norm as they
are; the ballast leaves an input norm as `one`, the constant from which gates have their bias. What
is constant (the ballast, the head that gives it) is in the dictionaries' biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from circuits import Dictionary, LatentNode, Site, SplicedModel, load_gemma, splice
from experiments.planted.language import NUMBERS, SPECIAL, TEXT_WORDS, WORDS, meaning

D_MODEL, D_HEAD, N_HEADS, D_MLP, N_LAYERS = 64, 16, 8, 8, 2
BALLAST = 1024.0
RMS = BALLAST / D_MODEL**0.5  # of what enters a norm, 128
WORD_SIZE = 3.0
FEATURES = (
    *("animal", "thing", "ask", "place", "past", "bos"),
    *NUMBERS,
    *(
        f"{what} {number}"
        for what in ("subject", "dead-end", "attractor", "noun", "idle", "verb")
        for number in NUMBERS
    ),
    *(f"word {word}" for word in TEXT_WORDS),
)
ONE = D_MODEL - 1  # the ballast's dimension; no feature
assert len(FEATURES) < D_MODEL

# planes of a head's queries and keys where rotation is slowest, so that distance hardly matters
SEEK, SINK = D_HEAD // 2 - 1, D_HEAD // 2 - 2


@dataclass(frozen=True)
class Head:
    """At words that mean `query` it finds a word that means `key` and carries its number.

    Elsewhere it rests on BOS, which has no number.

    Attributes:
        gain: Of what it carries: the activation of its latent.
        writes: The feature it writes, followed by the number; none for a zero `W_O`.
    """

    name: str
    query: str
    key: str
    gain: float = 1.0
    writes: str | None = None


HEADS: tuple[Mapping[int, Head], ...] = (
    {
        0: Head("copy", "ask", "animal", writes="subject"),
        1: Head("mute", "ask", "animal", gain=4.0),
        2: Head("dead-end", "ask", "animal", gain=2.0, writes="dead-end"),
        3: Head("attractor", "place", "thing", writes="attractor"),
    },
    {
        1: Head("mute", "ask", "animal", gain=4.0),
        3: Head("attractor", "ask", "thing", writes="attractor"),
    },
)
"""By layer and place; the last place gives the ballast of the norm after attention."""
CONSTANT_HEAD = N_HEADS - 1


@dataclass(frozen=True)
class Neuron:
    """`gelu(20 when - 10) * through`, times `amount`, is added to the feature `writes`.

    With `when` at 1 the gate is 10, where gelu is the identity; with `when` at 0 it is -10, where
    gelu and its slope are 0 in float32.
    """

    when: str
    writes: str
    through: str = "one"
    amount: float = field(default=0.1, kw_only=True)


NEURONS: tuple[tuple[Neuron, ...], ...] = (
    tuple(Neuron(number, f"noun {number}", amount=0.2) for number in NUMBERS),
    (
        *(Neuron(f"subject {n}", f"verb {n}", "ask", amount=0.5) for n in NUMBERS),
        *(Neuron(f"dead-end {n}", f"idle {n}") for n in NUMBERS),
        Neuron("ask", "past", amount=0.2),
    ),
)
CONSTANT_NEURON = D_MLP - 1


def planted_model() -> SplicedModel:
    """The model on the CPU in float32, with dictionaries at all six sites."""
    with TemporaryDirectory() as folder:
        _save(Path(folder))
        bridge = load_gemma(folder, device="cpu", dtype=torch.float32)
    dictionaries = {
        site: dictionary
        for layer in range(N_LAYERS)
        for site, dictionary in (
            (Site(layer, "attn"), _attn_dictionary()),
            (Site(layer, "mlp"), _feature_dictionary()),
            (Site(layer, "resid"), _feature_dictionary(constant=BALLAST)),
        )
    }
    return splice(bridge, dictionaries, name="planted")


def latent(site: Site, name: str) -> int:
    """The latent of a feature, or at `attn` of a head's name and a number: `copy singular`."""
    if site.kind != "attn":
        return FEATURES.index(name)
    head, number = name.rsplit(" ", 1)
    place = next(i for i, one in HEADS[site.layer].items() if one.name == head)
    return 2 * place + NUMBERS.index(number)


def label(node: LatentNode) -> str:
    """What a latent stands for: `latent`, the other way."""
    if node.site.kind != "attn":
        return FEATURES[node.latent]
    place, number = divmod(node.latent, 2)
    return f"{HEADS[node.site.layer][place].name} {NUMBERS[number]}"


def _save(folder: Path) -> None:
    """A Hugging Face folder: the model, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

    config = Gemma2Config(
        vocab_size=len(WORDS),
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        head_dim=D_HEAD,
        query_pre_attn_scalar=D_HEAD,
        sliding_window=16,
        max_position_embeddings=32,
        pad_token_id=WORDS.index("<pad>"),
        eos_token_id=WORDS.index("<eos>"),
        bos_token_id=WORDS.index("<bos>"),
    )
    model: Any = Gemma2ForCausalLM(config)
    for weight in model.parameters():
        weight.data.zero_()
    _set_embedding(model.model.embed_tokens.weight.data)
    for layer, heads, neurons in zip(model.model.layers, HEADS, NEURONS, strict=True):
        _set_norms(layer)
        for place, head in heads.items():
            _set_head(layer.self_attn, place, head)
        _set_constant_head(layer.self_attn)
        for place, neuron in enumerate(neurons):
            _set_neuron(layer.mlp, place, neuron)
        _set_constant_neuron(layer.mlp)
    # 8 undoes the embedding's scale: a verb's logit is its feature, before the soft-cap
    answers = {f"verb {number}": D_MODEL**0.5 for number in NUMBERS}
    _set_gain(model.model.norm, one=0.0, features=answers)
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{word[1:-1]}_token": word for word in SPECIAL}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="right", **special
    ).save_pretrained(folder)


def _set_embedding(weight: Tensor) -> None:
    """`[vocab, d_model]`; the model multiplies it by the root of `d_model`."""
    for row, word in zip(weight, WORDS, strict=True):
        row[ONE] = BALLAST
        for name in meaning(word):
            row[FEATURES.index(name)] = 1.0
        if word in TEXT_WORDS:
            row[FEATURES.index(f"word {word}")] = WORD_SIZE
    weight /= D_MODEL**0.5


def _set_norms(layer: Any) -> None:
    """Input norms give the ballast as `one`; the norms after a sublayer take it away."""
    for norm in (layer.input_layernorm, layer.pre_feedforward_layernorm):
        _set_gain(norm, one=1 / BALLAST)
    for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
        _set_gain(norm, one=0.0)


def _set_gain(norm: Any, *, one: float, features: Mapping[str, float] | None = None) -> None:
    """What features and ballast are multiplied by, on the whole; 1 where nothing is said."""
    factors = torch.ones(D_MODEL)
    factors[ONE] = one
    for name, factor in (features or {}).items():
        factors[FEATURES.index(name)] = factor
    norm.weight.data[:] = RMS * factors - 1  # the gain is 1 + weight


def _set_head(attn: Any, place: int, head: Head) -> None:
    """Scores are 40 at what it seeks, 20 at BOS and 0 elsewhere, before the soft-cap at 50."""
    first = place * D_HEAD
    attn.q_proj.weight.data[first + SEEK, FEATURES.index(head.query)] = 16.0
    attn.k_proj.weight.data[first + SEEK, FEATURES.index(head.key)] = 10.0
    attn.q_proj.weight.data[first + SINK, ONE] = 16.0
    attn.k_proj.weight.data[first + SINK, FEATURES.index("bos")] = 5.0
    for i, number in enumerate(NUMBERS):
        attn.v_proj.weight.data[first + i, FEATURES.index(number)] = head.gain
        if head.writes is not None:
            attn.o_proj.weight.data[FEATURES.index(f"{head.writes} {number}"), first + i] = 1.0


def _set_constant_head(attn: Any) -> None:
    """Carries `one` from wherever it looks."""
    attn.v_proj.weight.data[CONSTANT_HEAD * D_HEAD, ONE] = 1.0
    attn.o_proj.weight.data[ONE, CONSTANT_HEAD * D_HEAD] = BALLAST


def _set_neuron(mlp: Any, place: int, neuron: Neuron) -> None:
    through = ONE if neuron.through == "one" else FEATURES.index(neuron.through)
    mlp.gate_proj.weight.data[place, FEATURES.index(neuron.when)] = 20.0
    mlp.gate_proj.weight.data[place, ONE] = -10.0
    mlp.up_proj.weight.data[place, through] = 1.0
    mlp.down_proj.weight.data[FEATURES.index(neuron.writes), place] = neuron.amount


def _set_constant_neuron(mlp: Any) -> None:
    """`gelu(16) * 1 * 64`: the ballast of the norm after the MLP."""
    mlp.gate_proj.weight.data[CONSTANT_NEURON, ONE] = 16.0
    mlp.up_proj.weight.data[CONSTANT_NEURON, ONE] = 1.0
    mlp.down_proj.weight.data[ONE, CONSTANT_NEURON] = BALLAST / 16


def _attn_dictionary() -> Dictionary:
    """A latent for each head and number; the constant head is the bias."""
    rows = [head * D_HEAD + number for head in range(CONSTANT_HEAD) for number in range(2)]
    constant = torch.zeros(N_HEADS * D_HEAD)
    constant[CONSTANT_HEAD * D_HEAD] = 1.0
    return _dictionary(torch.eye(N_HEADS * D_HEAD)[rows], constant)


def _feature_dictionary(constant: float = 0.0) -> Dictionary:
    """A latent for each feature; the ballast is the bias."""
    bias = torch.zeros(D_MODEL)
    bias[ONE] = constant
    return _dictionary(torch.eye(D_MODEL)[: len(FEATURES)], bias)


def _dictionary(directions: Tensor, constant: Tensor) -> Dictionary:
    """Latents that read and write `directions [d_sae, d]`, which are orthonormal."""
    n = len(directions)
    return Dictionary(
        W_enc=directions.T.contiguous(),
        b_enc=torch.zeros(n),
        threshold=torch.full((n,), 0.1),
        W_dec=directions,
        b_dec=constant,
    )
