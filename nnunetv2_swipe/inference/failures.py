"""Errors of single cases, after which a run goes on with the others."""

import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_OF_EVERY_CASE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Errors that the next case would meet as well: the disk or the user's share of it is full."""


class CasesFailed(RuntimeError):  # noqa: N818
    """Some cases of a run failed; the others are done.

    Attributes:
        reasons: Of each failed case, by the name of its first file, what went wrong.
        results: What the run returns without an error, with None for each failed case.
    """

    def __init__(self, reasons: dict[str, str], n_cases: int, results: Sequence[Any] = ()) -> None:
        lines = [_line(name, reason) for name, reason in reasons.items()]
        super().__init__("\n".join([f"{len(reasons)} of {n_cases} cases failed, the others are done:", *lines]))
        self.reasons = reasons
        self.results = list(results)


class Failures:
    """Collects the errors of single cases.

    Args:
        verbose: Log where each error comes from, too.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._reasons: dict[str, str] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Context for the work on one case, whose error is logged and kept; it may be called in a thread.

        A full disk is an error of every case and is let through, as is an interruption.

        Args:
            name: The case, by its first file.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _OF_EVERY_CASE:
                raise
            self._reasons[name] = reason = _reason(error)  # not the error, which would keep the case in memory
            logger.error("Failed, going on with the next case: %s", _line(name, reason), exc_info=self._verbose)

    def raise_if_any(self, n_cases: int, results: Sequence[Any] = ()) -> None:
        """End a run.

        Args:
            n_cases: How many cases there were.
            results: What the run returns.

        Raises:
            CasesFailed: Cases failed; it names them.
        """
        if self._reasons:
            raise CasesFailed(self._reasons, n_cases, results)


def _reason(error: Exception) -> str:
    """What an error says, in one line, with its type where the text alone says little."""
    text = " ".join(str(error).split())
    if text and isinstance(error, (ValueError, OSError, RuntimeError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line(name: str, reason: str) -> str:
    return reason if name in reason else f"{name}: {reason}"
