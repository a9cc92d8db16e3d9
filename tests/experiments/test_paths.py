"""A path carries what an edit by hand carries along it; the planted path carries all of it."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from attribution import attribute, logit_diff, total_effects
from circuits import (
    ErrorNode,
    LatentNode,
    LogitNode,
    Site,
    TokenNode,
    UserError,
    corrupted_reference,
    load,
    parse_node,
    splice,
)
from experiments.commands.edges import edges as edges_command
from experiments.commands.path import path as path_command
from experiments.edges import path_patch, strongest_paths
from experiments.edges.strongest import attributed
from experiments.kinds import patch, zero
from experiments.planted import NUMBERS, planted_model, question
from experiments.planted.model import latent
from experiments.planted.truth import path
from experiments.tasks import TASKS
from graphs import AttributionGraph
from graphs.graph import restrict
from tests.experiments.test_ablation import METRIC, PROMPT
from tests.experiments.test_edge_knockout import near
from tests.plain_hooks import plain_hooks
from tests.random_gemma import chosen_dictionaries


@pytest.fixture(scope="module")
def graph(model):
    attribution = attribute(model, PROMPT, METRIC, max_latents=60, attention="live", norms="live")
    return AttributionGraph.from_attribution(attribution)


@pytest.fixture(scope="module")
def planted():
    return planted_model()


@pytest.fixture(scope="module")
def source(graph):
    """The strongest latent of the first layer with ways to the output."""
    for node in graph.latents():
        if node.site.layer == 0 and nx.descendants(graph.digraph, node):
            return node
    raise AssertionError


def every_path(graph, source):
    outputs = [node for node in graph.digraph if isinstance(node, LogitNode)]
    return [
        tuple(path)
        for output in outputs
        for path in nx.all_simple_paths(graph.digraph, source, output)
    ]


def small(graph, n):
    """The graph of the `n` strongest latents alone."""
    kept = {*graph.latents(n), *(v for v in graph.digraph if isinstance(v, LogitNode))}
    return replace(graph, digraph=restrict(graph, kept))


def test_the_strongest_paths_are_the_strongest_of_all(graph):
    few = small(graph, 25)
    tried = 0
    for node in few.latents():
        listed = every_path(few, node)
        if len(listed) < 3:
            continue
        tried += 1
        sizes = sorted((abs(attributed(few, path)) for path in listed), reverse=True)
        found = strongest_paths(few, node, 3)
        assert [abs(attributed(few, path)) for path in found] == pytest.approx(sizes[:3])
        assert len(set(found)) == 3
    assert tried >= 3


def test_what_is_attributed_to_a_path_is_the_product_of_its_edges(graph, source):
    path = strongest_paths(graph, source, 1)[0]
    edges, values = graph.digraph.edges, graph.digraph.nodes
    product = np.prod([edges[edge]["weight"] for edge in pairwise(path)])
    product *= values[path[-1]]["grad"] / np.prod([values[node]["act"] for node in path[1:-1]])
    assert attributed(graph, path) == pytest.approx(product)


def by_hand(model, path):
    """Each node's loss on the way, in plain PyTorch on the Hugging Face model; then the metric's.

    The first node is taken out; every other site gives what it gave in the clean pass. Of vectors
    the norm.
    """
    huggingface, ids = model.bridge.original_model, model.tokens(PROMPT)
    first, score = huggingface.model.layers[0], METRIC.bind(model)

    def one_pass(edits, shift=None):
        """The metric; what each site has before its edit; the embedding."""
        seen = {}

        def at(site):
            def hook(x):
                seen[site] = x.clone()
                return edits[site](x) if site in edits else x

            return hook

        def embed(_module, args, kwargs):
            x = (args[0] if args else kwargs["hidden_states"]).clone()
            seen["embedding"] = x.clone()
            if shift is not None:
                x += shift
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        handle = first.register_forward_pre_hook(embed, with_kwargs=True)
        with torch.no_grad(), plain_hooks(huggingface, {site: at(site) for site in model.sites}):
            value = score(huggingface(ids).logits).item()
        handle.remove()
        return value, seen

    def value_of(node, seen):
        if isinstance(node, TokenNode):
            return seen["embedding"][0, node.pos]
        d, x = model.dictionaries[node.site], seen[node.site][0, node.pos]
        pre = x @ d.W_enc + d.b_enc
        acts = torch.where(pre > d.threshold, pre.relu(), 0.0)
        if isinstance(node, LatentNode):
            return acts[node.latent]
        return x - (acts @ d.W_dec + d.b_dec) if node.pos else x  # BOS is not read

    before, clean = one_pass({})
    lost, losses = value_of(path[0], clean), []
    for node, after in [*pairwise(path), (path[-1], None)]:
        losses.append(lost.norm().item() if lost.ndim else lost.item())
        vector = lost * model.dictionaries[node.site].W_dec[node.latent] if not lost.ndim else lost
        shift = torch.zeros_like(clean["embedding"])
        edits: dict[Site, Any] = {s: lambda x, s=s: clean[s].clone() for s in model.sites}
        if isinstance(node, TokenNode):
            shift[0, node.pos] = -vector
        else:
            change = torch.zeros_like(clean[node.site])
            change[0, node.pos] = vector
            edits[node.site] = lambda x, site=node.site, change=change: clean[site] - change
        value, seen = one_pass(edits, shift)
        if after is not None:
            lost = value_of(after, clean) - value_of(after, seen)
    return losses, before - value


def test_a_path_is_its_edits_by_hand(model, graph, source):
    """Of every type of node, at BOS too, whose dictionaries do not read."""
    paths = [path[:-1] for path in strongest_paths(graph, source, 6)]
    output = next(node for node in graph.digraph if isinstance(node, LogitNode))
    tokens = [n for n in nx.ancestors(graph.digraph, output) if isinstance(n, TokenNode)]
    paths += [strongest_paths(graph, token, 1)[0][:-1] for token in tokens[:2]]
    sites = {kind: Site(1, kind) for kind in ("attn", "mlp", "resid")}
    paths += [
        (TokenNode(0), ErrorNode(Site(0, "resid"), 0), ErrorNode(sites["attn"], 7)),
        (ErrorNode(sites["attn"], 6), ErrorNode(sites["resid"], 6), ErrorNode(Site(2, "resid"), 6)),
        (
            LatentNode(sites["mlp"], *latent_at(model, sites["mlp"], 10)),
            ErrorNode(sites["resid"], 10),
            ErrorNode(Site(2, "resid"), 10),
        ),
    ]
    assert {type(node) for nodes in paths for node in nodes[1:]} == {LatentNode, ErrorNode}
    for nodes in paths:
        patched = path_patch(model, PROMPT, METRIC, nodes, kind=zero())
        carried, effect = by_hand(model, nodes)
        found = np.asarray(patched.table["carried"])[:-1]
        assert found == pytest.approx(carried, rel=1e-3, abs=2e-5), nodes
        assert patched.effects[0] == pytest.approx(effect, rel=1e-3, abs=2e-5), nodes


def latent_at(model, site, pos):
    """The strongest latent there, and the position."""
    here = model.trace(PROMPT).sites[site]
    at = (here.pos == pos).nonzero()[:, 0]
    return int(here.latent[at[here.acts[at].argmax()]]), pos


@pytest.fixture(scope="module")
def one_kind(bridge):
    """Only residual sites: what leaves one can only arrive at the next."""
    return splice(bridge, chosen_dictionaries(["resid"]))


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_all_paths_together_are_the_total_effect_of_a_small_change(one_kind, downstream):
    """Through latents, where errors are frozen, and through errors too, where they follow."""
    below, above = Site(1, "resid"), Site(2, "resid")
    effects = total_effects(one_kind, PROMPT, METRIC, downstream=downstream)
    source = next(n for n in effects.strongest() if n.site == below and n.pos >= 8)
    here = one_kind.trace(PROMPT).sites[above]
    ends = [
        LatentNode(above, int(latent), int(pos))
        for latent, pos in zip(here.latent, here.pos, strict=True)
        if pos >= source.pos
    ]
    if downstream == "recompute":
        ends += [ErrorNode(above, pos) for pos in range(source.pos, 11)]
    down, up = (
        path_patch(
            one_kind, PROMPT, METRIC, [(source, end) for end in ends],
            kind=near(one_kind, share), downstream=downstream,
        )
        for share in (0.98, 1.02)
    )  # fmt: skip
    total = down.total - up.total  # what is of second order cancels
    assert abs(total) > 1e-2  # float32 is no part of the difference
    assert down.sum - up.sum == pytest.approx(total, rel=2e-3)


def test_paths_of_a_whole_graph_sum_to_the_total_effect(one_kind):
    """The chain rule; `freeze`, and the graph's own rules for what is held on the way."""
    attribution = attribute(one_kind, PROMPT, METRIC, max_latents=None, downstream="freeze")
    graph = AttributionGraph.from_attribution(attribution)
    latents = small(graph, None)
    for site in (Site(0, "resid"), Site(1, "resid")):
        source = LatentNode(site, *latent_at(one_kind, site, 10))
        listed = every_path(latents, source)
        assert len(listed) > 10
        total = sum(attributed(graph, path) for path in listed)
        assert total == pytest.approx(graph.digraph.nodes[source]["effect"], rel=1e-4)


@pytest.mark.parametrize("downstream", ["recompute", "freeze", "drop"])
def test_the_planted_path_carries_the_whole_effect_and_decoys_none(planted, downstream):
    """Of the right number, which is lost, and of the other, which is switched on."""
    prompt = question(0, 0, 0, 1)
    last = planted.tokens(prompt).shape[1] - 1
    how = {"kind": patch(), "downstream": downstream}

    def steps(*names):
        sites = (Site(0, "attn"), Site(0, "resid"), Site(1, "mlp"), Site(1, "resid"))
        return tuple(
            LatentNode(site, latent(site, name), last)
            for site, name in zip(sites, names, strict=False)
        )

    for number in NUMBERS:
        found = path_patch(planted, prompt, logit_diff(prompt), path(number, last), **how)
        assert found.total > 4
        assert found.effects[0] == pytest.approx(found.total, rel=1e-4)
        idle, dead = f"idle {number}", f"dead-end {number}"
        decoys = [steps(dead, dead, idle, idle), steps(f"mute {number}", f"subject {number}")]
        for decoy in decoys:
            none = path_patch(planted, prompt, logit_diff(prompt), decoy, **how)
            assert abs(np.asarray(none.table["carried"])[0]) > 1  # it is alive
            assert none.effects[0] == pytest.approx(0, abs=1e-3)
            assert none.total == pytest.approx(0, abs=1e-3)


def test_one_by_one_equals_together(model, graph, source):
    paths = strongest_paths(graph, source, 4)
    together = path_patch(model, PROMPT, METRIC, paths, graph=graph, kind=zero())
    alone = [path_patch(model, PROMPT, METRIC, path, kind=zero(), batch_size=1) for path in paths]
    assert together.effects == pytest.approx([one.effects[0] for one in alone], abs=2e-5)
    assert together.attributed == pytest.approx([attributed(graph, path) for path in paths])
    assert together.sum + together.remainder == pytest.approx(together.total)


def test_the_table_says_beside_each_path_what_its_edges_foretell(model, graph, source):
    """A product by hand, set against the effect that was measured."""
    paths = strongest_paths(graph, source, 3)
    patched = path_patch(model, PROMPT, METRIC, paths, graph=graph, kind=zero())
    digraph, frame = graph.digraph, patched.frame()
    for i, walked in enumerate(paths):
        product = np.prod([digraph.edges[edge]["weight"] for edge in pairwise(walked)])
        product *= digraph.nodes[walked[-1]]["grad"]
        product /= np.prod([digraph.nodes[node]["act"] for node in walked[1:-1]])
        lines = [row for row in frame.to_dict("records") if row["path"] == i]
        assert len(lines) == len(walked)
        for line in lines:
            assert line["attributed"] == pytest.approx(product)
            assert line["effect"] == patched.effects[i]
            named = [parse_node(name) for name in line["paths"].split(" -> ")]
            assert named == list(walked[:-1])
    (half,) = path_patch(
        model, PROMPT, METRIC, paths[0], graph=graph, kind=near(model, 0.5)
    ).attributed  # fmt: skip
    assert half == pytest.approx(0.5 * patched.attributed[0], rel=1e-4)


def test_where_the_graph_has_no_such_path_nothing_is_attributed(model, graph, source):
    end = next(n for n in graph.latents() if n.site.layer == 2 and n.pos >= source.pos)
    strange = replace(graph, digraph=nx.subgraph_view(
        graph.digraph, filter_edge=lambda a, b: (a, b) != (source, end)
    ))  # fmt: skip
    how = {"graph": strange, "kind": zero()}
    patched = path_patch(model, PROMPT, METRIC, [(source, end), (source,)], **how)
    assert np.isnan(patched.attributed[0])
    without = path_patch(model, PROMPT, METRIC, [(source, end), (source,)], kind=zero())
    assert np.isnan(np.asarray(without.frame()["attributed"])).all()
    assert patched.effects.tolist() == without.effects.tolist()


def test_a_path_carries_of_a_small_change_what_its_edges_foretell(bridge):
    """The chain rule along one path; the difference of two changes, so that curvature cancels."""
    model = splice(bridge, chosen_dictionaries(["resid"]), name="resid")
    attribution = attribute(
        model, PROMPT, METRIC, max_latents=None, attention="live", norms="live"
    )  # fmt: skip
    graph = AttributionGraph.from_attribution(attribution)
    tried = 0
    for source in [n for n in graph.latents(60) if n.site.layer == 0][:4]:
        paths = strongest_paths(graph, source, 3)
        down, up = (
            path_patch(model, PROMPT, METRIC, paths, graph=graph, kind=near(model, share))
            for share in (0.99, 1.01)
        )
        told = down.attributed - up.attributed
        for measured, foretold in zip(down.effects - up.effects, told, strict=True):
            if abs(foretold) > 1e-3:  # of float32 effects some digits are left
                assert measured == pytest.approx(foretold, rel=1e-3)
                tried += 1
    assert tried >= 3


def test_with_one_site_the_path_is_the_whole_effect(bridge, model):
    """Nothing else is between a latent of the only site and the metric."""
    site = Site(1, "resid")
    alone = splice(bridge, {site: model.dictionaries[site]})
    trace = alone.trace(PROMPT)
    here = trace.sites[site]
    for i in here.acts.argsort(descending=True)[:5].tolist():
        node = LatentNode(site, int(here.latent[i]), int(here.pos[i]))
        patched = path_patch(alone, PROMPT, METRIC, [node])
        assert patched.remainder == pytest.approx(0, abs=2e-5)
        values = corrupted_reference(alone, PROMPT)
        assert patched.table["patched"].iloc[0] == pytest.approx(values.value(node).item())


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ([], "give a path"),
        (3, "give a path"),
        ([3], "3 is no path; give a list of nodes"),
        (["mlp.0/latent.1@4"], "'mlp.0/latent.1@4' is no path; give a list of nodes"),
        ([[LatentNode(Site(0, "mlp"), 1, 4)], 3], "3 is no path; give a list of nodes"),
        ([LatentNode(Site(0, "mlp"), 1, 4), 3], "mlp.0/latent.1@4 -> 3 is no path"),
        ([LogitNode("x")], "a path ends in"),
        (
            [LatentNode(Site(2, "mlp"), 1, 4), LatentNode(Site(0, "mlp"), 1, 4)],
            "does not lie above",
        ),
        (
            [LatentNode(Site(0, "mlp"), 1, 5), LatentNode(Site(2, "mlp"), 1, 4)],
            "does not lie above",
        ),
        ([LatentNode(Site(0, "mlp"), 10**6, 5)], "no latent 1000000"),
    ],
)
def test_what_is_no_path_is_refused(model, path, says):
    with pytest.raises(UserError, match=says):
        path_patch(model, PROMPT, METRIC, path)


@pytest.mark.parametrize("kind", ["patch", 3])
def test_what_is_no_kind_of_ablation_is_refused(model, kind):
    with pytest.raises(UserError, match="is no kind of ablation"):
        path_patch(model, PROMPT, METRIC, [LatentNode(Site(0, "mlp"), 1, 4)], kind=kind)


def test_where_no_path_leads_is_said(graph):
    with pytest.raises(UserError, match="has no node"):
        strongest_paths(graph, LatentNode(Site(0, "mlp"), 10**6, 1))
    with pytest.raises(UserError, match="give a whole number from 1 on"):
        strongest_paths(graph, graph.latents()[0], 0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A graph of the bundled model, and its strongest latent of the first layer."""
    tiny, task = load("tiny"), TASKS["agreement_simple"]
    prompt = task.prompts("heldout", n=1)[0]
    attribution = attribute(tiny, prompt, task.metric(prompt), max_latents=60)
    graph = AttributionGraph.from_attribution(attribution)
    file = graph.save(tmp_path_factory.mktemp("graph") / "graph.json")
    node = next(n for n in graph.latents() if n.site == Site(0, "resid"))
    return str(file), str(node), [str(v) for v in strongest_paths(graph, node, 1)[0][:-1]]


def test_the_path_command(saved, tmp_path):
    file, node, path = saved
    table, plot = tmp_path / "paths.json", tmp_path / "paths.svg"
    told = CliRunner().invoke(
        path_command,
        [file, "--from", node, "--strongest", "3", "--kind", "zero",
         "--out", str(table), "--out", str(plot)],
        catch_exceptions=False,
    )  # fmt: skip
    assert told.exit_code == 0
    assert "left over" in told.output
    assert plot.stat().st_size > 1000
    content = json.loads(table.read_text())
    assert content["rows"][0]["reference"] == "zero"
    attributed, named = content["rows"][0]["attributed"], tmp_path / "named.json"
    again = CliRunner().invoke(  # of a path that is named, too, the saved graph says it
        path_command,
        [file, "--path", " -> ".join(path), "--kind", "zero", "--out", str(named)],
        catch_exceptions=False,
    )
    assert again.exit_code == 0
    assert path[1] in again.output
    assert json.loads(named.read_text())["rows"][0]["attributed"] == attributed
    both = CliRunner().invoke(path_command, [file, "--from", node, "--path", node])
    assert isinstance(both.exception, UserError)


def test_the_edges_command(saved, tmp_path):
    file, _, _ = saved
    table, record, plot = (tmp_path / f"edges.{suffix}" for suffix in ("csv", "json", "svg"))
    outs = [word for out in (table, record, plot) for word in ("--out", str(out))]
    told = CliRunner().invoke(
        edges_command, [file, "--top", "30", "--random", "20", *outs], catch_exceptions=False
    )
    assert told.exit_code == 0
    assert "random ones of the whole graph" in told.output
    assert len(json.loads(record.read_text())["rows"]) == 50
    assert "strongest: r = " in plot.read_text()
    head = table.read_text().splitlines()[0]
    assert {"source", "target", "weight", "pre_activation_change", "jump_leak"} <= set(
        head.split(",")
    )


def test_edges_are_against_what_sources_are_set_to():
    """Of a prompt the command makes the graph itself, so that errors too are foretold."""
    few = ["--top", "5", "--random", "5"]
    told = CliRunner().invoke(
        edges_command, ["--task", "ioi", "--kind", "patch", *few], catch_exceptions=False
    )
    assert "against corrupted" in told.output
    alone = ["when Mary and John went to", *few]
    assert CliRunner().invoke(edges_command, alone, catch_exceptions=False).exit_code == 0
    refused = CliRunner().invoke(edges_command, [*alone, "--kind", "patch"])
    assert "give one with --corrupted" in str(refused.exception)
