"""Worker processes: a few jobs at a time, each with its own error; workers end with the process that started them."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

_INTERRUPTION_S = 0.2


def end_with_parent() -> None:
    """Prepare a worker process: it ends as soon as its parent does, even one that was killed, and at Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own way would show the stack of every worker
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def finished_in_order(
    function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], num_processes: int
) -> Iterator[Future]:
    """Call a function for every job, and give the finished calls in the order of the jobs.

    Args:
        function: Of a module, so that it reaches the processes.
        jobs: The arguments of each call.
        num_processes: Processes to call it in; as many jobs are ahead of the one that was taken last, so that no more
            results than that are in memory. 0: this process calls it when its result is asked for.

    Yields:
        For every job a finished future, which holds the result or the error of this one call.

    Raises:
        RuntimeError: A process was killed.
    """
    if num_processes == 0:
        for job in jobs:
            yield _called_here(function, job)
        return
    pool = ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"), initializer=end_with_parent)
    ahead: deque[Future] = deque()
    try:
        for job in jobs:
            ahead.append(_submitted(pool, function, job))
            if len(ahead) > num_processes:
                yield _finished(ahead.popleft())
        while ahead:
            yield _finished(ahead.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _called_here(function: Callable[..., Any], job: tuple[Any, ...]) -> Future:
    future: Future = Future()
    try:
        future.set_result(function(*job))
    except Exception as error:
        future.set_exception(error)
    return future


def _submitted(pool: ProcessPoolExecutor, function: Callable[..., Any], job: tuple[Any, ...]) -> Future:
    try:
        return pool.submit(function, *job)
    except BrokenProcessPool as error:  # what was finished before is still given
        future: Future = Future()
        future.set_exception(error)
        return future


def _finished(future: Future) -> Future:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        time.sleep(_INTERRUPTION_S)  # of an interruption, which ends the workers too, this process hears any moment
        raise RuntimeError(
            "A process that preprocesses was killed, most likely because the memory was full. Use fewer such "
            "processes, or none: -npp 0 (in Python: num_processes_preprocessing=0). A script of your own must start "
            'its work below the line `if __name__ == "__main__":`.'
        ) from error
    return future
