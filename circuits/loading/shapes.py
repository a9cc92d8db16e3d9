"""The sizes of the Gemma 2 models, known before anything is downloaded."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).parents[1] / "data" / "gemma2_shapes.json"


@dataclass(frozen=True)
class Shape:
    """What a Gemma 2's `config.json` says.

    Attributes:
        n_layers: Layers, of three sites each.
        d_model: Width of the residual stream: of the sites `embed`, `mlp` and `resid`.
        n_heads: Attention heads, `head_dim` wide each.
        n_kv_heads: Heads of keys and values; several query heads share one.
        head_dim: Width of a head.
        z_dim: All heads side by side: the width of the site `attn`.
        d_mlp: Width inside the MLP.
        vocab: Tokens.
        sliding_window: How far back every other layer's attention reaches.
        attn_softcap: Attention scores stay within plus and minus this.
        final_softcap: Logits stay within plus and minus this.
        query_pre_attn_scalar: Attention scores are divided by its root.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    z_dim: int
    d_mlp: int
    vocab: int
    sliding_window: int
    attn_softcap: float
    final_softcap: float
    query_pre_attn_scalar: int

    @property
    def n_parameters(self) -> int:
        """Weights of the whole model; the unembedding is the embedding."""
        attention = 2 * (self.n_heads + self.n_kv_heads) * self.head_dim * self.d_model
        mlp = 3 * self.d_model * self.d_mlp
        norms = 4 * self.d_model
        layers = self.n_layers * (attention + mlp + norms)
        return self.vocab * self.d_model + layers + self.d_model

    def n_bytes(self, itemsize: int = 2) -> int:
        """What the weights take in memory, at `itemsize` bytes each (2: bfloat16, 4: float32)."""
        return self.n_parameters * itemsize


@cache
def shapes() -> dict[str, Shape]:
    """The shape of every Gemma 2 by name: `gemma-2-2b`, `gemma-2-2b-it`, ..."""
    models = json.loads(FILE.read_text())["models"]
    return {
        name + suffix: Shape(**sizes) for name, sizes in models.items() for suffix in ("", "-it")
    }
