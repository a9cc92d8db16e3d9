"""The command line: `circuits trace`, `ablate`, `table`, `study`, ..."""

from typing import Any

import click

from experiments.commands.ablate import ablate
from experiments.commands.check import check
from experiments.commands.circuit import circuit
from experiments.commands.edges import edges
from experiments.commands.faithfulness import faithfulness
from experiments.commands.info import info
from experiments.commands.kinds import kinds
from experiments.commands.minimality import minimality
from experiments.commands.path import path
from experiments.commands.report import report
from experiments.commands.steer import steer
from experiments.commands.study import study
from experiments.commands.table import table
from experiments.commands.trace import trace


class _OneSentence(click.Group):
    """A group that tells the user's mistakes in one sentence, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else ctx.command_path
            _fail(f"{error.format_message().rstrip('.')}; see {where} --help")
        except ValueError as error:
            from circuits.errors import UserError  # waits for torch: only when it is there anyway

            if not isinstance(error, UserError):
                raise
            _fail(str(error))


def _fail(message: str) -> None:
    click.echo(f"circuits: error: {message}", err=True)
    raise SystemExit(2)


@click.group("circuits", cls=_OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gemma-circuits", prog_name="circuits")
def main() -> None:
    """Find the circuit behind an answer of Gemma 2, and test it by ablation.

    A sparse autoencoder at every layer and sublayer splits the model's activations into latents.
    `trace` attributes a metric of the answer to them and draws the graph; `ablate` and
    `faithfulness` measure whether the graph is right, `edges` and `path` whether its edges are.
    Over many prompts, with intervals: `table`, `report`, `circuit`, `kinds`, `minimality`, `steer`
    and, for a grid of them, `study`. `info` says what loading a model takes, and `check` whether
    its dictionaries fit it.

    \b
    Try, without any download:
      circuits info tiny
      circuits check tiny
      circuits trace --task ioi --out ioi.html --out ioi.json
      circuits ablate ioi.json
      circuits faithfulness ioi.json --out ioi_faithfulness.svg
      circuits table --task agreement_rc --prompts 20 --top 20

    Exit codes: 0 done, 1 an unexpected failure (of `check`: a dictionary that does not fit), 2 bad
    input (one sentence says what).
    """


_OF_ONE_PROMPT = (trace, ablate, faithfulness, edges, path)
_OF_MANY_PROMPTS = (table, report, circuit, kinds, minimality, steer, study)
for _command in (info, check, *_OF_ONE_PROMPT, *_OF_MANY_PROMPTS):
    main.add_command(_command)


if __name__ == "__main__":
    main(prog_name="circuits")
