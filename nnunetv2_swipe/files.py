"""Files that are read with an error that names them, and written so that they are whole or not there at all."""

import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_ATTEMPTS, _PAUSE_S = 5, 0.2


def read_json(file: str | Path) -> Any:  # noqa: ANN401
    """Read a JSON file.

    Another process may be writing the file just now, so one that cannot be parsed is read again for a second.

    Raises:
        ValueError: The file is not JSON; the message names it.
        OSError: There is no such file, or no access to it.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            return json.loads(Path(file).read_bytes())
        except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError, too
            fault = error
    raise ValueError(f"{file} is not a JSON file ({fault}). It is damaged or was cut off; restore it.") from fault


def read_json_object(file: str | Path, required: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON file that holds an object (a dictionary), such as a plan or dataset.json.

    Args:
        file: The file.
        required: Keys that it must have.

    Raises:
        ValueError: The file is not JSON, holds something else, or lacks a key; the message names it.
        OSError: There is no such file, or no access to it.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; it must hold a JSON object (in braces).")
    missing = [key for key in required if key not in content]
    if missing:
        raise ValueError(f"{file} lacks the key {missing[0]!r}. It is damaged or not complete; restore it.")
    return content


def write_json(content: Any, file: str | Path) -> None:  # noqa: ANN401
    """Write a JSON file, which appears when it is complete.

    Raises:
        OSError: It cannot be written; a file that was there before is still there.
    """
    with replaced(file) as unfinished:
        unfinished.write_text(json.dumps(content, indent=4), encoding="utf-8")


def keep_json(content: Any, file: str | Path) -> None:  # noqa: ANN401
    """Write a JSON file that only saves work; where it cannot be written, such as in a read-only folder, warn."""
    try:
        Path(file).parent.mkdir(exist_ok=True)
        write_json(content, file)
    except OSError as error:
        logger.warning(
            "%s cannot be kept: %s. What it would hold is used, but must be found anew each time.", file, error
        )


@contextmanager
def replaced(file: str | Path) -> Iterator[Path]:
    """Context that gives a path beside `file` to write to, and moves what was written there to `file`.

    The file is flushed to the disk before it gets its name. After an error nothing is left of it, and a file that was
    there before stays as it was. The path ends like `file`, since writers choose the format by the ending.

    Raises:
        OSError: The file cannot be written; the message names it.
    """
    file = Path(file)
    with errors_of_writing(file):
        folder = Path(tempfile.mkdtemp(prefix=_unfinished_prefix(file), dir=file.parent))
        unfinished = folder / file.name
        try:
            yield unfinished
            flush_to_disk(unfinished)
            unfinished.replace(file)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def errors_of_writing(file: str | Path) -> Iterator[None]:
    """Context whose OSError says that `file` cannot be written, whatever path was written to."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, f"{file} cannot be written: {error.strerror or error}") from error


def remove_unfinished(file: str | Path) -> None:
    """Remove what `replaced` left beside a file if its process was killed. No other process may be writing the file."""
    file = Path(file)
    for folder in file.parent.glob(f"{glob.escape(_unfinished_prefix(file))}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _unfinished_prefix(file: Path) -> str:
    return f".unfinished_{file.name}_"


def flush_to_disk(file: Path) -> None:
    """Wait until a file's content is on the disk; OSError if it does not fit there."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stamp(file: str | Path) -> list[Any]:
    """Name, size, and times of the last change of a file's content and of its entry, in plain JSON types.

    Copying and unpacking keep the first of the two times, but not the second (on Windows, the time of creation). Two
    stamps are compared for equality: a file that was put in another's place has another stamp, whether it is older or
    newer.
    """
    found = Path(file).stat()
    return [Path(file).name, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def digest(file: str | Path) -> str:
    """SHA-256 of a file's content, which every copy shares."""
    hashed = hashlib.sha256()
    with Path(file).open("rb") as stream:
        while part := stream.read(2**20):
            hashed.update(part)
    return hashed.hexdigest()
