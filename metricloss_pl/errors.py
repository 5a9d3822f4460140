"""The one exception that stands for a user's mistake."""

from typing import get_args


class UserError(ValueError):
    """A mistake in a config, a command or the data; its message is one line that the command line shows as it is.

    The line says what is wrong, the value given, what would be right, and where.
    """


def reason(error: BaseException) -> str:
    """What another library's error says, on one line, to be quoted in one of ours."""
    text = getattr(error, "strerror", None) or str(error)  # an OSError's without its number and file
    return " ".join(text.split()) or type(error).__name__


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: "1 class", "2 classes", "1,200 images"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def check_choice(name: str, value: object, choices: object) -> None:
    """Check an option against the Literal (or Literal | None) that lists its values.

    Raises:
        UserError: It is none of them.
    """
    allowed = [choice for part in (get_args(choices) or (choices,)) for choice in (get_args(part) or (part,))]
    allowed = [None if choice is type(None) else choice for choice in allowed]
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
