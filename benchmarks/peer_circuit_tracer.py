"""circuit-tracer's half of `against_peers.py`.

Run by `against_peers.py` with the Python of circuit-tracer's own environment; imports nothing of
this project.
"""

# of another environment, with other versions:
# pyright: reportMissingImports=false, reportCallIssue=false

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peer_side import KEEP_EDGES, KEEP_INFLUENCE, N_ROWS, serve


class CircuitTracer:
    """circuit-tracer 0.5.0 with its TransformerLens back end."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.ids = torch.tensor(case["ids"])
        self.model = replacement_model(case)

    def graph(self, setting: float | None, max_latents: int | None = None) -> Any:
        from circuit_tracer import attribute

        return attribute(
            self.ids, self.model, batch_size=int(setting or 16), max_feature_nodes=max_latents
        )

    def prune(self, graph: Any) -> int:
        from circuit_tracer.graph import prune_graph

        pruned = prune_graph(graph, KEEP_INFLUENCE, KEEP_EDGES)
        return int(pruned.node_mask[: len(graph.selected_features)].sum())

    def sample(self, graph: Any) -> dict[str, np.ndarray]:
        latents = graph.active_features.numpy()  # in order, and all of them selected
        n, n_logits = len(latents), len(graph.logit_targets)
        assert len(graph.selected_features) == n
        chosen = np.linspace(0, n - 1, N_ROWS).round().astype(int)
        logits = graph.logit_token_ids.numpy()
        order = logits.argsort()
        matrix = graph.adjacency_matrix
        rows = matrix[[*chosen, *(len(matrix) - n_logits + order)], :-n_logits]
        return {"latents": latents, "logits": logits[order], "rows": rows.numpy()}


def replacement_model(case: dict[str, Any]) -> Any:
    """circuit-tracer's model from the Hugging Face folder and the transcoders of `case`."""
    from circuit_tracer.replacement_model.replacement_model_transformerlens import (
        TransformerLensReplacementModel,
    )
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gemma_weights
    from transformers import Gemma2ForCausalLM

    huggingface = Gemma2ForCausalLM.from_pretrained(
        case["folder"], attn_implementation="eager", dtype=torch.float32
    )
    shape = huggingface.config
    config = HookedTransformerConfig(
        d_model=shape.hidden_size,
        d_head=shape.head_dim,
        n_heads=shape.num_attention_heads,
        n_key_value_heads=shape.num_key_value_heads,
        d_mlp=shape.intermediate_size,
        n_layers=shape.num_hidden_layers,
        n_ctx=shape.max_position_embeddings,
        d_vocab=shape.vocab_size,
        eps=shape.rms_norm_eps,
        act_fn="gelu_pytorch_tanh",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_base=10000,
        rotary_dim=shape.head_dim,
        rotary_adjacent_pairs=False,
        use_attn_scale=True,
        attn_scale=shape.query_pre_attn_scalar**0.5,
        use_local_attn=True,
        window_size=shape.sliding_window,
        attn_types=["global" if layer % 2 else "local" for layer in range(shape.num_hidden_layers)],
        attn_scores_soft_cap=shape.attn_logit_softcapping,
        output_logits_soft_cap=shape.final_logit_softcapping,
        gated_mlp=True,
        final_rms=True,
        use_normalization_before_and_after=True,
        model_name="random",
        dtype=torch.float32,
        device="cpu",
    )
    model = TransformerLensReplacementModel(config)
    unused = model.load_state_dict(convert_gemma_weights(huggingface, config), strict=False)
    assert not unused.unexpected_keys
    model._configure_replacement_model(transcoders(case, shape.hidden_size))
    model.tokenizer = SimpleNamespace(
        decode=str, vocab_size=shape.vocab_size, all_special_ids=[0, 1, 2], padding_side="right"
    )
    ids = torch.tensor([case["ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), huggingface(ids).logits, rtol=1e-3, atol=1e-3)
    return model


def transcoders(case: dict[str, Any], d_model: int) -> Any:
    """circuit-tracer's transcoders, with `W_enc` `[d_sae, d_in]`."""
    from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from safetensors.torch import load_file

    made = {}
    for layer, path in enumerate(case["transcoders"]):
        arrays = load_file(path)
        d_sae = len(arrays["b_enc"])
        made[layer] = SingleLayerTranscoder(
            d_model,
            d_sae,
            JumpReLU(arrays["threshold"], 0.1),
            layer,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        made[layer].W_enc.data = arrays["W_enc"].T.contiguous()
        for key in ("b_enc", "W_dec", "b_dec"):
            getattr(made[layer], key).data = arrays[key]
    return TranscoderSet(made, "ln2.hook_normalized", "hook_mlp_out")


if __name__ == "__main__":
    serve(CircuitTracer)
