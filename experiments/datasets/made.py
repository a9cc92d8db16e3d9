"""Pairs made from lists: indirect objects, cities and coloured objects; the same for one seed.

Each function gives the prompts, and what of the lists was left out, by reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

from circuits import Prompt

Made = tuple[list[Prompt], dict[str, tuple[str, ...]]]
N = 2000
"""Pairs of a set."""


def indirect_objects(
    names: Sequence[str],
    objects: Sequence[str],
    places: Sequence[str],
    templates: Sequence[str],
    *,
    seed: int,
) -> Made:
    """In the partner the other name is said twice.

    Templates with "an" are for objects that begin with a vowel, those with "a" for others; those
    without an object for any.
    """
    fitting = {
        template: [thing for thing in objects if _article_fits(template, thing)]
        for template in templates
    }
    usable = [template for template, things in fitting.items() if things]
    odd = tuple(template for template, things in fitting.items() if not things)
    rng, found = Random(f"ioi {seed}"), {}
    while len(found) < N:
        template = rng.choice(usable)
        first, second = rng.sample(names, 2)
        subject, other = rng.sample((first, second), 2)
        thing, place = rng.choice(fitting[template]), rng.choice(places)
        fixed = {"name_A": first, "name_B": second, "place": place, "object": thing}
        clean, corrupted = (template.format(name_C=name, **fixed) for name in (subject, other))
        found[clean] = Prompt(clean, f" {other}", f" {subject}", corrupted)
    reason = "a template whose article goes with no object"
    return list(found.values()), {reason: odd} if odd else {}


def _article_fits(template: str, thing: str) -> bool:
    article = re.search(r"\b(an?) {object}", template)
    return article is None or (article[1] == "an") == (thing[0] in "aeiou")


CITY = {
    "Country": "{city} is a city in the country of",
    "Continent": "{city} is a city on the continent of",
    "Language": "The main language that people in {city} speak is",
}
"""A text for each of RAVEL's attributes that a word or two answer."""


def cities(table: Mapping[str, Mapping[str, str]], attribute: str, *, seed: int) -> Made:
    """The partner is about a city of which the answer is another."""
    rng, found = Random(f"{attribute} {seed}"), {}
    names = [city for city, told in table.items() if told[attribute] not in city]
    telling = tuple(city for city, told in table.items() if told[attribute] in city)
    while len(found) < N:
        city, other = rng.sample(names, 2)
        target, foil = (table[name][attribute] for name in (city, other))
        if target != foil:
            clean, corrupted = (CITY[attribute].format(city=name) for name in (city, other))
            found[clean] = Prompt(clean, f" {target}", f" {foil}", corrupted)
    return list(found.values()), {"a city whose name says the answer": telling} if telling else {}


def coloured_objects(pairs: Sequence[Mapping[str, str]], *, seed: int) -> Made:
    """Questions with two choices; in the partner the choices are swapped."""
    rng, found = Random(f"colours {seed}"), {}
    colours = sorted({pair["color"] for pair in pairs})
    while len(found) < N:
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
    return list(found.values()), {}
