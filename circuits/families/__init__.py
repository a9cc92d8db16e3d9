"""Where each family of models has its sites: one file a family, found by being in this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import Tensor

from circuits.sites import ALL_KINDS, Site


def usual_widths(config: Any) -> dict[str, int]:
    """The residual's width everywhere but at `attn`, where it is that of all heads together."""
    by_kind: dict[str, int] = dict.fromkeys(ALL_KINDS, config.hidden_size)
    return by_kind | {"attn": config.num_attention_heads * config.head_dim}


@dataclass(frozen=True)
class Family:
    """What the rest of the project must know of a family of models.

    A path is Hugging Face's name of a module; `{layer}` stands for a layer's number.

    Attributes:
        model_type: As `config.json` has it.
        title: For messages: `Gemma 2`.
        hook_points: TransformerLens' name of what each kind of site writes; at `attn` the tensor
            there is `[batch, pos, head, d_head]`, elsewhere `[batch, pos, d]`.
        read_points: The TransformerLens name of a norm, for each kind of site that does not read
            what it writes: it reads what the norm makes of its input *before the gain*.
        norms: The path of every norm, by its TransformerLens name; the last one is `ln_final`.
        scale: What a norm multiplies `x [..., d_model]` by before the gain, `[..., 1]`, float32.
        frozen_norm: What a norm makes of `x` with its scale held constant in the backward pass;
            bit for bit what Hugging Face's module gives, hence in its order of operations.
        gain: What a norm multiplies each coordinate by, `[d_model]`, float32.
        attn_values: The path of the linear map to the values of attention.
        attn_out: The path of the linear map from the site `attn` towards the residual.
        mlp: The path of the gated MLP, with `gate_proj`, `up_proj`, `down_proj` and `act_fn`.
        attn_out_norm: The TransformerLens name of a norm after it, if there is one.
        soft_cap: The configuration's name of the bound on logits, if there is one.
        widths: Numbers a position at each kind of site, from the model's configuration.
    """

    model_type: str
    title: str
    hook_points: Mapping[str, str]
    read_points: Mapping[str, str]
    norms: Mapping[str, str]
    scale: Callable[[Any, Tensor], Tensor]
    frozen_norm: Callable[[Any, Tensor], Tensor]
    gain: Callable[[Any], Tensor]
    attn_values: str
    attn_out: str
    mlp: str
    attn_out_norm: str | None = None
    soft_cap: str | None = None
    widths: Callable[[Any], Mapping[str, int]] = usual_widths

    def hook_point(self, site: Site) -> str:
        """TransformerLens' name of what `site` writes."""
        return self.hook_points[site.kind].format(layer=site.layer)

    def read_norm(self, huggingface: Any, site: Site) -> tuple[str, Any] | None:
        """The norm whose normalised input `site` reads, if it does: TransformerLens' name, module.

        One norm alone is looked up: this is done in every pass.
        """
        name = self.read_points.get(site.kind)
        if name is None:
            return None
        path = self.norms[name].format(layer=site.layer)
        return name.format(layer=site.layer), _module(huggingface, path)

    def normalized(self, norm: Any, x: Tensor, *, frozen: bool) -> Tensor:
        """`x` over its root mean square, without the gain, in the dtype of `x`.

        TransformerLens' `hook_normalized` has these values in float32, but its gradient does not
        know whether the scale is held constant (`frozen`).
        """
        scale = self.scale(norm, x)
        return (x.float() * (scale.detach() if frozen else scale)).type_as(x)

    def norms_of(self, huggingface: Any) -> dict[str, Any]:
        """Every norm of a model by its TransformerLens name."""
        n_layers = huggingface.config.num_hidden_layers
        return {
            name.format(layer=layer): _module(huggingface, path.format(layer=layer))
            for name, path in self.norms.items()
            for layer in (range(n_layers) if "{layer}" in name else (0,))
        }

    def weight(self, huggingface: Any, path: str, layer: int) -> Tensor:
        """The weight `[d_out, d_in]` of the linear map at `path` in one layer."""
        return _module(huggingface, path.format(layer=layer)).weight

    def mlp_of(self, huggingface: Any, layer: int) -> Any:
        """The gated MLP of one layer."""
        return _module(huggingface, self.mlp.format(layer=layer))

    def capped(self, config: Any, logits: Tensor) -> Tensor:
        """`logits` as the model gives them: after its final soft-cap, if it has one."""
        cap = getattr(config, self.soft_cap) if self.soft_cap else None
        return logits if cap is None else (logits / cap).tanh() * cap

    def to_residual(self, huggingface: Any, site: Site, directions: Tensor) -> Tensor:
        """What `directions [n, width]` at a site add to the residual stream, `[n, d_model]`.

        Up to a positive factor each, where a norm lies between: its scale is left out.
        """
        if site.kind != "attn":
            return directions
        W_O = self.weight(huggingface, self.attn_out, site.layer)
        written = directions @ W_O.to(directions.dtype).T
        if self.attn_out_norm is None:
            return written
        norm = self.norms_of(huggingface)[self.attn_out_norm.format(layer=site.layer)]
        return written * self.gain(norm)


def families() -> dict[str, Family]:
    """Every family there is, by model type: the `FAMILY` of each module of this package."""
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    return {module.FAMILY.model_type: module.FAMILY for module in modules}


def family_of(huggingface: Any) -> Family:
    """The family of a Hugging Face model."""
    return families()[huggingface.config.model_type]


def _module(huggingface: Any, path: str) -> Any:
    """The Hugging Face module at `path`, also where TransformerLens has wrapped it."""
    module = huggingface
    for name in path.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    return getattr(module, "_original_component", module)
