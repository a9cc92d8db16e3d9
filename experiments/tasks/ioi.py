"""Indirect-object identification: of two names, the one that was not said again."""

from random import Random

from circuits.prompts import Prompt
from experiments.tasks.task import Split, Task, answered, draw
from experiments.tasks.words import NAMES, OBJECTS, PLACES, names

TEMPLATES = (
    "when {a} and {b} went to the {place} , {s} gave a {object} to",
    "after {a} and {b} met at the {place} , {s} handed a {object} to",
    "while {a} and {b} were at the {place} , {s} offered a {object} to",
    "as {a} and {b} left the {place} , {s} bought a {object} for",
)


def _draw(rng: Random, split: Split) -> Prompt:
    """A prompt; the pair of names belongs to the split, whichever of the two comes first."""
    while True:
        first, second = draw(rng, split, len(NAMES), len(NAMES))
        if first != second:
            break
    a, b = names()[first], names()[second]
    s, io = (a, b) if rng.random() < 0.5 else (b, a)
    template = rng.choice(TEMPLATES)
    place, thing = rng.choice(PLACES), rng.choice(OBJECTS)
    return Prompt(
        template.format(a=a, b=b, s=s, place=place, object=thing),
        target=io,
        foil=s,
        corrupted=template.format(a=a, b=b, s=io, place=place, object=thing),
    )


IOI = Task(
    name="ioi",
    summary="'when Mary and John went to the store , John gave a drink to' -> Mary",
    sentence=lambda rng, split: answered(_draw(rng, split)),
    prompt=_draw,
)
