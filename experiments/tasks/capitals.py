"""Recall of facts: city to country, country to capital, and both in one step."""

from collections.abc import Callable
from random import Random

from circuits.prompts import Prompt
from experiments.tasks.task import Split, Task, answered, draw, in_split
from experiments.tasks.words import COUNTRIES, PEOPLE, SAYING, cities

NAMES = tuple(COUNTRIES)
CITIES = cities()
TO_COUNTRY = (
    "{city} is a city in",
    "the city of {city} lies in",
    "the country of {city} is",
)
TO_CAPITAL = ("the capital of {country} is", "{country} has its capital in")
TWO_HOPS = ("the capital of the country of {city} is", "the country of {city} has its capital in")


def _capital(country: str) -> str:
    return COUNTRIES[country][0]


def _opener(noun: int, rng: Random) -> str:
    """`the farmer says that`, in either number."""
    number = rng.randrange(2)
    return f"the {PEOPLE[noun][number]} {SAYING[number]} that "


def _other(rng: Random, entries: list[tuple[str, str]], answer: str) -> tuple[str, str]:
    """Another entity, with another answer."""
    return rng.choice([entry for entry in entries if entry[1] != answer])


def _one_hop(
    rng: Random, split: Split, templates: tuple[str, ...], key: str, facts: list[tuple[str, str]]
) -> Prompt:
    """The fact itself is always trained; who says it, together with the entity, is of the split."""
    noun, index = draw(rng, split, len(PEOPLE), len(facts))
    opener = _opener(noun, rng)
    if split == "train" and rng.random() < 0.5:
        opener, index = "", rng.randrange(len(facts))
    return _ask(rng, opener + rng.choice(templates), key, facts[index], facts)


def _ask(
    rng: Random, template: str, key: str, fact: tuple[str, str], facts: list[tuple[str, str]]
) -> Prompt:
    entity, answer = fact
    other, foil = _other(rng, facts, answer)
    return Prompt(
        template.format(**{key: entity}),
        target=answer,
        foil=foil,
        corrupted=template.format(**{key: other}),
    )


def _city_country(rng: Random, split: Split) -> Prompt:
    return _one_hop(rng, split, TO_COUNTRY, "city", list(CITIES))


def _country_capital(rng: Random, split: Split) -> Prompt:
    facts = [(country, _capital(country)) for country in NAMES]
    return _one_hop(rng, split, TO_CAPITAL, "country", facts)


def two_hop_cities(split: Split) -> list[tuple[str, str]]:
    """The cities of a split, with their country's capital.

    The two hops of a held-out city are never trained, only that the city is in its country and
    what the capital of that country is.
    """
    return [
        (city, _capital(country))
        for index, (city, country) in enumerate(CITIES)
        if in_split(split, index % 7, NAMES.index(country))
    ]


def _two_hops(rng: Random, split: Split) -> Prompt:
    facts = two_hop_cities(split)
    opener = _opener(rng.randrange(len(PEOPLE)), rng) if rng.random() < 0.5 else ""
    return _ask(rng, opener + rng.choice(TWO_HOPS), "city", rng.choice(facts), facts)


def _task(name: str, summary: str, ask: Callable[[Random, Split], Prompt]) -> Task:
    return Task(name, summary, sentence=lambda rng, split: answered(ask(rng, split)), prompt=ask)


CITY_COUNTRY = _task("city_country", "'Lyon is a city in' -> France", _city_country)
COUNTRY_CAPITAL = _task("country_capital", "'the capital of France is' -> Paris", _country_capital)
CITY_CAPITAL = _task("city_capital", "'the capital of the country of Lyon is' -> Paris", _two_hops)
