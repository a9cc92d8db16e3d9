"""From a prompt to a checked graph: `python -m experiments.examples.demo [FOLDER]`.

1. Trace: which latents make the bundled model answer "Mary" and not "John", and through which
   edges, against the prompt in which the other of the two gives.
2. Ablate: the 50 strongest one by one, attributed beside measured, by zeroing and by patching;
   and what integrated gradients of each latent say, which follow the curve instead of its tangent.
3. Faithfulness: how much of the answer circuits of 10 to 3000 latents keep.
4. Draw: the graph with both numbers on every latent.

Running it again replaces its own files.
"""

import sys
from pathlib import Path

from attribution import Metric, attribute, integrated_each, logit_diff, total_effects
from circuits import (
    Prompt,
    Reference,
    SplicedModel,
    UserError,
    corrupted_reference,
    load,
    zero_reference,
)
from experiments.ablation import Ablations, ablate_each, pearson
from experiments.circuit.faithfulness import faithfulness_curve
from experiments.commands.tables import ablation_table
from graphs import (
    AttributionGraph,
    completeness_score,
    label_latents,
    labels_of,
    prune,
    render,
    replacement_score,
    with_measured,
)

PROMPT = Prompt(
    "when Mary and John went to the store , John gave a drink to",
    target="Mary",
    foil="John",
    corrupted="when Mary and John went to the store , Mary gave a drink to",
)
STRONGEST = 50
SIZES = (10, 30, 100, 300, 1000, 3000)


def main(folder: Path) -> None:
    """All four steps, into `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    model = load("tiny")
    metric = logit_diff(PROMPT)

    graph = trace(model, metric)
    circuit = prune(graph, keep_influence=0.8)
    print(f"{model.name}: {PROMPT.text!r}")
    print(f"{metric.name} = {graph.metric_value:+.3f} logits")
    print(
        f"{len(graph.latents())} latents, pruned to {len(circuit.latents())}; replacement score "
        f"{replacement_score(graph):.2f}, completeness score {completeness_score(graph):.2f}\n"
    )

    for reference in (zero_reference(model, PROMPT), corrupted_reference(model, PROMPT)):
        rows = ablate_strongest(model, metric, reference)
        report(rows, model, metric, reference)
        rows.save(folder / f"ablation_{reference.name}.csv", overwrite=True)
        rows.save(folder / f"ablation_{reference.name}.json", overwrite=True)
        rows.plot(folder / f"ablation_{reference.name}.svg", overwrite=True)

    ranked = total_effects(model, PROMPT, metric).strongest()  # beyond the graph's 400 too
    curve = faithfulness_curve(model, PROMPT, metric, ranked, sizes=SIZES)
    print(
        f"faithfulness of the strongest of {curve.n_nodes} latents, all others set to "
        f"{curve.reference}, errors {curve.errors}, downstream {curve.downstream}:"
    )
    print(curve.text())
    curve.save(folder / "faithfulness.json", overwrite=True)
    curve.plot(folder / "faithfulness.svg", overwrite=True)

    other = corrupted_reference(model, PROMPT)
    drawn = ablate_each(model, PROMPT, metric, circuit.latents(), reference=other)
    checked = with_measured(circuit, drawn, settings=drawn.settings)
    graph.save(folder / "ioi.json", overwrite=True)
    for suffix in (".html", ".svg"):
        render(checked, folder / f"ioi{suffix}", overwrite=True)
    print(f"\nThe graph, attributed and measured effects on every latent: {folder / 'ioi.html'}")


def trace(model: SplicedModel, metric: Metric) -> AttributionGraph:
    """The graph of the 400 strongest latents against the corrupted prompt, labelled."""
    other = corrupted_reference(model, PROMPT)
    attribution = attribute(model, PROMPT, metric, max_latents=400, reference=other)
    return label_latents(model, AttributionGraph.from_attribution(attribution))


def ablate_strongest(model: SplicedModel, metric: Metric, reference: Reference) -> Ablations:
    """The latents with the largest effects attributed against `reference`, ablated to it."""
    effects = total_effects(model, PROMPT, metric, reference=reference)
    nodes = effects.strongest(STRONGEST)
    rows = ablate_each(model, PROMPT, metric, nodes, reference=reference)
    return rows.labelled(labels_of(model, nodes))


def report(rows: Ablations, model: SplicedModel, metric: Metric, reference: Reference) -> None:
    """The table, and how well two estimators agree with what was measured."""
    print(
        f"the {len(rows)} strongest latents set to {rows.reference}; attributed by "
        f"{rows.estimator}, downstream {rows.downstream}:"
    )
    print(ablation_table(rows))
    nodes = [row.node for row in rows]
    each = integrated_each(model, PROMPT, metric, nodes, reference=reference).tolist()
    along = pearson(each, [row.measured for row in rows])
    print(f"r = {rows.correlation:.3f} ({rows.reference}, {rows.estimator})")
    print(f"r = {along:.3f} ({rows.reference}, per-latent integrated gradients, n=10)\n")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
    except UserError as error:
        sys.exit(f"demo: error: {error}")
