"""Pairs made from lists: indirect objects, cities and coloured objects; the same for one seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

from circuits import Prompt


def indirect_objects(
    names: Sequence[str],
    objects: Sequence[str],
    places: Sequence[str],
    templates: Sequence[str],
    *,
    n: int,
    seed: int,
) -> list[Prompt]:
    """`n` different prompts; in the partner the other name is said twice.

    Templates with "an" are for objects that begin with a vowel, those with "a" for others.
    """
    rng, found = Random(f"ioi {seed}"), {}
    while len(found) < n:
        template, thing = rng.choice(templates), rng.choice(objects)
        if ("an {object}" in template) != (thing[0] in "aeiou"):
            continue
        first, second = rng.sample(names, 2)
        subject, other = rng.sample((first, second), 2)
        fixed = {"name_A": first, "name_B": second, "place": rng.choice(places), "object": thing}
        clean, corrupted = (template.format(name_C=name, **fixed) for name in (subject, other))
        found[clean] = Prompt(clean, f" {other}", f" {subject}", corrupted)
    return list(found.values())


CITY = {
    "Country": "{city} is a city in the country of",
    "Continent": "{city} is a city on the continent of",
    "Language": "The main language that people in {city} speak is",
}
"""A text for each of RAVEL's attributes that a word or two answer."""


def cities(
    table: Mapping[str, Mapping[str, str]], attribute: str, *, n: int, seed: int
) -> list[Prompt]:
    """`n` different prompts; the partner is about a city of which the answer is another.

    Cities whose name says the answer are left to others.
    """
    rng, found = Random(f"{attribute} {seed}"), {}
    names = [city for city, told in table.items() if told[attribute] not in city]
    while len(found) < n:
        city, other = rng.sample(names, 2)
        target, foil = (table[name][attribute] for name in (city, other))
        if target != foil:
            clean, corrupted = (CITY[attribute].format(city=name) for name in (city, other))
            found[clean] = Prompt(clean, f" {target}", f" {foil}", corrupted)
    return list(found.values())


def coloured_objects(pairs: Sequence[Mapping[str, str]], *, n: int, seed: int) -> list[Prompt]:
    """`n` different questions with two choices; in the partner the choices are swapped."""
    rng, found = Random(f"colours {seed}"), {}
    colours = sorted({pair["color"] for pair in pairs})
    while len(found) < n:
        pair = rng.choice(pairs)
        right, wrong = pair["color"], rng.choice(colours)
        if right == wrong or re.search(rf"\b{wrong}\b", pair["object"]):
            continue
        letter = rng.choice("AB")
        texts = [
            f"The {pair['object']} is {right}. What color is the {pair['object']}?\n"
            f"A. {a}\nB. {b}\nAnswer:"
            for a, b in ((right, wrong), (wrong, right))
        ]
        clean, corrupted = texts if letter == "A" else texts[::-1]
        foil = "B" if letter == "A" else "A"
        found[clean] = Prompt(clean, f" {letter}", f" {foil}", corrupted)
    return list(found.values())
