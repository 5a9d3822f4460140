"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake in a config, a command or the data; its message is one line that the command line shows as it is.

    The line says what is wrong, the value given, what would be right, and where.
    """


def reason(error: Exception) -> str:
    """What another library's error says, on one line, to be quoted in one of ours."""
    return " ".join(str(error).split()) or type(error).__name__
