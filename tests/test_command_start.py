"""Commands read their arguments before they import what takes seconds."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import nnunetv2_swipe

COMMANDS = ("predict", "mesh", "report")
HEAVY = {"torch", "nnunetv2", "numpy", "pandas", "SimpleITK", "monai", "plotly", "pyvista"}


def start(command, *arguments):
    """Run a command in a Python of its own; what it printed, exit code, imported packages, CPU seconds."""
    code = f"""
import atexit, sys
sys.path.insert(0, {str(Path(nnunetv2_swipe.__file__).parents[1])!r})
atexit.register(lambda: print("IMPORTED", *{{name.split(".")[0] for name in sys.modules}}))
from nnunetv2_swipe.commands.{command} import main
main()
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed, imported = result.stdout.split("IMPORTED ")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return printed, result.returncode, set(imported.split()), seconds


@pytest.mark.parametrize("command", COMMANDS)
def test_help_takes_less_than_a_second(command):
    printed, code, imported, seconds = start(command, "--help")
    assert "--disable_tta" in printed
    assert code == 0
    assert not imported & HEAVY
    assert seconds < 1


@pytest.mark.parametrize("command", COMMANDS)
def test_an_argument_that_is_wrong_is_named_at_once(command):
    printed, code, imported, _ = start(command, "--no_such_argument")
    assert "error: " in printed
    assert code == 2
    assert not imported & HEAVY
