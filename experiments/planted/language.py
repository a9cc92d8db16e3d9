"""The planted model's little language: a noun, perhaps a second one, and the verb form it asks for.

the dogs often                      ->  run
the dog near the cars there often   ->  runs
"""

from __future__ import annotations

from circuits import Prompt

NUMBERS = ("singular", "plural")
ANIMALS = (("dog", "dogs"), ("cat", "cats"), ("bird", "birds"))
THINGS = (("car", "cars"), ("tree", "trees"))
VERBS = ("runs", "run")
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
TEXT_WORDS = (
    *("the", "near", "there", "often"),
    *(word for pair in ANIMALS + THINGS for word in pair),
    *VERBS,
    "ran",
)
WORDS = SPECIAL + TEXT_WORDS


def meaning(word: str) -> tuple[str, ...]:
    """The features that a word's embedding has, each with size 1, beside the word's own."""
    for kind, pairs in (("animal", ANIMALS), ("thing", THINGS)):
        for pair in pairs:
            if word in pair:
                return kind, NUMBERS[pair.index(word)]
    if word in VERBS:
        return (f"verb {NUMBERS[VERBS.index(word)]}",)
    return {"often": ("ask",), "there": ("place",), "ran": ("past",), "<bos>": ("bos",)}.get(
        word, ()
    )


def question(
    animal: int, number: int, thing: int | None = None, thing_number: int = 0, *, place: bool = True
) -> Prompt:
    """The prompt that asks for the verb of an animal; its partner has the other numbers.

    Args:
        animal: Which of `ANIMALS`.
        number: Which of `NUMBERS`.
        thing: Which of `THINGS` stands near it, if any.
        thing_number: Its number.
        place: Whether the thing is followed by `there`, where its number is copied to.
    """

    def text(flipped: int) -> str:
        words = ["the", ANIMALS[animal][number ^ flipped]]
        if thing is not None:
            words += ["near", "the", THINGS[thing][thing_number ^ flipped]]
            words += ["there"] * place
        return " ".join([*words, "often"])

    return Prompt(text(0), target=VERBS[number], foil=VERBS[1 - number], corrupted=text(1))


def prompts() -> list[Prompt]:
    """Every prompt of the language: 54 of them."""
    nouns = [(animal, number) for animal in range(len(ANIMALS)) for number in range(2)]
    things = [(thing, number) for thing in range(len(THINGS)) for number in range(2)]
    alone = [question(*noun) for noun in nouns]
    return alone + [
        question(*noun, *thing, place=place)
        for noun in nouns
        for thing in things
        for place in (True, False)
    ]
