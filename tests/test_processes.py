"""Worker processes: a few jobs ahead, errors of single calls, and no worker that outlives its parent."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_swipe.processes import finished_in_order

SLEEPING = """
from nnunetv2_swipe.processes import finished_in_order

jobs = ["(__import__('time').sleep(0.5), __import__('os').getpid())[1]"] * 2 + ["__import__('time').sleep(600)"] * 3
if __name__ == "__main__":
    for call in finished_in_order(eval, [(job,) for job in jobs], 2):
        print(call.result(), flush=True)
"""
"""Two workers that tell their number, then sleep; evaluated, since a program given by -c has no module."""


def outcomes(jobs, num_processes):
    return [
        call.exception() or call.result() for call in finished_in_order(eval, [(job,) for job in jobs], num_processes)
    ]


@pytest.mark.parametrize("num_processes", [0, 2])
def test_every_call_has_its_own_result_or_error_in_the_order_of_the_jobs(num_processes):
    first, second, third, fourth = outcomes(["1", "1 / 0", "[][0]", "4"], num_processes)
    assert (first, fourth) == (1, 4)
    assert isinstance(second, ZeroDivisionError)
    assert isinstance(third, IndexError)


@pytest.mark.parametrize("num_processes", [0, 1, 2])
def test_no_more_jobs_are_begun_ahead_than_there_are_processes(num_processes):
    begun = []
    jobs = (begun.append(i) or (str(i),) for i in range(6))
    for taken, call in enumerate(finished_in_order(eval, jobs, num_processes), start=1):
        assert call.result() == taken - 1
        assert len(begun) <= taken + num_processes


def test_a_killed_process_is_told_with_a_remedy_after_what_was_finished():
    jobs = [("1",), ("__import__('os').kill(__import__('os').getpid(), 9)",), ("3",)]
    calls = finished_in_order(eval, jobs, 1)
    assert next(calls).result() == 1
    with pytest.raises(RuntimeError, match=r"memory was full.* -npp 0"):
        list(calls)


def is_running(number):
    """Not a process that has ended and waits for its parent to ask how."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes there are")
def test_workers_end_when_their_parent_is_killed():
    """As the memory's guard, a batch system or kill -9 does, which leaves the parent no time to end them."""
    command = [sys.executable, "-c", SLEEPING]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        assert len({parent.pid, *workers}) == 3
        assert all(map(is_running, workers))
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + 10
        while any(map(is_running, workers)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(is_running, workers))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="a terminal's Ctrl-C, which reaches all processes")
def test_an_interruption_ends_all_at_once_and_shows_one_stack():
    command = [sys.executable, "-c", SLEEPING]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    parent = subprocess.Popen(command, start_new_session=True, **pipes)
    for _ in range(2):
        parent.stdout.readline()
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=20)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
