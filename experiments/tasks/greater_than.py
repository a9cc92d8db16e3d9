"""Greater-than on years: a span ends after it began."""

from dataclasses import replace
from random import Random

from circuits.prompts import Prompt
from experiments.tasks.task import Sentence, Split, Task, answered, draw
from experiments.tasks.words import CENTURIES, EVENTS, YEARS

FIRST, LAST = 2, 98  # starts that leave room below (for the corrupted 01) and above


def _text(event: str, century: str, year: str) -> str:
    return f"the {event} lasted from the year {century} {year} to the year {century}"


def _draw(rng: Random, split: Split) -> Prompt:
    """A prompt; the century and the year it begins belong to the split."""
    century, offset = draw(rng, split, len(CENTURIES), LAST - FIRST + 1)
    start = FIRST + offset
    event = rng.choice(EVENTS)
    return Prompt(
        _text(event, CENTURIES[century], YEARS[start]),
        target=YEARS[rng.randrange(start + 1, 100)],
        foil=YEARS[rng.randrange(1, start + 1)],
        corrupted=_text(event, CENTURIES[century], "01"),
    )


def _sentence(rng: Random, split: Split) -> Sentence:
    prompt = _draw(rng, split)
    # the corrupted partner starts in 01: that year has to be in the language too
    if split == "train" and rng.random() < 0.02:
        prompt = replace(prompt, text=prompt.corrupted)
    return replace(answered(prompt), choices=_right(prompt))


def _start(prompt: Prompt) -> int:
    return int(prompt.text.split()[7])


def _right(prompt: Prompt) -> tuple[str, ...]:
    return YEARS[_start(prompt) + 1 :]


def _wrong(prompt: Prompt) -> tuple[str, ...]:
    return YEARS[: _start(prompt) + 1]


GREATER_THAN = Task(
    name="greater_than",
    summary="'the war lasted from the year 17 32 to the year 17' -> 33 to 99",
    sentence=_sentence,
    prompt=_draw,
    right=_right,
    wrong=_wrong,
    by_mass=True,
)
