"""`circuits minimality`: which nodes of a task's circuit it needs."""

from __future__ import annotations

import click

from experiments.commands.many import Many, asks_many
from experiments.commands.options import errors_option


@click.command(short_help="Which nodes of a task's circuit it needs, beside random ones.")
@click.option(
    "--size", type=click.IntRange(min=1), default=100, show_default=True, metavar="K",
    help="Nodes of the circuit: the first K of the ranking.",
)  # fmt: skip
@click.option(
    "--method", default="gradient x activation", show_default=True, metavar="NAME",
    help="What ranks nodes; see circuits study.",
)  # fmt: skip
@errors_option
@click.option(
    "--inflations", type=click.IntRange(min=20), default=200, show_default=True, metavar="N",
    help="Random nodes, matched by site, that are added to the circuit.",
)  # fmt: skip
@asks_many
def minimality(many: Many, size: int, method: str, errors: str, inflations: int) -> None:
    """Drop each node of a circuit, and say whether that does more than dropping a random one.

    The circuit is found on as many further prompts of the task and tested on the prompts. Its loss
    is how much of F(C), a share without a unit, goes with the node; percentile, q and p superfluous
    compare it with random nodes added to the circuit and dropped again (Shi et al. 2024). A node
    can look superfluous because another one does the same.

    \b
    Examples:
      circuits minimality --task agreement_rc --prompts 10 --size 300
      circuits minimality --task ioi --downstream freeze --out minimality.csv --out minimality.svg
    """
    from circuits.errors import UserError
    from experiments.circuit.drop_one import minimality as minimality_of
    from experiments.methods import Question, method_named

    ranks = method_named(method)
    if not many.others:
        raise UserError(
            f"{many.name} has no further prompts to find a circuit on; ask for fewer with --prompts"
        )
    question = Question(
        many.model,
        many.others,
        many.spans(many.others),
        many.metric,
        many.kind,
        many.downstream,
        many.seed,
    )
    result = minimality_of(
        many.model,
        many.prompts,
        many.metric,
        ranks.rank(question, errors=errors == "scored"),
        size=size,
        spans=many.spans(many.prompts),
        reference=many.kind,
        downstream=many.downstream,
        errors=errors,
        n_inflations=inflations,
        seed=many.seed,
    )
    many.finish(result)
