"""`circuits circuit`: the circuit of a data set by span, and how firm it is."""

from __future__ import annotations

import click

from experiments.commands.many import Many, asks_many


@click.command(short_help="The circuit of a task over many prompts, and how firm it is.")
@click.option(
    "--size", "k", type=click.IntRange(min=1), default=50, show_default=True, metavar="K",
    help="Nodes of the circuit.",
)  # fmt: skip
@click.option("--errors", is_flag=True, help="Let error nodes compete.")
@asks_many
def circuit(many: Many, k: int, errors: bool) -> None:
    """Rank nodes by their mean attributed effect over prompts, and say how firm the list is.

    Inclusion is the share of bootstrap replicates, of prompt pairs, in which a node is among the
    first K; cancellation says how far effects of opposite sign cancel in the mean. As many further
    prompts of the task are the test: intervals there (test low, test high) owe nothing to the
    choice of nodes, while those on the prompts themselves are unadjusted for selection.

    \b
    Examples:
      circuits circuit --task ioi --prompts 30 --size 30
      circuits circuit --task agreement_rc --out circuit.csv --out circuit.svg
    """
    from experiments.circuit.pooled_circuit import dataset_circuit

    result = dataset_circuit(
        many.model,
        many.prompts,
        many.metric,
        spans=many.spans(many.prompts),
        test=many.others,
        test_spans=many.spans(many.others) if many.others else None,
        k=k,
        errors=errors,
        kind=many.kind,
        downstream=many.downstream,
        seed=many.seed,
    )
    many.finish(result)
