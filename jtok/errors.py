"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Bad input, said in one sentence: what was wrong and what would be right.

    The command line prints the sentence on stderr and exits with code 2; a library user sees a `ValueError`.
    """
