"""Writes what circuit-tracer itself has as edges between transcoder latents.

- `fixtures/circuit_tracer.npz`: a random model with random transcoders. Their weights are rounded
  to float16, in which they are saved, so that both sides have the same numbers.
- `fixtures/circuit_tracer_cross_layer.npz`: the same model with cross-layer transcoders, which read
  the residual stream or the MLP's normalised input; beside it their folders, by circuit-tracer.
- `fixtures/circuit_tracer_bundled.npz`: the bundled model with the transcoders trained for it, both
  read from their folder.

Needs an environment of its own (`pip install circuit-tracer==0.5.0 torch==2.13.0`); run it from the
root of the repository: `python tests/attribution/make_circuit_tracer_fixture.py`. circuit-tracer
computes in float64.
"""

# of another environment, with other versions:
# pyright: reportMissingImports=false, reportCallIssue=false

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from circuit_tracer import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from tokenizers import Tokenizer
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gemma_weights
from transformers import Gemma2Config, Gemma2ForCausalLM

D_SAE = 14
CONFIG = {
    "vocab_size": 12,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "query_pre_attn_scalar": 6,
    "sliding_window": 3,
    "max_position_embeddings": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
CASES = {
    # the first token is never read by circuit-tracer, but its skip connections act there: with a
    # first token that is no BOS, they act there in both
    "relu": {"tokens": [2, 5, 9, 4, 5], "threshold": False, "skip": False},
    "jumprelu": {"tokens": [2, 7, 4, 11, 8], "threshold": True, "skip": False},
    "relu_skip": {"tokens": [6, 5, 9, 4, 5], "threshold": False, "skip": True},
    "jumprelu_skip": {"tokens": [6, 7, 4, 11, 8], "threshold": True, "skip": True},
}
CROSS_LAYER_CASES = {
    "relu": {"tokens": [2, 5, 9, 4, 5], "threshold": False, "reads": "hook_resid_mid"},
    "jumprelu": {"tokens": [2, 7, 4, 11, 8], "threshold": True, "reads": "ln2.hook_normalized"},
}
LOGITS = [3, 10]

BUNDLED = Path(__file__).parents[2] / "circuits" / "bundled" / "tiny"
PROMPTS = {
    # and what the bundled model answers; no latent is within 1e-4 of its threshold, so that in
    # float32 the same ones are on
    "ioi": ("when Mary and John went to the store , John gave a drink to", "Mary"),
    "agreement": ("the doctors that the drivers greet", "remember"),
}
FIXTURES = Path(__file__).parent / "fixtures"


def random_model(rng: np.random.Generator) -> tuple[Gemma2ForCausalLM, dict[str, np.ndarray]]:
    """A Gemma 2 in float64, and its weights by their Hugging Face names."""
    config = Gemma2Config(**CONFIG, attn_implementation="eager")  # the one with soft-capped scores
    model = Gemma2ForCausalLM(config).double()
    weights = {}
    for name, weight in model.named_parameters():
        scale = 0.2 if weight.ndim == 1 else 0.4
        weights[name] = (rng.normal(size=tuple(weight.shape)) * scale).astype(np.float16)
        weight.data = torch.from_numpy(weights[name]).double()
    return model, weights


def random_transcoder(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Gemma Scope's arrays and a skip connection `[d_in, d_out]`."""
    d = CONFIG["hidden_size"]
    arrays = {
        "W_enc": rng.normal(size=(d, D_SAE)) * 0.3,
        "b_enc": rng.normal(size=D_SAE) * 0.1,
        "threshold": rng.uniform(0.3, 1.0, size=D_SAE),
        "W_dec": rng.normal(size=(D_SAE, d)) * 0.2,
        "b_dec": rng.normal(size=d) * 0.1,
        "W_skip": rng.normal(size=(d, d)) * 0.2,
    }
    return {key: array.astype(np.float16) for key, array in arrays.items()}


def as_set(layers: list[dict[str, np.ndarray]], *, threshold: bool, skip: bool) -> TranscoderSet:
    """circuit-tracer's transcoders, with `W_enc` `[d_sae, d_in]` and `W_skip` `[d_out, d_in]`."""
    made = {}
    for layer, arrays in enumerate(layers):
        t = {key: torch.from_numpy(array).double() for key, array in arrays.items()}
        d, d_sae = t["W_enc"].shape
        switch = JumpReLU(t["threshold"], 0.1) if threshold else torch.relu
        made[layer] = SingleLayerTranscoder(
            d,
            d_sae,
            switch,
            layer,
            skip_connection=skip,
            device=torch.device("cpu"),
            dtype=torch.float64,
        )
        made[layer].W_enc.data = t["W_enc"].T.contiguous()
        for key in ("b_enc", "W_dec", "b_dec"):
            getattr(made[layer], key).data = t[key]
        if skip:
            made[layer].W_skip.data = t["W_skip"].T.contiguous()
    return TranscoderSet(made, "ln2.hook_normalized", "hook_mlp_out")


def random_cross_layer(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Layer by layer circuit-tracer's arrays, as it saves them but for the layer in their names."""
    d, n_layers = CONFIG["hidden_size"], CONFIG["num_hidden_layers"]
    layers = []
    for layer in range(n_layers):
        arrays = {
            "W_enc": rng.normal(size=(D_SAE, d)) * 0.3,
            "b_enc": rng.normal(size=D_SAE) * 0.1,
            "threshold": rng.uniform(0.3, 1.0, size=D_SAE),
            "W_dec": rng.normal(size=(D_SAE, n_layers - layer, d)) * 0.2,
            "b_dec": rng.normal(size=d) * 0.1,
        }
        layers.append({key: array.astype(np.float16) for key, array in arrays.items()})
    return layers


def as_cross_layer(
    layers: list[dict[str, np.ndarray]], *, threshold: bool, reads: str
) -> CrossLayerTranscoder:
    """circuit-tracer's own module."""
    made = CrossLayerTranscoder(
        len(layers),
        D_SAE,
        CONFIG["hidden_size"],
        activation_function="jump_relu" if threshold else "relu",
        lazy_decoder=False,
        feature_input_hook=reads,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    for layer, arrays in enumerate(layers):
        t = {key: torch.from_numpy(array).double() for key, array in arrays.items()}
        for key in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(made, key)[layer].data.copy_(t[key])
        if threshold:
            made.activation_function.threshold[layer].data.copy_(t["threshold"][None])
    return made


def replacement_model(
    huggingface: Gemma2ForCausalLM,
    transcoders: TranscoderSet | CrossLayerTranscoder,
    first_token: int,
) -> TransformerLensReplacementModel:
    """circuit-tracer's model; it takes the first token for a special one, as it must."""
    of = huggingface.config
    assert of.layer_types is not None
    config = HookedTransformerConfig(
        d_model=of.hidden_size,
        d_head=of.head_dim,
        n_heads=of.num_attention_heads,
        n_key_value_heads=of.num_key_value_heads,
        d_mlp=of.intermediate_size,
        n_layers=of.num_hidden_layers,
        n_ctx=of.max_position_embeddings,
        d_vocab=of.vocab_size,
        eps=of.rms_norm_eps,
        act_fn="gelu_pytorch_tanh",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_base=10000,
        rotary_dim=of.head_dim,
        rotary_adjacent_pairs=False,
        use_attn_scale=True,
        use_local_attn=True,
        window_size=of.sliding_window,
        attn_types=["global" if kind == "full_attention" else "local" for kind in of.layer_types],
        attn_scores_soft_cap=of.attn_logit_softcapping,
        output_logits_soft_cap=of.final_logit_softcapping,
        gated_mlp=True,
        final_rms=True,
        use_normalization_before_and_after=True,
        model_name="gemma-2",
        dtype=torch.float64,
        device="cpu",
    )
    model = TransformerLensReplacementModel(config)
    weights = convert_gemma_weights(huggingface, config)
    unused = model.load_state_dict(
        {name: weight.double() for name, weight in weights.items()}, strict=False
    )
    assert not unused.unexpected_keys
    buffers = ("mask", "IGNORE", "rotary_sin", "rotary_cos", "b_K", "b_V")
    assert all(name.endswith(buffers) for name in unused.missing_keys), unused.missing_keys
    model._configure_replacement_model(transcoders)
    model.tokenizer = SimpleNamespace(
        decode=str,
        vocab_size=of.vocab_size,
        all_special_ids=[first_token],
        padding_side="right",
    )
    return model


def trace(
    huggingface: Gemma2ForCausalLM,
    transcoders: TranscoderSet | CrossLayerTranscoder,
    ids: list[int],
    logits: list[int],
) -> dict[str, np.ndarray]:
    """circuit-tracer's matrix of all active features, once its logits are Hugging Face's."""
    tokens = torch.tensor(ids)
    model = replacement_model(huggingface, transcoders, ids[0])
    with torch.no_grad():
        expected = huggingface(tokens[None]).logits
    torch.testing.assert_close(model(tokens[None]), expected, rtol=1e-6, atol=1e-6)
    graph = attribute(tokens, model, attribution_targets=torch.tensor(logits), batch_size=16)
    matrix = graph.adjacency_matrix
    assert len(graph.selected_features) == len(graph.active_features)
    target, source = matrix.nonzero(as_tuple=True)
    print(tuple(matrix.shape), len(graph.active_features), len(target))
    return {
        "shape": np.array(matrix.shape, dtype=np.int16),
        "target": target.numpy().astype(np.int16),
        "source": source.numpy().astype(np.int16),
        "weight": matrix[target, source].numpy().astype(np.float32),
        "features": graph.active_features.numpy().astype(np.int16),
        "acts": graph.activation_values.detach().numpy().astype(np.float32),
    }


def save(name: str, saved: dict[str, np.ndarray], about: dict) -> None:
    saved["about"] = np.array(json.dumps({"circuit_tracer": "0.5.0", **about}))
    FIXTURES.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURES / name, **saved)  # pyright: ignore[reportArgumentType]


def save_random() -> None:
    rng = np.random.default_rng(0)
    huggingface, weights = random_model(rng)
    layers = [random_transcoder(rng) for _ in range(CONFIG["num_hidden_layers"])]
    saved = {f"model/{name}": weight for name, weight in weights.items()}
    for layer, arrays in enumerate(layers):
        saved |= {f"transcoder.{layer}/{key}": array for key, array in arrays.items()}
    for name, case in CASES.items():
        transcoders = as_set(layers, threshold=case["threshold"], skip=case["skip"])
        arrays = trace(huggingface, transcoders, case["tokens"], LOGITS)
        saved |= {f"{name}/{key}": array for key, array in arrays.items()}
    save("circuit_tracer.npz", saved, {"config": CONFIG, "cases": CASES, "logits": LOGITS})


def save_cross_layer() -> None:
    """The model is that of `save_random`."""
    huggingface, _ = random_model(np.random.default_rng(0))
    layers = random_cross_layer(np.random.default_rng(1))
    saved = {}
    for name, case in CROSS_LAYER_CASES.items():
        transcoder = as_cross_layer(layers, threshold=case["threshold"], reads=case["reads"])
        arrays = trace(huggingface, transcoder, case["tokens"], LOGITS)
        saved |= {f"{name}/{key}": array for key, array in arrays.items()}
        folder = FIXTURES / "circuit_tracer_cross_layer" / name
        transcoder.half().to_safetensors(str(folder))
        config = {
            "model_name": "random",
            "model_kind": "cross_layer_transcoder",
            "feature_input_hook": case["reads"],
            "feature_output_hook": "hook_mlp_out",
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    save("circuit_tracer_cross_layer.npz", saved, {"cases": CROSS_LAYER_CASES, "logits": LOGITS})


def bundled_transcoders(n_layers: int) -> list[dict[str, np.ndarray]]:
    """Gemma Scope's arrays, layer by layer."""
    layers = []
    for layer in range(n_layers):
        home = BUNDLED / "dictionaries" / "tiny-scope-transcoders" / f"layer_{layer}"
        (path,) = home.rglob("params.npz")
        layers.append(dict(np.load(path, allow_pickle=False)))
    return layers


def save_bundled() -> None:
    huggingface = Gemma2ForCausalLM.from_pretrained(
        BUNDLED / "model", attn_implementation="eager", dtype=torch.float64
    )
    tokenizer = Tokenizer.from_file(str(BUNDLED / "model" / "tokenizer.json"))
    layers = bundled_transcoders(huggingface.config.num_hidden_layers)
    transcoders = as_set(layers, threshold=True, skip=False)
    saved, cases = {}, {}
    for name, (text, answer) in PROMPTS.items():
        ids, logit = tokenizer.encode(text).ids, tokenizer.token_to_id(answer)
        assert ids[0] == huggingface.config.bos_token_id
        assert logit is not None
        arrays = trace(huggingface, transcoders, ids, [logit])
        saved |= {f"{name}/{key}": array for key, array in arrays.items()}
        cases[name] = {"tokens": ids, "logits": [logit]}
    save("circuit_tracer_bundled.npz", saved, {"cases": cases})


def main() -> None:
    torch.set_default_dtype(torch.float64)
    save_random()
    save_cross_layer()
    save_bundled()


if __name__ == "__main__":
    main()
