"""What sites write changed by hand: plain PyTorch hooks on the modules of Hugging Face."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from circuits import Site


@contextmanager
def plain_hooks(huggingface: Any, edits: Mapping[Site, Callable[[Tensor], Tensor]]) -> Iterator:
    """While it lasts, each edit makes of `[batch, pos, d]` at its site what goes on from there."""
    with ExitStack() as stack:
        for site, edit in edits.items():
            layer = huggingface.model.layers[site.layer]
            if site.kind == "attn":  # what W_O reads
                hook = layer.self_attn.o_proj.register_forward_pre_hook(
                    lambda _module, args, edit=edit: (edit(args[0]), *args[1:])
                )
            else:
                mlp = getattr(layer, "post_feedforward_layernorm", layer.mlp)  # Llama has no norm
                hook = (layer if site.kind == "resid" else mlp).register_forward_hook(
                    lambda _module, _args, out, edit=edit: (
                        (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)
                    )
                )
            stack.callback(hook.remove)
        yield
