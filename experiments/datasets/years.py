"""Greater-than on years: `The war lasted from the year 1732 to the year 17` -> 33 to 99."""

from __future__ import annotations

import re
from dataclasses import replace

from attribution import prob_diff
from attribution.metrics import Metric
from circuits import Prompt, UserError
from experiments.datasets.pairs import Pairs

LAST = 99
NAME = "p(later) - p(not later)"


def start_of(text: str) -> int | None:
    """The last two digits of the first year of four digits in `text`, if it has one."""
    match = re.search(r"\b\d\d(\d\d)\b", text)
    return int(match[1]) if match else None


def later_years(text: str, corrupted: str) -> Prompt:
    """The prompt with the next year as its target and the one before as its foil."""
    start = _start(text)
    return Prompt(text, f"{start + 1:02d}", f"{start - 1:02d}", corrupted)


def year_diff(prompt: Prompt) -> Metric:
    """The probability on later years minus that on others, two digits each.

    Raises:
        UserError: the prompt has no year of four digits.
    """
    start = _start(prompt.text)
    years = [f"{year:02d}" for year in range(LAST + 1)]
    return prob_diff(years[start + 1 :], years[: start + 1], name=NAME)


def digit_diff(prompt: Prompt) -> Metric:
    """The same for tokens of one digit: that on larger tens minus that on smaller ones.

    The year's own tens are on neither side, for the digit after them decides.

    Raises:
        UserError: the prompt has no year of four digits.
    """
    tens = _start(prompt.text) // 10
    digits = [str(digit) for digit in range(10)]
    return prob_diff(digits[tens + 1 :], digits[:tens], name=NAME)


def by_digits(pairs: Pairs) -> Pairs:
    """The same questions for models whose tokens are single digits, as Gemma's: for the tens.

    Years of which no tens are larger, or none smaller, are left out.
    """
    ends = [prompt for prompt in pairs if not 0 < _start(prompt.text) // 10 < 9]
    kept = pairs.without({"no larger or no smaller tens": ends}) if ends else pairs
    prompts = []
    for prompt in kept:
        tens = _start(prompt.text) // 10
        prompts.append(replace(prompt, target=str(tens + 1), foil=str(tens - 1)))
    return replace(kept, prompts=tuple(prompts), metric=digit_diff)


def _start(text: str) -> int:
    start = start_of(text)
    if start is None:
        raise UserError(f"no year of four digits in {text!r}")
    return start
