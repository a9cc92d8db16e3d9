"""Fast edges equal slow obvious ones, sum and chain, on random models in every mode."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM

from attribution import attribute, forecast, logit_diff
from attribution.edges.direct import direct_effects
from attribution.edges.local_pass import local_pass
from attribution.edges.node_table import NodeTable
from attribution.influence import solve_influence
from attribution.metrics import bind
from circuits import Dictionary, LatentNode, LogitNode, Site, UserError, load_gemma, splice
from circuits.active import Active
from circuits.freeze import Freeze
from circuits.gated import RULES, coefficients
from circuits.memory import halving
from tests.random_gemma import random_dictionaries, save_words

VOCAB, D_MODEL, D_SAE = 24, 12, 24
METRIC = logit_diff("w3", "w4")
KINDS = ("embed", "attn", "mlp", "transcoder", "resid")


@dataclass(frozen=True)
class Shape:
    """A Gemma 2, the prompt it reads, and which sites are spliced."""

    seed: int
    n_layers: int
    n_kv: int
    group: int
    d_head: int
    window: int
    soft_caps: bool
    n_tokens: int
    sites: tuple[Site, ...]
    skip: bool
    cross: bool
    residual: bool
    dtype: torch.dtype = torch.float32


ROUNDING = {torch.float64: 2**-24, torch.float32: 2**-24, torch.bfloat16: 2**-8}
"""What one rounding changes, by the model's dtype: edges are float32, and so are the norms and the
softmax of a float64 model."""


def missed(dtype):
    """By what share of the largest two ways to the same edges may differ.

    A number passes some 60 roundings on its way through four layers and back, which add up like a
    random walk; those of float32 are in every sum too, bfloat16 products are summed in float32.
    """
    return ROUNDING[dtype] * (8 if dtype == torch.bfloat16 else 64)


@st.composite
def shapes(draw):
    n_layers = draw(st.integers(1, 4))
    every = [Site(n, kind) for n in range(n_layers) for kind in KINDS[1:]] + [Site(0, "embed")]
    sites = draw(st.sets(st.sampled_from(every), min_size=1))
    # a transcoder and an autoencoder do not share one MLP
    sites = {s for s in sites if s.kind != "transcoder" or Site(s.layer, "mlp") not in sites}
    return Shape(
        seed=draw(st.integers(0, 10**6)),
        n_layers=n_layers,
        n_kv=draw(st.sampled_from([1, 2])),
        group=draw(st.sampled_from([1, 3])),
        d_head=draw(st.sampled_from([4, 6])),
        window=draw(st.sampled_from([2, 5])),
        soft_caps=draw(st.booleans()),
        n_tokens=draw(st.integers(1, 8)),
        sites=tuple(sorted(sites)),
        skip=draw(st.booleans()),
        cross=draw(st.booleans()),
        residual=draw(st.booleans()),
        dtype=draw(st.sampled_from(list(ROUNDING))),
    )


def build(shape, folder):
    """The model with its dictionaries, and a prompt."""
    torch.manual_seed(shape.seed)
    n_heads = shape.n_kv * shape.group
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=14,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=shape.n_kv,
        head_dim=shape.d_head,
        query_pre_attn_scalar=shape.d_head,
        sliding_window=shape.window,
        attn_logit_softcapping=50.0 if shape.soft_caps else None,
        final_logit_softcapping=30.0 if shape.soft_caps else None,
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    huggingface = Gemma2ForCausalLM(config)
    for weight in huggingface.parameters():
        weight.data.normal_(0, 0.2 if weight.ndim == 1 else 0.3)
    huggingface.save_pretrained(folder)
    save_words(folder, VOCAB)
    widths = dict.fromkeys(KINDS, D_MODEL) | {"attn": n_heads * shape.d_head}

    def skip():
        return torch.randn(D_MODEL, D_MODEL) * 0.2

    def later(site):
        """Decoders for the next layers, up to the first without a transcoder."""
        above = itertools.takewhile(
            lambda n: Site(n, "transcoder") in shape.sites,
            range(site.layer + 1, shape.n_layers),
        )
        n = len(list(above)) if shape.cross and site.kind == "transcoder" else 0
        return torch.randn(D_SAE, n, D_MODEL) * 0.2 if n else None

    dictionaries = {
        site: Dictionary(
            W_enc=torch.randn(widths[site.kind], D_SAE) * 0.3,
            b_enc=torch.randn(D_SAE) * 0.1,
            threshold=torch.rand(D_SAE) * 0.3,
            W_dec=torch.randn(D_SAE, widths[site.kind]) * 0.2,
            b_dec=torch.randn(widths[site.kind]) * 0.1,
            W_skip=skip() if shape.skip and site.kind == "transcoder" else None,
            W_later=later(site),
            reads_residual=shape.residual and site.kind == "transcoder",
        ).to(dtype=shape.dtype)
        for site in shape.sites
    }
    bridge = load_gemma(str(folder), device="cpu", dtype=shape.dtype)
    model = splice(bridge, dictionaries, name="random")
    words = torch.randint(0, VOCAB - 4, (shape.n_tokens,)).tolist()
    return model, " ".join(f"w{word}" for word in words)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    count = itertools.count()
    return lambda: tmp_path_factory.mktemp(f"shape{next(count)}")


def every_latent(model, ids):
    """The table of all active latents."""
    trace = model.trace(ids)
    latents = {s: Active(t.pos, t.latent, t.acts.float()) for s, t in trace.sites.items()}
    return NodeTable.of(ids.shape[1], latents, ("metric",))


def slow_edges(model, table, cut):
    """One backward pass a target, times what each source adds: the definition."""
    nodes, leaves = table.nodes(), list(cut.leaves)
    edges = np.zeros((len(nodes), len(nodes)))
    added = {leaf: vectors_at(model, table, cut, leaf) for leaf in leaves}
    for t, target in enumerate(nodes):
        if isinstance(target, LatentNode):
            d = model.dictionaries[target.site]
            value = cut.inputs[target.site][0, target.pos] @ d.W_enc[:, target.latent]
        elif isinstance(target, LogitNode):
            value = cut.scores.sum()
        else:
            continue
        grads = ()
        if value.requires_grad:
            grads = torch.autograd.grad(
                value, list(cut.leaves.values()), retain_graph=True, allow_unused=True
            )
        for leaf, grad in zip(leaves, grads, strict=False):
            if grad is None:
                continue
            for s, vector in added[leaf].items():
                edges[t, s] += (grad[0].double().numpy() * vector).sum()
        if isinstance(target, LatentNode):
            edges[t, table.sites[target.site].bias_at] += d.b_enc[target.latent].item()
    return edges


def vectors_at(model, table, cut, leaf):
    """What each node adds at one leaf, `[pos, d]` in float64, by its index among all nodes."""
    left = cut.leaves[leaf].detach()[0].double()
    vectors = {}
    reads = cut.reads[:, None].double()
    if leaf is not None:
        d = model.dictionaries[leaf]
        bias = d.b_dec.double() * reads
        vectors[table.sites[leaf].bias_at] = bias
        left = left - bias
        if d.W_skip is not None:
            left = left - cut.inputs[leaf].detach()[0].double() @ d.W_skip.double() * reads
    for s, (node, act) in enumerate(zip(table.nodes(), table.acts().tolist(), strict=True)):
        writes_to = model.writes_to(node.site) if isinstance(node, LatentNode) else ()
        if leaf in writes_to and isinstance(node, LatentNode):
            W_dec = model.dictionaries[node.site].decoders[writes_to.index(leaf)]
            vectors[s] = torch.zeros_like(left)
            vectors[s][node.pos] = act * W_dec[node.latent].double()
            left = left - vectors[s]
    at = range(table.n_pos) if leaf is None else table.sites[leaf].errors_at
    for pos, s in enumerate(at):
        vectors[s] = torch.zeros_like(left)
        vectors[s][pos] = left[pos]
    return {s: vector.numpy() for s, vector in vectors.items()}


def close(found, expected, rel=1e-4):
    """Within a share of the largest."""
    scale = np.abs(expected).max() if expected.size else 0.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=rel * scale + 1e-7)


freezes = st.builds(
    Freeze, attention=st.booleans(), norms=st.booleans(), mlp=st.sampled_from(RULES)
)


def crossed(layers, kinds=("attn", "transcoder"), **kwargs):
    """A shape with cross-layer transcoders."""
    sites = tuple(Site(n, kind) for n in range(layers) for kind in kinds)
    fixed = {"n_kv": 2, "group": 1, "d_head": 4, "window": 2, "soft_caps": True, "n_tokens": 2}
    return Shape(seed=3, n_layers=layers, sites=sites, skip=True, cross=True, **fixed, **kwargs)


CROSSED = crossed(3, residual=False)
CROSSED_ALONE = crossed(3, ("transcoder",), residual=True)

few = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@few
@example(CROSSED, Freeze(attention=True, norms=True), 20_000)
@example(CROSSED_ALONE, Freeze(attention=True), 2**28)
@given(shape=shapes(), freeze=freezes, memory=st.sampled_from([1, 20_000, 2**28]))
def test_edges_equal_a_backward_pass_a_target(folders, shape, freeze, memory):
    """Whatever the shape, the sites, what is frozen, the rule for MLPs and the batches."""
    model, text = build(shape, folders())
    ids = model.tokens(text)
    table = every_latent(model, ids)
    cut = local_pass(model, ids, [bind(METRIC, model)], freeze)
    found = direct_effects(model, table, cut, memory=memory)
    assert found.has_canonical_format
    assert found.dtype == np.float32
    assert np.count_nonzero(found.data) == found.nnz
    close(found.toarray(), slow_edges(model, table, cut), missed(shape.dtype))


@few
@example(CROSSED, "relp")
@example(CROSSED_ALONE, "integrated")
@given(shape=shapes(), rule=st.sampled_from(["relp", "integrated"]))
def test_conserving_rules_make_all_edges_sum_to_the_pre_activation(folders, shape, rule):
    """Norms and patterns frozen: then also through MLPs, for every choice of sites.

    Up to roundings of the sum of sizes: two in bfloat16, where each layer rounds what it adds up,
    and eight of float32 arithmetic.
    """
    model, text = build(shape, folders())
    a = attribute(model, text, METRIC, max_latents=5, mlp=rule)
    inputs = model.activations(model.tokens(text))[1]
    for i, node in enumerate(a.nodes):
        if isinstance(node, LatentNode):
            d, row = model.dictionaries[node.site], a.edges[[i]]
            x, read = inputs[node.site][0, node.pos].double(), d.W_enc[:, node.latent].double()
            pre = (x @ read).item() + d.b_enc[node.latent].item()
            sizes = abs(row).sum() + (x * read).abs().sum().item()
            times = 2 if shape.dtype == torch.bfloat16 else 8
            assert abs(row.sum() - pre) <= times * ROUNDING[shape.dtype] * sizes


@few
@example(CROSSED, Freeze(attention=True, norms=True))
@example(CROSSED_ALONE, Freeze())
@given(shape=shapes(), freeze=freezes)
def test_all_paths_sum_to_the_frozen_total_effect(folders, shape, freeze):
    """The Neumann series over the unpruned graph against autograd, in every mode."""
    model, text = build(shape, folders())
    word = {True: "frozen", False: "live"}
    a = attribute(
        model,
        text,
        METRIC,
        max_latents=None,
        downstream="freeze",
        attention=word[freeze.attention],
        norms=word[freeze.norms],
        mlp=freeze.mlp,
    )
    edges, acts = a.edges.toarray().astype(float), a.acts.double().numpy()
    through = np.array([isinstance(node, LatentNode) for node in a.nodes])
    arriving = np.zeros(len(acts))
    arriving[-1] = 1.0
    total = np.zeros_like(arriving)
    for _ in range(len(model.sites) + 2):
        step = arriving @ edges
        total += step
        arriving = np.where(through, step / acts, 0.0)
    assert np.abs(arriving).max() == 0
    close(total[:-1], a.effects.double().numpy()[:-1], missed(shape.dtype))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_leaves_the_forward_pass_bit_for_bit(model, rule):
    ids = model.tokens("w1 w5 w9")
    torch.testing.assert_close(
        model.forward(ids, {}, freeze=Freeze(mlp=rule)), model.run(ids), rtol=0, atol=0
    )


def test_rules_for_gated_mlps_against_their_definitions():
    torch.manual_seed(0)
    act = torch.nn.functional.silu
    gate, up = (torch.randn(50, dtype=torch.double) * 3 for _ in range(2))
    gate[0] = 0.0
    product = act(gate) * up
    for rule in ("relp", "integrated"):  # what flows in is the product
        by_gate, by_up = coefficients(rule, act, gate, up)
        torch.testing.assert_close(by_gate * gate + by_up * up, product, rtol=1e-6, atol=1e-8)
    h = 1e-6
    by_gate, by_up = coefficients("jacobian", act, gate, up)
    torch.testing.assert_close((act(gate + h) - act(gate - h)) * up / (2 * h), by_gate)
    torch.testing.assert_close(act(gate), by_up)
    fine = [coefficients("integrated", act, gate, up, points=n) for n in (10, 40)]
    torch.testing.assert_close(fine[0], fine[1], rtol=1e-6, atol=1e-7)


def test_without_memory_batches_are_halved_and_nothing_changes(model, monkeypatch):
    whole = attribute(model, "w1 w5 w9 w2", METRIC, max_latents=100).edges
    import attribution.edges.direct as edges

    descend = edges.descend

    def cramped(cut, site, grad, **options):
        if len(grad.pos) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return descend(cut, site, grad, **options)

    monkeypatch.setattr(edges, "descend", cramped)
    close(attribute(model, "w1 w5 w9 w2", METRIC, max_latents=100).edges.toarray(), whole.toarray())

    monkeypatch.setattr(edges, "LARGE", 1)  # then the forecast's sample is halved too
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    attribute(model, "w1 w5 w9 w2", METRIC, max_latents=100)

    def full(batch):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    with pytest.raises(UserError, match="not enough memory for one alone"):
        list(halving(full, torch.arange(5)))
    with pytest.raises(RuntimeError, match="another"):
        list(halving(lambda batch: (_ for _ in ()).throw(RuntimeError("another")), torch.arange(5)))


def test_targets_given_by_name_become_the_nodes(model):
    every = attribute(model, "w1 w5 w9 w2", METRIC, max_latents=None)
    some = [node for node in every.nodes if isinstance(node, LatentNode)][3::7]
    absent = replace(
        some[0],
        latent=next(
            i
            for i in range(96)
            if not any(
                n.site == some[0].site and n.pos == some[0].pos and n.latent == i
                for n in every.nodes
                if isinstance(n, LatentNode)
            )
        ),
    )
    a = attribute(model, "w1 w5 w9 w2", METRIC, latents=[*some, absent])
    assert [n for n in a.nodes if isinstance(n, LatentNode)] == some
    with pytest.raises(UserError, match=r"no dictionary at mlp\.9"):
        attribute(model, "w1", METRIC, latents=[LatentNode(Site(9, "mlp"), 0, 1)])


def test_live_edges_are_a_value_path_and_a_query_key_path(model):
    """What goes through queries and keys is what holding the patterns takes away."""
    live, held = (
        attribute(model, "w1 w5 w9 w2 w7", METRIC, max_latents=80, attention=word)
        for word in ("live", "frozen")
    )
    assert held.query_key is None
    assert live.query_key is not None
    values = live.edges - live.query_key
    close(values.toarray(), held.edges.toarray())
    crosses = np.array([isinstance(n, LatentNode) and n.site.kind == "attn" for n in live.nodes])
    reached = abs(live.query_key).sum(axis=1) > 0
    assert reached[crosses].any()
    # every site is spliced: to the others, and to the metric, no attention lies between
    assert not reached[~crosses].any()


def test_influential_latents_are_found_step_by_step(tiny):
    """Nearly those that all edges together show; edges are those of the same latents by name."""
    text = "when Mary and John went to the store , John gave a drink to"
    metric = logit_diff("Mary", "John")
    a = attribute(tiny, text, metric, max_latents=120, choose="influence")
    found = [node for node in a.nodes if isinstance(node, LatentNode)]
    assert len(found) == 120
    again = attribute(tiny, text, metric, latents=found)
    assert again.nodes == a.nodes
    close(a.edges.toarray(), again.edges.toarray())
    torch.testing.assert_close(a.effects, again.effects)

    every = attribute(tiny, text, metric, max_latents=None)
    outputs = np.zeros(len(every.nodes))
    outputs[-1] = 1.0
    influences = solve_influence(every.edges, outputs)
    latents = [i for i, node in enumerate(every.nodes) if isinstance(node, LatentNode)]
    best = {every.nodes[i] for i in sorted(latents, key=lambda i: -influences[i])[:120]}
    assert len(best & set(found)) >= 110  # rows not yet computed hide some influence

    with pytest.raises(UserError, match="by effect or by influence"):
        attribute(tiny, text, metric, choose="luck")


def test_a_forecast_counts_the_edges(tiny):
    """Of a site by its middle targets; the seconds are of this machine and not tested."""
    text = "when Mary and John went to the store , John gave a drink to"
    metric = logit_diff("Mary", "John")
    for attention in ("frozen", "live"):
        told = forecast(tiny, text, metric, max_latents=300, attention=attention)
        made = attribute(tiny, text, metric, max_latents=300, attention=attention)
        assert told.latents == 300
        assert told.edges == pytest.approx(made.edges.nnz, rel=0.4)
        assert told.n_bytes > 8 * made.edges.nnz
        assert "about" in str(told)


def test_edges_of_a_bfloat16_model_are_those_of_its_weights(gemma_folder):
    """Maps between sites are float32 whatever the dtype; what the model computes is rounded."""
    rough, exact = (
        splice(load_gemma(str(gemma_folder), device="cpu", dtype=dtype), random_dictionaries())
        for dtype in (torch.bfloat16, torch.float32)
    )
    for mine, other in zip(
        exact.bridge.original_model.parameters(),
        rough.bridge.original_model.parameters(),
        strict=True,
    ):
        mine.data = other.data.float()
    ids = exact.tokens("w1 w5 w9 w2 w7")
    table = every_latent(exact, ids)
    freeze = Freeze(attention=True, norms=True)
    edges = [
        direct_effects(m, table, local_pass(m, ids, [bind(METRIC, m)], freeze)).toarray()
        for m in (rough, exact)
    ]
    close(*edges, rel=2e-2)


def test_weights_that_want_gradients_do_not_disturb(model):
    """A dictionary just trained, a model whose parameters were left as they are."""
    expected = attribute(model, "w1 w5 w9 w2", METRIC, max_latents=40).edges
    trained = {
        site: replace(d, **{key: torch.nn.Parameter(a) for key, a in d.arrays.items()})
        for site, d in model.dictionaries.items()
    }
    for weight in model.bridge.original_model.parameters():
        weight.requires_grad_()
    try:
        other = splice(model.bridge, trained, name="random")
        found = attribute(other, "w1 w5 w9 w2", METRIC, max_latents=40).edges
    finally:
        for weight in model.bridge.original_model.parameters():
            weight.requires_grad_(False)
    close(found.toarray(), expected.toarray())
