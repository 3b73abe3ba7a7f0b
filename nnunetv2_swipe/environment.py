"""Whole numbers that a user gives by environment variables."""

import os
import re

LARGEST = 10**9 - 1


def whole_number(variable: str, default: int, *, lowest: int) -> int:
    """The whole number that an environment variable holds; the default if it is not set.

    Raises:
        ValueError: It holds something else, or a number below `lowest` or above 999,999,999.
    """
    text = os.environ.get(variable)
    if text is None:
        return default
    # int() alone takes underscores and the digits of all scripts; str.isdigit() lets through what int() does not take
    number = int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else -1
    if number < lowest:
        raise ValueError(
            f"The environment variable {variable} is {text!r}; it must be a whole number from {lowest} to {LARGEST}."
        )
    return number
