"""Subject-verb agreement, alone and with another noun in the way."""

from collections.abc import Callable
from random import Random

from circuits.prompts import Prompt
from experiments.tasks.task import Sentence, Split, Task, draw
from experiments.tasks.words import (
    ADJECTIVES,
    OTHER_PEOPLE,
    PEOPLE,
    PREPOSITIONS,
    SAYING,
    THINGS,
    VERBS,
)

VERB_FORMS = frozenset(form for verb in VERBS for form in verb)
Forms = tuple[str, str]  # singular, plural: of a noun or of a verb
Frame = tuple[str, Forms]  # a sentence up to its verb, `{}` for the noun that decides; that noun


def _simple(rng: Random, split: Split) -> Frame:
    adjective, noun = draw(rng, split, len(ADJECTIVES), len(PEOPLE))
    return f"the {ADJECTIVES[adjective]} {{}}", PEOPLE[noun]


def _across_pp(rng: Random, split: Split) -> Frame:
    noun, thing = draw(rng, split, len(PEOPLE), len(THINGS))
    return f"the {{}} {rng.choice(PREPOSITIONS)} the {rng.choice(THINGS[thing])}", PEOPLE[noun]


def _across_rc(rng: Random, split: Split) -> Frame:
    noun, other = draw(rng, split, len(PEOPLE), len(OTHER_PEOPLE))
    number = rng.randrange(2)
    inner = f"{OTHER_PEOPLE[other][number]} {rng.choice(VERBS)[number]}"
    return f"the {{}} that the {inner}", PEOPLE[noun]


def _within_rc(rng: Random, split: Split) -> Frame:
    noun, other = draw(rng, split, len(PEOPLE), len(OTHER_PEOPLE))
    return f"the {rng.choice(PEOPLE[noun])} that the {{}}", OTHER_PEOPLE[other]


def _writer(frame: Callable[[Random, Split], Frame]) -> Callable[[Random, Split], Sentence]:
    """Writes sentences `<frame> <verb> the <noun> .`; each of their verbs is an answer."""

    def sentence(rng: Random, split: Split) -> Sentence:
        text, subject = frame(rng, split)
        number = rng.randrange(2)
        verb, thing = rng.choice(VERBS)[number], rng.choice(rng.choice(THINGS + PEOPLE))
        whole = f"{text.format(subject[number])} {verb} the {thing} ."
        places = (place for place, word in enumerate(whole.split()) if word in VERB_FORMS)
        return Sentence(whole, frozenset(places))

    return sentence


def _asker(frame: Callable[[Random, Split], Frame]) -> Callable[[Random, Split], Prompt]:
    """Asks for the verb; target and foil are two forms of one verb, corrupted the other number."""

    def prompt(rng: Random, split: Split) -> Prompt:
        text, subject = frame(rng, split)
        number = rng.randrange(2)
        verb = rng.choice(VERBS)
        return Prompt(
            text.format(subject[number]),
            target=verb[number],
            foil=verb[1 - number],
            corrupted=text.format(subject[1 - number]),
        )

    return prompt


def _right(prompt: Prompt) -> tuple[str, ...]:
    """Every verb in the target's number: the language leaves open which verb follows."""
    number = 0 if any(prompt.target == verb[0] for verb in VERBS) else 1
    return tuple(verb[number] for verb in (*VERBS, SAYING))


def _task(name: str, summary: str, ask: Callable, write: Callable) -> Task:
    return Task(name, summary, sentence=_writer(write), prompt=_asker(ask), right=_right)


SIMPLE = _task("agreement_simple", "'the tall farmers' -> greet", _simple, _simple)
ACROSS_PP = _task("agreement_pp", "'the farmers near the car' -> greet", _across_pp, _across_pp)
ACROSS_RC = _task(
    "agreement_rc", "'the farmers that the chef likes' -> greet", _across_rc, _across_rc
)
# its sentences are those of the task above: the verb asked for is the one inside
WITHIN_RC = _task(
    "agreement_within_rc", "'the farmers that the chef' -> likes", _within_rc, _across_rc
)
