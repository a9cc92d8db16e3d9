"""The one exception for the user's mistakes; it says what came, what was expected, what to try."""


class UserError(ValueError):
    """Input that cannot be used. The command line prints the message and exits with code 2."""
