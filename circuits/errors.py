"""The one exception for the user's mistakes; it says what came, what was expected, what to try."""

from collections.abc import Sequence


class UserError(ValueError):
    """Input that cannot be used. The command line prints the message and exits with code 2."""


def first_of(names: Sequence[str], n: int = 3) -> str:
    """The first `n` and how many more, for messages: `a, b, c and 5 more`."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more
