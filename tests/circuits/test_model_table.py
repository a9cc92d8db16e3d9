"""Each Gemma 2 of the model table, in its true sizes: two layers of random weights, a few tokens.

The weights go the way of the real ones: from a Hugging Face folder through our loader. The width
inside the MLP alone, which no site has and which makes up to nine weights in ten, is smaller.
"""

import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

from circuits import Dictionary, Site, SplicedModel, load_gemma, splice
from circuits.freeze import Freeze
from circuits.loading.models import HUB_MODELS
from circuits.loading.shapes import Shape, shapes

N_LAYERS, VOCAB, D_SAE, D_MLP = 2, 512, 8, 2304
WIDTHS = {  # of attn; of embed, mlp and resid
    "gemma-2-2b": (2048, 2304),
    "gemma-2-9b": (4096, 3584),
    "gemma-2-27b": (4096, 4608),
}
BILLIONS = {"gemma-2-2b": 2.61, "gemma-2-9b": 9.24, "gemma-2-27b": 27.23}
IDS = torch.tensor([[2, 9, 300, 41, 41, 511]])


def config_of(shape: Shape, n_layers: int, vocab: int) -> Gemma2Config:
    """The true configuration, but for layers and tokens."""
    return Gemma2Config(
        num_hidden_layers=n_layers,
        vocab_size=vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        sliding_window=shape.sliding_window,
        attn_logit_softcapping=shape.attn_softcap,
        final_logit_softcapping=shape.final_softcap,
        query_pre_attn_scalar=shape.query_pre_attn_scalar,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        dtype="bfloat16",
    )


def on_meta(config: Gemma2Config) -> Gemma2ForCausalLM:
    """The model without its weights."""
    with torch.device("meta"):
        return Gemma2ForCausalLM(config)


def random_weights(config: Gemma2Config) -> dict[str, Tensor]:
    """Cut from one pool of random numbers, again and again: a billion of them in seconds."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(4_000_037, generator=generator)  # a prime: no two rows are alike

    def random(index: int, shape: torch.Size, scale: float) -> Tensor:
        scaled = (pool.roll(99_991 * index) * scale).bfloat16()
        weight = torch.empty(shape.numel(), dtype=torch.bfloat16)
        for part in weight.split(len(scaled)):
            part.copy_(scaled[: len(part)])
        return weight.view(shape)

    def scale(name: str, shape: torch.Size) -> float:
        if "embed_tokens" in name:
            return 0.2
        if "norm" in name:
            return 1.0
        strong = 3.0 if "q_proj" in name or "k_proj" in name else 1.0  # soft-caps have work to do
        return strong * shape[-1] ** -0.5

    return {
        name: random(index, weight.shape, scale(name, weight.shape))
        for index, (name, weight) in enumerate(on_meta(config).named_parameters())
    }


@dataclass(frozen=True)
class Row:
    """A row of the model table: the model through our loader, and plain Hugging Face's logits."""

    name: str
    shape: Shape
    model: SplicedModel
    plain: Tensor


def widths(name: str) -> dict[str, int]:
    heads, residual = WIDTHS[name]
    return {"embed": residual, "attn": heads, "mlp": residual, "resid": residual}


def dictionaries(name: str) -> dict[Site, Dictionary]:
    """One of a few random latents for every site, `embed` too."""
    generator = torch.Generator().manual_seed(1)
    return {
        Site(layer, kind): Dictionary(
            W_enc=torch.randn(width, D_SAE, generator=generator) * width**-0.5,
            b_enc=torch.zeros(D_SAE),
            threshold=torch.full((D_SAE,), 0.1),
            W_dec=torch.randn(D_SAE, width, generator=generator),
            b_dec=torch.zeros(width),
            name=f"random/{kind}.{layer}",
        )
        for kind, width in widths(name).items()
        for layer in range(1 if kind == "embed" else N_LAYERS)
    }


@pytest.fixture(scope="module", params=WIDTHS)
def row(request, gemma_folder, tmp_path_factory):
    name = request.param
    config = config_of(replace(shapes()[name], d_mlp=D_MLP), N_LAYERS, VOCAB)
    folder = tmp_path_factory.mktemp(name)
    try:
        config.save_pretrained(folder)
        save_file(random_weights(config), folder / "model.safetensors", {"format": "pt"})
        for file in gemma_folder.glob("tokenizer*"):
            shutil.copy(file, folder)
        hf = Gemma2ForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="eager"
        )
        with torch.no_grad():
            plain = hf(IDS).logits
        del hf
        model = splice(load_gemma(str(folder), device="cpu"), dictionaries(name), name=name)
    finally:
        shutil.rmtree(folder)
    return Row(name, shapes()[name], model, plain)


def captured(row: Row, *names: str) -> list[Tensor]:
    """What the pass has at hook points."""
    kept: dict[str, Tensor] = {}

    def keep(x: Tensor, hook) -> None:
        kept[hook.name] = x

    bridge = row.model.bridge
    with bridge.hooks(fwd_hooks=[(name, keep) for name in names]), torch.no_grad():
        bridge(IDS)
    return [x.float() for x in kept.values()]


def test_every_name_has_a_shape():
    assert set(shapes()) == set(HUB_MODELS)
    for name in WIDTHS:
        assert shapes()[name] == shapes()[f"{name}-it"]


@pytest.mark.parametrize("name", WIDTHS)
def test_parameters_are_counted_as_hugging_face_counts_them(name):
    shape = shapes()[name]
    model = on_meta(config_of(shape, shape.n_layers, shape.vocab))
    assert shape.n_parameters == model.num_parameters()
    assert shape.n_bytes() == 2 * model.num_parameters()
    assert shape.n_parameters / 1e9 == pytest.approx(BILLIONS[name], abs=0.01)
    assert shape.z_dim == shape.n_heads * shape.head_dim


def test_every_kind_of_site_is_there_with_the_width_of_the_table(row):
    embedding, _, activations = row.model.activations(IDS)
    assert embedding.shape == (1, 6, row.shape.d_model)
    assert set(activations) == set(dictionaries(row.name))
    for site, x in activations.items():
        assert x.shape == (1, 6, widths(row.name)[site.kind])
    assert widths(row.name)["attn"] == row.shape.z_dim
    assert widths(row.name)["mlp"] == row.shape.d_model


def test_logits_are_those_of_plain_hugging_face_bit_for_bit(row):
    model = row.model

    def keep(acts, error):
        return acts, error

    assert model.dtype == torch.bfloat16
    assert torch.equal(model(IDS), row.plain)
    everywhere = dict.fromkeys(model.sites, keep)
    assert torch.equal(model.run(IDS, everywhere, downstream="freeze"), row.plain)
    frozen = model.forward(IDS, {}, freeze=Freeze(attention=True, norms=True))
    assert torch.equal(frozen, row.plain)


@pytest.mark.parametrize("layer", [0, 1])
def test_scores_are_scaled_and_capped_as_the_configuration_says(row, layer):
    """The pattern by hand from rotated queries and keys; wrong without the cap or its scale."""
    at = f"blocks.{layer}.attn"
    q, k, pattern = captured(row, f"{at}.hook_rot_q", f"{at}.hook_rot_k", f"{at}.hook_pattern")
    k = k.repeat_interleave(row.shape.n_heads // row.shape.n_kv_heads, 2)
    products = torch.einsum("bqhd,bkhd->bhqk", q, k)
    assert products.shape == pattern.shape == (1, row.shape.n_heads, 6, 6)
    causal = torch.ones(6, 6).tril().bool()

    def off(scalar: float, cap: float | None) -> float:
        """How far the logarithm of the pattern is from the one by hand, on average."""
        scores = products * scalar**-0.5
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        by_hand = scores.masked_fill(~causal, float("-inf")).log_softmax(-1)
        return (by_hand - pattern.log())[:, :, causal].abs().mean().item()

    scalar, cap = row.shape.query_pre_attn_scalar, row.shape.attn_softcap
    right = off(scalar, cap)
    other = 1.125  # 144, the scalar of 27B, is its head_dim of 128 times this
    wrong = (off(scalar, None), off(scalar, cap / 2), off(scalar * other, cap))
    wrong += (off(scalar / other, cap),)
    assert right < 0.1
    assert min(wrong) > 5 * right


def test_logits_are_capped_at_the_end(row):
    (before,) = captured(row, "unembed.hook_out")
    cap = row.shape.final_softcap
    capped = cap * torch.tanh(before / cap)
    assert before.abs().max() > cap / 2
    torch.testing.assert_close(row.plain.float(), capped, rtol=2e-2, atol=2e-2)
    assert not torch.allclose(row.plain.float(), before, rtol=0.1, atol=0.1)


def test_windows_alternate_with_full_attention(row):
    config = row.model.config
    assert config.sliding_window == row.shape.sliding_window
    assert config.layer_types == ["sliding_attention", "full_attention"]
