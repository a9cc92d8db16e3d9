"""An edge is what an intervention measures; edges sum to pre-activations and chain to effects."""

import pytest
import torch

from attribution import attribute, logit_diff
from attribution.edges.local_pass import local_pass
from attribution.metrics import bind
from circuits import (
    KINDS,
    BiasNode,
    ErrorNode,
    LatentNode,
    LogitNode,
    Site,
    TokenNode,
    splice,
)
from circuits.freeze import Freeze
from tests.random_gemma import TEXT, chosen_dictionaries, random_dictionaries

METRIC = logit_diff("w3", "w4")
CHOICES = [KINDS, ("attn", "mlp"), ("mlp", "resid"), ("attn",), ("mlp",), ("resid",)]
CHOICES += [("transcoder",), ("skip",), ("attn", "transcoder", "resid"), ("attn", "skip")]


@pytest.fixture(scope="module", params=["bridge", "llama_bridge"], ids=["gemma2", "llama"])
def some_bridge(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=CHOICES, ids="+".join)
def some(request, some_bridge):
    """A model with some kinds of site spliced."""
    return splice(some_bridge, chosen_dictionaries(request.param), name="random")


def dense(a):
    return torch.from_numpy(a.edges.toarray())


def is_target(node):
    return isinstance(node, LatentNode | LogitNode)


@pytest.mark.parametrize("max_latents", [None, 100])
def test_where_the_stretch_is_linear_edges_sum_to_the_pre_activation(some, max_latents):
    """Norms and patterns frozen, no MLP between: also when latents are left out of the graph.

    With transcoders no MLP lies between any two sites, nor between a site and the metric.
    """
    a = attribute(some, TEXT, METRIC, max_latents=max_latents, norms="frozen")
    kinds = {site.kind for site in some.sites}
    sums = dense(a).double().sum(1)
    activations = some.activations(some.tokens(TEXT))[1]
    tested = 0
    for i, node in enumerate(a.nodes):
        if not isinstance(node, LatentNode):
            continue
        behind_an_mlp = node.site.kind == "mlp" or (
            kinds.isdisjoint({"mlp", "transcoder"})
            and (node.site.layer > 0 or node.site.kind == "resid")
        )
        if behind_an_mlp:
            continue
        d = some.dictionaries[node.site]
        pre = d.pre_acts(activations[node.site][0, node.pos])[node.latent].item()
        assert sums[i].item() == pytest.approx(pre, rel=1e-4, abs=1e-5)
        tested += 1
    linear = not kinds.isdisjoint({"attn", "transcoder"}) or kinds == {"mlp", "resid"}
    assert bool(tested) == linear


@pytest.mark.parametrize("setting", ["frozen", "live"])
def test_the_chain_of_all_edges_is_the_frozen_total_effect(some, setting):
    """Neumann series over the unpruned graph against autograd, for every node."""
    a = attribute(
        some, TEXT, METRIC, max_latents=None, downstream="freeze", attention=setting, norms=setting
    )
    edges = dense(a).double()
    acts = a.acts.double()
    through = torch.tensor([isinstance(node, LatentNode) for node in a.nodes])
    arriving = torch.zeros(len(a.nodes), dtype=torch.double)
    arriving[-1] = 1.0  # at the metric
    total = torch.zeros_like(arriving)
    for _ in range(len(some.sites) + 2):
        step = arriving @ edges  # effect of every source over one more edge
        total += step
        arriving = torch.where(through, step / acts, 0.0)  # per unit of activation
    assert arriving.abs().max() == 0
    effects = a.effects.double()
    scale = effects[:-1].abs().max()
    assert (total[:-1] - effects[:-1]).abs().max() < 1e-4 * scale


def clean_values(model, ids, freeze):
    """Patterns and norms' inputs of the clean run, as far as they are frozen."""
    kept = {}

    def keep(x, hook):
        kept[hook.name] = x.detach()

    names = [n for n in model.bridge.hook_dict if n.endswith((".hook_pattern", ".hook_in"))]
    norms = [n.removesuffix("_normalized") for n in model.bridge.hook_dict if "_normalized" in n]
    patterns = [n for n in names if n.endswith(".hook_pattern") and freeze.attention]
    inputs = [n for n in names if n.removesuffix("_in") in norms and freeze.norms]
    names = [*patterns, *inputs]
    with model.bridge.hooks(fwd_hooks=[(n, keep) for n in names]), torch.no_grad():
        model.bridge(ids)
    return kept


def held(model, kept, normalized):
    """Hooks that put the clean patterns and norm scales in the place of the pass's own.

    What held norms make of their input, without the gain, is put into `normalized`.
    """
    hooks = []
    for name, clean in kept.items():
        if name.endswith("hook_pattern"):
            hooks.append((name, lambda x, hook, clean=clean: clean))
            continue
        norm = name.removesuffix(".hook_in")
        eps = model.config.rms_norm_eps
        factor = torch.rsqrt(clean.pow(2).mean(-1, keepdim=True) + eps)
        inputs = {}
        hooks.append((name, lambda x, hook, inputs=inputs: inputs.update(x=x)))

        def out(y, hook, inputs=inputs, factor=factor, norm=norm):
            normalized[norm] = inputs["x"] * factor
            return normalized[norm] * gain(model, norm)

        hooks.append((f"{norm}.hook_out", out))
    return model.bridge.hooks(fwd_hooks=hooks)


def gain(model, norm):
    """What the Hugging Face module multiplies a vector of ones by."""
    module = model.bridge.get_submodule(norm).original_component
    ones = torch.ones(model.config.hidden_size)
    return module(ones) * (1 + model.config.rms_norm_eps) ** 0.5


def vector_of(model, a, node, cut):
    """What the node adds at its leaf: leaf, vector `[pos, d]`; straight from the definitions."""
    if isinstance(node, TokenNode):
        site, whole = None, cut.leaves[None].detach()[0]
    else:
        site = node.site
        dictionary = model.dictionaries[site]
        bias = dictionary.b_dec * cut.reads[:, None]
        acts = torch.zeros(len(cut.reads), dictionary.d_sae)
        for other, act in zip(a.nodes, a.acts.tolist(), strict=True):
            if isinstance(other, LatentNode) and other.site == site:
                acts[other.pos, other.latent] = act
        if isinstance(node, BiasNode):
            return site, bias
        if isinstance(node, LatentNode):
            whole = acts[:, node.latent, None] * dictionary.W_dec[node.latent]
        else:
            whole = cut.leaves[site].detach()[0] - acts @ dictionary.W_dec - bias
            if dictionary.W_skip is not None:
                read = cut.inputs[site].detach()[0]
                whole = whole - read @ dictionary.W_skip * cut.reads[:, None]
    vector = torch.zeros_like(whole)
    vector[node.pos] = whole[node.pos]
    return site, vector


@pytest.mark.parametrize("norms", ["frozen", "live"])
@pytest.mark.parametrize("attention", ["frozen", "live"])
def test_every_edge_is_a_finite_difference(some, attention, norms):
    """Nudge the source by h, hold the other sites, read the target's pre-activation.

    A skip connection passes the nudge on: it lies between sites.
    """
    a = attribute(some, TEXT, METRIC, max_latents=60, attention=attention, norms=norms)
    ids = some.tokens(TEXT)
    freeze = Freeze(attention == "frozen", norms == "frozen")
    cut = local_pass(some, ids, [bind(METRIC, some)], freeze)
    edges = dense(a)
    kept = clean_values(some, ids, freeze)
    generator = torch.Generator().manual_seed(0)
    strong = edges.abs().sum(0).topk(8).indices.tolist()
    others = torch.randperm(len(a.nodes) - 1, generator=generator)[:8].tolist()
    is_bias = [i for i, n in enumerate(a.nodes) if isinstance(n, BiasNode)][:2]
    sources = sorted({*strong, *others, *is_bias})
    scale = edges.abs().max().item()
    for s, measured in zip(sources, differences(some, a, ids, sources, cut, kept), strict=True):
        node = a.nodes[s]
        expected = edges[:, s].clone()
        if isinstance(node, BiasNode):  # b_enc is added by its own site, not sent through the model
            for i, target in enumerate(a.nodes):
                if isinstance(target, LatentNode) and target.site == node.site:
                    expected[i] -= some.dictionaries[node.site].b_enc[target.latent]
        assert (measured - expected).abs().max() < 5e-3 * scale, node


def differences(model, a, ids, sources, cut, kept):
    """By how much each source moves each target, `[source, node]`: one pass, two rows a source."""
    n_rows = 2 * len(sources)
    nudges = {leaf: x.detach().new_zeros(n_rows, *x.shape[1:]) for leaf, x in cut.leaves.items()}
    steps = torch.zeros(len(sources), 1)
    for row, s in enumerate(sources):
        leaf, vector = vector_of(model, a, a.nodes[s], cut)
        steps[row] = h = 1e-2 / max(1.0, vector.norm().item())
        nudges[leaf][2 * row], nudges[leaf][2 * row + 1] = h * vector, -h * vector
    values = read_targets(model, ids.expand(n_rows, -1), a.nodes, cut, nudges, kept)
    return (values[::2] - values[1::2]) / (2 * steps)


def read_targets(model, ids, nodes, cut, nudges, kept):
    """Pre-activations of all latents and the metric, `[row, node]`.

    Every site is held at its clean output but for its nudge.
    """
    seen, normalized = {}, {}

    def hold(site):
        def hook(read, _):
            out = cut.leaves[site].detach()
            if site is not None and site.kind == "transcoder":
                read = normalized.get(f"blocks.{site.layer}.ln2", read)
                out = out + skipped(site, read) - skipped(site, cut.inputs[site].detach())
            seen[site] = read
            return out + nudges[site]

        return hook

    def skipped(site, read):
        dictionary = model.dictionaries[site]
        if dictionary.W_skip is None:
            return 0.0
        return read @ dictionary.W_skip * cut.reads[:, None]

    with torch.no_grad(), held(model, kept, normalized):
        logits = model.forward(ids, {s: hold(s) for s in model.sites}, embedding=hold(None))
    values = torch.zeros(len(ids), len(nodes))
    values[:, -1] = bind(METRIC, model)(logits[:, -1:])
    pre = {s: model.dictionaries[s].pre_acts(seen[s]) for s in model.sites}
    for i, node in enumerate(nodes):
        if isinstance(node, LatentNode):
            values[:, i] = pre[node.site][:, node.pos, node.latent]
    return values


def test_batches_of_targets_do_not_change_edges(model):
    one, many = (
        dense(attribute(model, TEXT, METRIC, max_latents=50, memory=memory))
        for memory in (1000, "1GB")
    )
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)


def test_nodes_are_in_topological_order(model):
    a = attribute(model, TEXT, METRIC, max_latents=200)
    target, source = a.edges.nonzero()
    assert (source < target).all()
    assert all(is_target(a.nodes[t]) for t in set(target.tolist()))
    assert len(set(a.nodes)) == len(a.nodes)
    assert sum(isinstance(n, LatentNode) for n in a.nodes) == 200


def test_latents_left_out_are_carried_by_their_error(model):
    """Effects of a site sum to the same, however many latents become nodes."""

    def by_site(a):
        sums = dict.fromkeys(model.sites, 0.0)
        for node, effect in zip(a.nodes, a.effects.tolist(), strict=True):
            if isinstance(node, LatentNode | ErrorNode):
                sums[node.site] += effect
        return sums

    few, all_ = (attribute(model, TEXT, METRIC, max_latents=n) for n in (40, None))
    for site, total in by_site(all_).items():
        assert by_site(few)[site] == pytest.approx(total, rel=1e-4, abs=1e-4)


def test_a_prompt_of_one_token_has_a_graph(model):
    a = attribute(model, "w5", METRIC)
    assert a.edges.nnz > 0


def test_chosen_sites_only(bridge):
    chosen = {s: d for s, d in random_dictionaries().items() if s == Site(1, "mlp")}
    a = attribute(splice(bridge, chosen), TEXT, METRIC)
    assert {n.site for n in a.nodes if isinstance(n, LatentNode)} == {Site(1, "mlp")}
