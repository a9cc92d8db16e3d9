"""What a command is asked about: the model, the prompt and the metric, from the options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from experiments.commands.options import LOADING, MODEL, Loading, with_options

if TYPE_CHECKING:
    from attribution import Metric
    from circuits import Prompt, Reference, SplicedModel
    from graphs import AttributionGraph

METRICS = ("logit-diff", "logit", "log-prob", "prob")

GRAPH_FILES = (".html", ".svg", ".png", ".pdf", ".dot", ".json")
"""What `trace` writes."""

_OPTIONS = (
    click.option("--task", help="Instead of a prompt, a task: ioi, ...; see circuits info tiny."),
    click.option(
        "--example", type=click.IntRange(0, 199), default=0, show_default=True, metavar="N",
        help="Which held-out prompt of the task, counted from 0.",
    ),
    click.option(
        "--target", help="The right answer, one token as it follows the text (for Gemma with its "
        "leading space). Default: the most likely token.",
    ),
    click.option("--foil", help="The wrong answer to compare with, one token."),
    click.option(
        "--corrupted", metavar="TEXT",
        help="A partner of the prompt, equally long, that does not show the behaviour.",
    ),
    click.option(
        "--metric", type=click.Choice(METRICS),
        help="What is explained. Default: the task's own; logit-diff with a foil, else logit. "
        "Units: logits, nats (log-prob) or probability (prob).",
    ),
    MODEL,
    *LOADING,
)  # fmt: skip


def asks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say what it is about, as one `asked` argument."""

    def gather(options: dict[str, Any]) -> dict[str, Any]:
        options["loading"] = Loading.taken(options)
        told = {field.name: options.pop(field.name) for field in fields(Asked)}
        return {"asked": Asked(**told), **options}

    return with_options(command, _OPTIONS, gather)


@dataclass(frozen=True)
class Asked:
    """The options as they came; `None` where one was not given.

    Attributes:
        subject: A prompt, or the path of a saved graph.
    """

    subject: str | None
    task: str | None
    example: int
    target: str | None
    foil: str | None
    corrupted: str | None
    metric: str | None
    loading: Loading


@dataclass(frozen=True)
class Question:
    """Everything loaded.

    Attributes:
        task: Name of the task the prompt is of, if it is of one.
        graph: The saved graph, if one was given.
    """

    model: SplicedModel
    prompt: Prompt
    metric: Metric
    task: str | None = None
    graph: AttributionGraph | None = None


def answerable(asked: Asked, *, graphs: bool) -> Question:
    """Load what was asked about.

    Args:
        graphs: Whether the subject may be a saved graph (a path that ends in .json).

    Raises:
        UserError: whatever cannot be found or does not fit together.
    """
    from circuits.errors import UserError

    if (asked.subject is None) == (asked.task is None):
        raise UserError(
            f"give a prompt{' or a saved graph' if graphs else ''}, or --task, and not both; "
            "for example --task ioi"
        )
    if graphs and asked.subject and asked.subject.endswith(".json"):
        return _from_graph(asked)
    if asked.subject and asked.subject.endswith(GRAPH_FILES) and len(asked.subject.split()) == 1:
        raise UserError(
            f"{asked.subject!r} is the name of a file; give a prompt"
            f"{', or a graph that trace saved as .json' if graphs else ''}"
        )
    if asked.task is not None:
        return _from_task(asked)
    return _from_text(asked)


def reference_named(name: str, question: Question) -> Reference:
    """`zero`, or `corrupted` for the prompt's partner.

    Raises:
        UserError: the prompt has no partner, or its length differs.
    """
    from circuits import UserError, corrupted_reference, zero_reference

    if name == "zero":
        return zero_reference(question.model, question.prompt)
    if question.prompt.corrupted is None:
        raise UserError("the prompt has no corrupted partner; give one with --corrupted")
    return corrupted_reference(question.model, question.prompt)


def _from_text(asked: Asked) -> Question:
    from circuits import Prompt

    assert asked.subject is not None
    model = asked.loading.load()
    prompt = Prompt(asked.subject, asked.target, asked.foil, asked.corrupted)
    if prompt.target is None:
        prompt = Prompt(prompt.text, _likeliest(model, prompt), prompt.foil, prompt.corrupted)
    _check_pair(model, prompt)
    return Question(model, prompt, _metric(asked.metric, prompt, model))


def _from_task(asked: Asked) -> Question:
    from circuits import UserError
    from experiments.tasks import TASKS

    given = [n for n in ("target", "foil", "corrupted") if getattr(asked, n) is not None]
    if given:
        raise UserError(
            f"--task brings its own {given[0]}; leave out --{given[0]}, or give a prompt"
        )
    assert asked.task is not None
    task = TASKS[asked.task]
    prompts = task.prompts("heldout", n=asked.example + 1)
    if len(prompts) <= asked.example:
        raise UserError(
            f"task {asked.task} has no held-out example {asked.example}; "
            f"examples count from 0 to {len(prompts) - 1}"
        )
    prompt = prompts[asked.example]
    model = asked.loading.load()
    _check_pair(model, prompt)
    metric = task.metric(prompt)
    if asked.metric is not None:
        metric = _metric(asked.metric, prompt, model)
    return Question(model, prompt, metric, task=asked.task)


def _from_graph(asked: Asked) -> Question:
    """The question that a saved graph answers."""
    from attribution.fingerprint import check_weights
    from circuits import Prompt, UserError
    from graphs import AttributionGraph

    assert asked.subject is not None
    given = [n for n in ("target", "foil", "metric") if getattr(asked, n) is not None]
    if given:
        raise UserError(
            f"a saved graph brings its own {given[0]}; leave out --{given[0]}, or trace anew"
        )
    graph = AttributionGraph.load(asked.subject)
    recorded = graph.provenance
    try:
        kept = {k: recorded["prompt"].get(k) for k in ("target", "foil", "corrupted")}
        kept["corrupted"] = asked.corrupted or kept["corrupted"]
        prompt = Prompt(recorded["prompt"]["text"], **kept)
        name, files = recorded["model"], recorded["dictionaries"]
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{asked.subject} does not say which model and prompt it is of; trace the prompt again"
        ) from error
    kinds = ",".join(dict.fromkeys(site.partition(".")[0] for site in files))
    again = recorded.get("dictionaries_from") if asked.loading.model is None else None
    model = asked.loading.otherwise(model=name, sites=kinds, dictionaries=again).load()
    _check_dictionaries(model, files, asked.subject)
    check_weights(model, recorded, asked.subject)
    _check_pair(model, prompt)
    metric = _same_metric(recorded, prompt, model, asked.subject)
    return Question(model, prompt, metric, task=recorded.get("task"), graph=graph)


def _metric(name: str | None, prompt: Prompt, model: SplicedModel) -> Metric:
    """The metric by its name on the command line, its tokens checked."""
    from attribution import log_prob, logit, logit_diff, prob
    from circuits.errors import UserError

    if name == "logit-diff" and prompt.foil is None:
        raise UserError("--metric logit-diff needs --foil; give one, or --metric logit")
    makers = {"logit-diff": logit_diff, "logit": logit, "log-prob": log_prob, "prob": prob}
    metric = makers[name or ("logit-diff" if prompt.foil else "logit")](prompt)
    metric.bind(model)
    return metric


def _same_metric(
    recorded: dict[str, Any], prompt: Prompt, model: SplicedModel, path: str
) -> Metric:
    """The metric that a graph explains, by the name that its provenance has."""
    from circuits.errors import UserError
    from experiments.tasks import TASKS

    candidates = []
    if recorded.get("task"):
        candidates.append(TASKS[recorded["task"]].metric(prompt))
    for name in METRICS if prompt.target else ():
        if name != "logit-diff" or prompt.foil:
            candidates.append(_metric(name, prompt, model))
    for metric in candidates:
        if metric.name == recorded.get("metric"):
            return metric
    raise UserError(
        f"{path} explains {recorded.get('metric')!r}, which its file alone cannot bring back; "
        "test it from Python, with the metric it was made with"
    )


def _likeliest(model: SplicedModel, prompt: Prompt) -> str:
    """The model's most likely next token, as text."""
    token = model(prompt)[0, -1].argmax()
    return model.words(token[None])[0]


def _check_pair(model: SplicedModel, prompt: Prompt) -> None:
    """Refuse, before anything long, a prompt that cannot be read or a partner of another length."""
    from circuits.errors import UserError

    clean = model.tokens(prompt).shape[1]
    corrupted = clean if prompt.corrupted is None else model.tokens(prompt.corrupted).shape[1]
    if clean != corrupted:
        raise UserError(
            f"the clean prompt has {clean} tokens and the corrupted one {corrupted}; "
            "they must be equally long, so that positions correspond"
        )


def _check_dictionaries(model: SplicedModel, recorded: dict[str, Any], path: str) -> None:
    """Refuse to test a graph with other dictionaries than it was made with."""
    from circuits.errors import UserError

    loaded = {str(site): model.dictionaries.summary(site).name for site in model.sites}
    for site, entry in recorded.items():
        if loaded.get(site) != entry.get("name"):
            raise UserError(
                f"{path} was made with {entry.get('name')} at {site}, "
                f"where now there is {loaded.get(site) or 'nothing'}; "
                "give the same --dictionaries, --width, --l0 and --sites as for the trace"
            )
