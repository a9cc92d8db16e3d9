"""A path carries what an edit by hand carries along it; the planted path carries all of it."""

import json
from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from attribution import attribute
from circuits import (
    LatentNode,
    LogitNode,
    Site,
    UserError,
    corrupted_reference,
    load,
    splice,
)
from experiments.commands.edges import edges as edges_command
from experiments.commands.path import path as path_command
from experiments.edges import path_patch, strongest_paths
from experiments.edges.strongest import attributed
from experiments.kinds import zero
from experiments.tasks import TASKS
from graphs import AttributionGraph
from graphs.graph import restrict
from tests.experiments.test_ablation import METRIC, PROMPT, plain_hooks


@pytest.fixture(scope="module")
def graph(model):
    attribution = attribute(model, PROMPT, METRIC, max_latents=60, attention="live", norms="live")
    return AttributionGraph.from_attribution(attribution)


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
    """The graph of the strongest latents alone: few enough to list every path."""
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
    """Each node's change on the way, in plain PyTorch on the Hugging Face model; then the metric's.

    The first node is taken out; every other site gives what it gave in the clean pass.
    """
    huggingface, ids = model.bridge.original_model, model.tokens(PROMPT)
    clean = {}

    def keep(site):
        def hook(x):
            clean[site] = x.clone()
            return x

        return hook

    def acts(site, x):
        d = model.dictionaries[site]
        pre = x @ d.W_enc + d.b_enc
        return torch.where(pre > d.threshold, pre.relu(), 0.0)

    with torch.no_grad(), plain_hooks(huggingface, {site: keep(site) for site in model.sites}):
        before = METRIC.bind(model)(huggingface(ids).logits).item()

    def act(node, table):
        return acts(node.site, table[node.site][0, node.pos])[node.latent].item()

    change, changes = -act(path[0], clean), []
    for node, after in [*pairwise(path), (path[-1], None)]:
        changes.append(-change)
        seen = {}

        def hold(site, node=node, change=change, seen=seen):
            def hook(x):
                seen[site] = x.clone()
                x = clean[site].clone()
                if site == node.site:
                    x[0, node.pos] += change * model.dictionaries[site].W_dec[node.latent]
                return x

            return hook

        with torch.no_grad(), plain_hooks(huggingface, {s: hold(s) for s in model.sites}):
            logits = huggingface(ids).logits
        if after is not None:
            change = act(after, seen) - act(after, clean)
    return changes, before - METRIC.bind(model)(logits).item()


def test_a_path_is_its_edits_by_hand(model, graph, source):
    paths = [path[:-1] for path in strongest_paths(graph, source, 6)]
    paths = [path for path in paths if all(isinstance(node, LatentNode) for node in path)]
    assert len(paths) >= 3
    patched = path_patch(model, PROMPT, METRIC, paths, kind=zero())
    for number, path in enumerate(paths):
        carried, effect = by_hand(model, path)
        rows = patched.table[patched.table["path"] == number]
        assert np.asarray(rows["carried"])[:-1] == pytest.approx(carried, rel=1e-3, abs=1e-5)
        assert patched.effects[number] == pytest.approx(effect, rel=1e-3, abs=2e-5)


def test_one_by_one_equals_together(model, graph, source):
    paths = strongest_paths(graph, source, 4)
    together = path_patch(model, PROMPT, METRIC, paths, graph=graph, kind=zero())
    alone = [path_patch(model, PROMPT, METRIC, path, kind=zero(), batch_size=1) for path in paths]
    assert together.effects == pytest.approx([one.effects[0] for one in alone], abs=2e-5)
    assert together.attributed == pytest.approx([attributed(graph, path) for path in paths])
    assert together.sum + together.remainder == pytest.approx(together.total)


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


def test_where_no_path_leads_is_said(graph):
    with pytest.raises(UserError, match="has no node"):
        strongest_paths(graph, LatentNode(Site(0, "mlp"), 10**6, 1))
    with pytest.raises(UserError, match="give a number of paths"):
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
    again = CliRunner().invoke(
        path_command, [file, "--path", " -> ".join(path), "--kind", "zero"], catch_exceptions=False
    )
    assert again.exit_code == 0
    assert path[1] in again.output
    both = CliRunner().invoke(path_command, [file, "--from", node, "--path", node])
    assert isinstance(both.exception, UserError)


def test_the_edges_command(saved, tmp_path):
    file, _, _ = saved
    table = tmp_path / "edges.csv"
    told = CliRunner().invoke(edges_command, [file, "--out", str(table)], catch_exceptions=False)
    assert told.exit_code == 0
    head = table.read_text().splitlines()[0]
    assert {"source", "target", "weight", "pre_activation_change", "jump_leak"} <= set(
        head.split(",")
    )
