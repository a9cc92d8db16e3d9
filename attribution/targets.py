"""What a graph can explain besides one logit: a latent, a direction, attention, many tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attribution.digest import digest
from attribution.metrics import Metric, Score, Targets, at_pos, logits_at
from circuits import HookPoint, LatentNode, Logits, Prompt, SiteInput, SplicedModel, UserError
from circuits.interventions import check_latent
from circuits.outputs import position
from circuits.whole_numbers import whole_number

TABLES = ("hook_pattern", "hook_attn_scores")
"""Hook points whose tensor is a table of queries by keys: it has no one position."""


def latent(node: LatentNode) -> Metric:
    """The pre-activation `x_in[pos] . W_enc[:, latent] + b_enc[latent]`, before any threshold.

    It is defined, and has a gradient, for a latent that is off too. In float32, or wider where the
    dictionary is. In a graph, `b_enc` has no edge to it: its incoming edges sum to what is left.
    At EOS, where dictionaries do not read either, it is what one that read there would see.

    Raises:
        UserError: another kind of node, or one at BOS, where dictionaries do not read.
    """
    if not isinstance(node, LatentNode):
        raise UserError(f"{node} is no latent; name one, for example mlp.3/latent.901@7")
    if node.pos < 1:
        raise UserError(f"{node}: dictionaries do not read BOS; choose a position from 1 on")

    def bound(model: SplicedModel) -> Score:
        check_latent(model, node.site, node.latent, node)
        dictionary = model.dictionaries[node.site]
        wide = torch.promote_types(dictionary.W_enc.dtype, torch.float32)
        reader = dictionary.W_enc[:, node.latent].to(wide)
        bias = dictionary.b_enc[node.latent].to(wide)

        def score(read: Tensor) -> Tensor:
            return read[:, position(node.pos, read.shape[1])].to(wide) @ reader + bias

        return score

    return Metric(str(node), bound, output=SiteInput(node.site))


def direction(hook_point: str, vector: Tensor, pos: int = -1, *, name: str | None = None) -> Metric:
    """`tensor[:, pos] . vector` at any hook point of TransformerLens: a probe, a steering vector.

    The tensor is what the model makes there, before a dictionary at the same place replaces it.

    Args:
        hook_point: For example `blocks.3.hook_resid_post`.
        vector: Of the shape of the tensor at one position: `[d_model]`, or `[head, d_head]`; a flat
            one of as many numbers will do.
        pos: The position; negative ones count from the end.
        name: Of the metric, without the position; by default it says the hook point and 8 digits
            that tell the vector from others.

    Raises:
        UserError: a hook point without positions, or a vector of zeros. When the metric is read:
            one that the model does not have, or a vector of another shape than the tensor.
    """
    if not isinstance(vector, Tensor) or not vector.is_floating_point():
        came = vector.dtype if isinstance(vector, Tensor) else type(vector).__name__
        raise UserError(f"a direction is a tensor of floating-point numbers; got {came}")
    if not vector.any():
        raise UserError(
            f"a direction of {vector.numel()} zeros measures nothing; give one with a length"
        )
    if not isinstance(hook_point, str):
        raise UserError(
            f"a hook point is a name, such as blocks.3.hook_resid_post; got {hook_point!r}"
        )
    if hook_point.endswith(TABLES):
        raise UserError(f"{hook_point} is a table of queries by keys; give attention_score(...)")

    def score(tensor: Tensor) -> Tensor:
        here = tensor[:, position(pos, tensor.shape[1])]
        if vector.shape not in (here.shape[1:], (here[0].numel(),)):
            raise UserError(
                f"a direction of shape {list(vector.shape)}; {hook_point} has "
                f"{list(here.shape[1:])} at each position"
            )
        wide = torch.promote_types(torch.promote_types(here.dtype, vector.dtype), torch.float32)
        return here.flatten(1).to(wide) @ vector.detach().flatten().to(here.device, wide)

    which = digest(vector.flatten().tolist())[:8]
    label = at_pos(name or f"direction #{which} at {hook_point}", pos)
    return Metric(label, lambda model: score, output=HookPoint(hook_point))


def attention_score(layer: int, head: int, query: int, key: int) -> Metric:
    """How much one head's query at one position asks for the key at another, before the softmax.

        score = scaling * q[query] . k[key]

    with rotary position embedding in both, before Gemma 2's soft-cap of attention scores, which
    it grows with. What bears on the head's attention pattern bears on it through such scores.

    Args:
        layer: Counted from 0.
        head: A query head, counted from 0; its keys may be shared with others.
        query: The position that attends; negative ones count from the end.
        key: The position attended to; not after `query`.

    Raises:
        UserError: when the metric is read: no such layer, head or position, or a key that the
            query does not see.
    """

    def bound(model: SplicedModel) -> Score:
        shared, scaling, window = head_of(model, layer, head)

        def score(read: tuple[Tensor, Tensor]) -> Tensor:
            q, k = read  # [batch, pos, head, d_head]
            n_pos = q.shape[1]
            at, to = position(query, n_pos), position(key, n_pos)
            if to > at or (window is not None and at - to >= window):
                sees = "no later one" if window is None or to > at else f"the last {window} alone"
                raise UserError(
                    f"head {layer}.{head} at position {at} does not see position {to}; "
                    f"it sees {sees}"
                )
            return (q[:, at, head].float() * k[:, to, shared].float()).sum(-1) * scaling

        return score

    return Metric(f"attention {layer}.{head} {query}→{key}", bound, output=queries_and_keys(layer))


def queries_and_keys(layer: int) -> tuple[HookPoint, HookPoint]:
    """Both as they meet, with rotary position embedding: `[batch, pos, head, d_head]` each."""
    place = f"blocks.{layer}.attn"
    return HookPoint(f"{place}.hook_rot_q"), HookPoint(f"{place}.hook_rot_k")


def head_of(model: SplicedModel, layer: int, head: int) -> tuple[int, float, int | None]:
    """Which keys a query head reads, what its scores are scaled by, and its window if it has one.

    Raises:
        UserError: no such layer or head.
    """
    n_heads = model.config.num_attention_heads
    if not isinstance(layer, int) or not isinstance(head, int):
        raise UserError(f"layer={layer!r}, head={head!r}; give their numbers")
    if not 0 <= layer < model.n_layers or not 0 <= head < n_heads:
        raise UserError(
            f"no head {layer}.{head}; {model.name} has layers 0-{model.n_layers - 1} "
            f"of heads 0-{n_heads - 1}"
        )
    attention: Any = model.bridge.blocks[layer].attn.original_component  # pyright: ignore
    shared = head * model.config.num_key_value_heads // n_heads  # several heads share a key
    return shared, attention.scaling, getattr(attention, "sliding_window", None)


def top_logits(
    model: SplicedModel,
    prompt: str | Prompt,
    *,
    share: float = 0.95,
    at_most: int = 10,
    pos: int = -1,
) -> Targets:
    """The most likely next tokens, weighted by their probabilities.

    Each is read as its logit before the final soft-cap less the mean of all logits: what moves all
    alike moves no probability. These are the outputs that circuit-tracer's graphs explain.

    Args:
        model: The spliced model.
        prompt: One text.
        share: As many tokens as it takes for their probabilities to sum to this.
        at_most: No more tokens than this, whatever their share.
        pos: The position whose next token is meant; negative ones count from the end.

    Raises:
        UserError: `share` not above 0 and at most 1, `at_most` below 1, or several prompts.
    """
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise UserError(f"share={share!r}; choose a share above 0 and at most 1")
    at_most = whole_number("at_most", at_most)
    ids = model.tokens(prompt)
    if len(ids) != 1:
        raise UserError(f"the most likely tokens are of one prompt; got {len(ids)}")
    logits = logits_at(model.run(ids, output=Logits(pos)), pos)[0]
    p, tokens = logits.float().softmax(-1).topk(min(at_most, len(logits)))
    before = p.cumsum(0) - p  # of the tokens that are likelier
    chosen = tokens[before < share]
    words = model.words(chosen)
    names = [
        f"logit {word if word.isprintable() else repr(word)}"
        + (f" (token {token})" if words.count(word) > 1 else "")  # bytes may look alike
        for word, token in zip(words, chosen.tolist(), strict=True)
    ]
    metrics = [
        _centred_logit(name, token, pos) for name, token in zip(names, chosen.tolist(), strict=True)
    ]
    return Targets(tuple(metrics), tuple(p[: len(chosen)].tolist()))


def _centred_logit(name: str, token: int, pos: int) -> Metric:
    """A token's logit before the soft-cap less the mean of all tokens' logits."""

    def score(logits: Tensor) -> Tensor:
        here = logits_at(logits, pos).float()
        return here[:, token] - here.mean(-1)

    output = Logits(pos, soft_capped=False)
    return Metric(at_pos(f"{name} - mean", pos), lambda model: score, output=output)
