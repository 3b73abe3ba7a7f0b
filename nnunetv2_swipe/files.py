"""Files that are read with an error that names them, and written so that they are whole or not there at all."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def read_json_object(file: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds an object (a dictionary), such as a plan or dataset.json.

    Raises:
        ValueError: The file is not JSON, or holds something else; the message names it.
        OSError: There is no such file, or no access to it.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; it must hold a JSON object (in braces).")
    return content


def write_json(content: Any, file: str | Path) -> None:  # noqa: ANN401
    """Write a JSON file, which appears when it is complete.

    Raises:
        OSError: It cannot be written; a file that was there before is still there.
    """
    with replaced(file) as unfinished:
        unfinished.write_text(json.dumps(content, indent=4), encoding="utf-8")


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
        folder = Path(tempfile.mkdtemp(prefix=f".unfinished_{file.name}_", dir=file.parent))
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


def flush_to_disk(file: Path) -> None:
    """Wait until a file's content is on the disk; OSError if it does not fit there."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stamp(file: str | Path) -> list[Any]:
    """Name, size, and times of the last change of a file's content and of its entry, in plain JSON types.

    Copying and unpacking keep the first of the two times, but nothing keeps the second. Two stamps are compared for
    equality: a file that was put in another's place has another stamp, whether it is older or newer.
    """
    found = Path(file).stat()
    return [Path(file).name, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
