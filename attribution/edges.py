"""Direct effects: how much a source moves a target with every other spliced site held constant.

1. *One pass* in which every spliced site's output, and the embedding, is a leaf: the pre-activation
   of a target then depends only on sites that reach it without crossing another.
2. *One row of gradients a target*, targets of a site together:
   `J^T W_enc[:, target]` at every leaf, where J is the Jacobian of the stretch of model between.
3. *One product a source*: `acts . W_dec[source] . J^T . W_enc[:, target]`; errors and tokens with
   their vectors in the place of `acts . W_dec`, biases with `b_dec`, summed over positions.

A target's gradient never travels beyond its direct predecessors. Where no attention lies between,
positions do not mix, and one backward row carries a target at every position.

A transcoder cuts the model where its MLP writes, and reads what the MLP reads: with one at every
layer, no MLP lies between any two sites. What its skip connection writes, `x_in @ W_skip`, is no
node but part of the stretch between sites (as in circuit-tracer): it is added to the leaf with its
gradient, so that what lies below the transcoder reaches across it to what lies above.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.gradients import checked
from attribution.metrics import AtLast, Score
from circuits import BiasNode, ErrorNode, LatentNode, LogitNode, Node, Site, SplicedModel, TokenNode
from circuits.active import Active, constant, write_active
from circuits.freeze import Freeze
from circuits.splice import SiteHook


@dataclass(frozen=True)
class LocalPass:
    """A pass cut at every spliced site.

    Attributes:
        inputs: What each site reads, `[1, pos, d_in]`, a function of the leaves below it.
        leaves: What each site writes, `[1, pos, d_out]`; under `None` the scaled embedding.
        score: The metric, `[1]`.
        reads: Where dictionaries read, `[pos]`.
    """

    inputs: Mapping[Site, Tensor]
    leaves: Mapping[Site | None, Tensor]
    score: Tensor
    reads: Tensor


def local_pass(model: SplicedModel, ids: Tensor, score: Score, freeze: Freeze) -> LocalPass:
    """Phase 1."""
    inputs: dict[Site, Tensor] = {}
    leaves: dict[Site | None, Tensor] = {}
    reads = model.reads(ids)

    def cut(site: Site | None) -> SiteHook:
        def hook(read: Tensor, written: Tensor) -> Tensor:
            leaves[site] = written.detach().requires_grad_()
            if site is None:
                return leaves[site]
            inputs[site] = read
            if not model.dictionaries.summary(site).has_skip:
                return leaves[site]
            skip = (model.dictionaries[site].skip(read) * reads[..., None]).to(written.dtype)
            return leaves[site] + (skip - skip.detach())  # no value of its own: the leaf has it

        return hook

    with torch.enable_grad():
        hooks = {site: cut(site) for site in model.sites}
        last = isinstance(score, AtLast)
        logits = model.forward(ids, hooks, freeze=freeze, embedding=cut(None), last_only=last)
        values = checked(score(logits), 1)
    return LocalPass(inputs, leaves, values, reads[0])


@dataclass(frozen=True)
class Sources:
    """The nodes at one leaf, and where each stands among all nodes.

    Attributes:
        pos: Positions of the latents, `[n]`.
        acts: Their activations, `[n]`.
        reads: Their columns of the encoder, `[n, d_in]`, in the dictionary's dtype.
        biases: Their encoder biases, `[n]`.
        writes: Their rows of the decoder, `[n, d_out]`, in the dictionary's dtype.
        latent_at: Their indices among all nodes, `[n]`.
        vectors: One vector a position, `[pos, d]`: the error, or the embedding.
        vector_at: Index of that node at each position, `[pos]`.
        bias: `b_dec` where the dictionary reads, `[pos, d]`, with the index `bias_at`; at the
            embedding, which has none, zeros and -1.
    """

    pos: Tensor
    acts: Tensor
    reads: Tensor
    biases: Tensor
    writes: Tensor
    latent_at: Tensor
    vectors: Tensor
    vector_at: Tensor
    bias: Tensor
    bias_at: int


def find_sources(
    model: SplicedModel, nodes: Sequence[Node], acts: Tensor, cut: LocalPass
) -> dict[Site | None, Sources]:
    """The sources among `nodes`, leaf by leaf; each dictionary is read once, at these latents.

    An error's vector is what the site writes less its bias, its skip connection and the latents
    *that are among the nodes*: latents left out of the graph are carried by their error node, so
    that sums close.
    """
    index = {node: i for i, node in enumerate(nodes)}
    sources: dict[Site | None, Sources] = {}
    for site, leaf in cut.leaves.items():
        x = leaf.detach()[0].float()
        device = x.device
        n_pos = len(x)
        if site is None:
            none = torch.empty(0, dtype=torch.long, device=device)
            at = torch.tensor([index[TokenNode(p)] for p in range(n_pos)], device=device)
            no, zeros = x[:0], torch.zeros_like(x)
            sources[site] = Sources(none, no[:, 0], no, no[:, 0], no, none, x, at, zeros, -1)
            continue
        dictionary = model.dictionaries[site]
        chosen = [n for n in nodes if isinstance(n, LatentNode) and n.site == site]
        latents = torch.tensor([n.latent for n in chosen], dtype=torch.long, device=device)
        pos = torch.tensor([n.pos for n in chosen], dtype=torch.long, device=device)
        columns, biases = dictionary.W_enc.T[latents], dictionary.b_enc[latents].float()
        at = torch.tensor([index[n] for n in chosen], dtype=torch.long)
        on = acts[at].to(device)
        bias = dictionary.b_dec.float() * cut.reads[:, None]
        fixed = constant(dictionary, cut.inputs[site].detach()[0].float()).float()
        fixed = fixed * cut.reads[:, None]
        written, _ = write_active(dictionary.W_dec, Active(pos, latents, on), n_pos)
        sources[site] = Sources(
            pos,
            on,
            columns,
            biases,
            dictionary.W_dec[latents],
            at.to(device),
            x - fixed - written.float(),
            torch.tensor([index[ErrorNode(site, p)] for p in range(n_pos)], device=device),
            bias,
            index[BiasNode(site)],
        )
    return sources


@torch.enable_grad()
def direct_effects(
    model: SplicedModel,
    nodes: Sequence[Node],
    acts: Tensor,
    cut: LocalPass,
    *,
    batch_size: int = 128,
) -> Tensor:
    """The edges between `nodes`, sparse `[target, source]`, float32 on the CPU.

    Entry `[t, s]` is the direct effect of node `s` on the pre-activation of latent `t`, or on the
    metric if `t` is the logit node. The entry of a latent and its own site's bias node is `b_enc`.

    Args:
        model: The spliced model.
        nodes: Every token, bias and error node of the prompt, the chosen latents, one logit node.
        acts: The activation of each latent among them, `[n]`.
        cut: From `local_pass`.
        batch_size: Targets of one backward pass.
    """
    assert isinstance(nodes[-1], LogitNode)
    sources = find_sources(model, nodes, acts, cut)
    blocks = [(torch.tensor([len(nodes) - 1]), _metric_row(sources, cut, len(nodes)))]
    total = sum(len(sources[site].pos) for site in model.sites)
    with tqdm(total=total, desc="edges", unit="latent", disable=None, delay=1) as bar:
        for site in model.sites:
            targets = sources[site]
            if not len(targets.pos):
                continue
            backward_row = _backward_rows(targets.pos, site, cut.leaves.keys())
            for chunk in backward_row.argsort(stable=True).split(batch_size):
                rows = _latent_rows(site, chunk, backward_row[chunk], sources, cut, len(nodes))
                blocks.append((targets.latent_at[chunk].cpu(), rows))
                bar.update(rows.shape[0])
    to = torch.cat([at[rows.indices()[0]] for at, rows in blocks])
    source = torch.cat([rows.indices()[1] for _, rows in blocks])
    weight = torch.cat([rows.values() for _, rows in blocks])
    edges = torch.sparse_coo_tensor(
        torch.stack([to, source]), weight, (len(nodes), len(nodes)), check_invariants=True
    )
    return edges.coalesce()


def _metric_row(sources: Mapping[Site | None, Sources], cut: LocalPass, n_nodes: int) -> Tensor:
    """Phases 2 and 3 for the metric: edges `[1, n_nodes]`, sparse."""
    grads = torch.autograd.grad(
        cut.score.sum(), list(cut.leaves.values()), allow_unused=True, retain_graph=True
    )
    rows = [None if grad is None else grad[None] for grad in grads]
    return _products(dict(zip(cut.leaves, rows, strict=True)), sources, n_nodes).to_sparse().cpu()


def _backward_rows(pos: Tensor, site: Site, leaves: Collection[Site | None]) -> Tensor:
    """Which row of a batched backward pass each target `pos [n]` of `site` goes into, `[n]`.

    Where positions do not mix between the site and the leaves, targets at different positions
    share a row: the gradient at a position is that of the target there.
    """
    if _mixes_positions(site, leaves):
        return torch.arange(len(pos), device=pos.device)
    order = pos.argsort(stable=True)
    counts = torch.bincount(pos)
    first = (counts.cumsum(0) - counts)[pos[order]]
    rows = torch.empty_like(pos)
    rows[order] = torch.arange(len(pos), device=pos.device) - first  # the n-th at its position
    return rows


def _mixes_positions(site: Site, leaves: Collection[Site | None]) -> bool:
    """Whether attention lies between `site` and the leaves below it."""
    if site.kind == "attn":
        return True
    for layer in range(site.layer, -1, -1):  # down the residual stream, to where it is cut
        if Site(layer, "attn") not in leaves:
            return True
        if layer and Site(layer - 1, "resid") in leaves:
            return False
    return False


def _latent_rows(
    site: Site,
    chunk: Tensor,
    backward_row: Tensor,
    sources: Mapping[Site | None, Sources],
    cut: LocalPass,
    n_nodes: int,
) -> Tensor:
    """Phases 2 and 3 for the targets `chunk [k]` of one site: edges `[k, n_nodes]`, sparse."""
    targets, x = sources[site], cut.inputs[site]
    pos = targets.pos[chunk]
    used, row = backward_row.unique(return_inverse=True)
    seeds = x.new_zeros(len(used), *x.shape)
    seeds[row, 0, pos] = targets.reads[chunk].to(x.dtype)
    below = [leaf for leaf in cut.leaves if leaf is None or leaf < site]
    grads = torch.autograd.grad(
        x,
        [cut.leaves[leaf] for leaf in below],
        seeds,
        is_grads_batched=True,
        allow_unused=True,
        retain_graph=True,
    )
    if len(used) < len(pos):
        grads = [None if grad is None else _unpack(grad, row, pos) for grad in grads]
    edges = _products(dict(zip(below, grads, strict=True)), sources, n_nodes)
    edges[:, targets.bias_at] += targets.biases[chunk]
    return edges.to_sparse().cpu()


def _unpack(grad: Tensor, row: Tensor, pos: Tensor) -> Tensor:
    """A row a target, `[k, 1, pos, d]`, from rows that targets at different positions share."""
    alone = grad.new_zeros(len(pos), *grad.shape[1:])
    target = torch.arange(len(pos), device=pos.device)
    alone[target, 0, pos] = grad[row, 0, pos]
    return alone


def _products(
    grads: Mapping[Site | None, Tensor | None],
    sources: Mapping[Site | None, Sources],
    n_nodes: int,
) -> Tensor:
    """Phase 3: edges `[k, n_nodes]` from gradients `[k, 1, pos, d]` at the leaves."""
    reached = {leaf: grad[:, 0].float() for leaf, grad in grads.items() if grad is not None}
    some = next(iter(reached.values()))
    edges = some.new_zeros(len(some), n_nodes)
    for leaf, grad in reached.items():  # a leaf without gradient: every path crosses another site
        source = sources[leaf]
        edges[:, source.vector_at] = (grad * source.vectors).sum(-1)
        if leaf is None:
            continue
        edges[:, source.bias_at] = (grad * source.bias).sum((1, 2))
        for pos in source.pos.unique():
            here = source.pos == pos
            reach = grad[:, pos] @ source.writes[here].float().T
            edges[:, source.latent_at[here]] = reach * source.acts[here]
    return edges
