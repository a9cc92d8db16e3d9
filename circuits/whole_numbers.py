"""Whole numbers that the user gives: how many, how often, or the seed of what is random."""

from numbers import Integral
from typing import Any

from circuits.errors import UserError


def whole_number(name: str, number: Any, least: int = 1, note: str = "") -> int:
    """`number` as an int, whichever library's whole number it is.

    Args:
        name: Of the argument, for the message.
        note: What else there is to say of it.

    Raises:
        UserError: it is no whole number from `least` on.
    """
    if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
        raise UserError(f"{name}={number!r}; give a whole number from {least} on{note}")
    return int(number)


def number_or_none(name: str, number: Any, meaning: str) -> int | None:
    """`number` as `whole_number` gives it, or None, which is `meaning`.

    Raises:
        UserError: it is neither.
    """
    return None if number is None else whole_number(name, number, note=f", or None for {meaning}")


def checked_seed(seed: Any) -> int:
    """`seed` as `whole_number` gives it.

    Raises:
        UserError: it is no whole number from 0 on.
    """
    return whole_number("seed", seed, 0)
