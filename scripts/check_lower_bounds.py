"""Check that the lower bounds in pyproject.toml are real: the oldest releases that it allows must fit together.

Only resolves, which takes seconds, and installs nothing. Needs uv: pip install uv
"""

import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("benchmark", "mesh", "report")


def main() -> None:
    """Exit with a message that names every bound below which another requirement does not allow to go."""
    extras = [argument for extra in EXTRAS for argument in ("--extra", extra)]
    options = ("--quiet", "--no-header", "--no-annotate", "--resolution", "lowest-direct")
    command = [sys.executable, "-m", "uv", "pip", "compile", *options, *extras, str(PROJECT)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = {canonicalize_name(r.name): r.specifier for r in map(Requirement, filter(None, lines))}
    wrong = [
        f"{bound}, found {found[canonicalize_name(bound.name)]}" for bound in _bounds() if not _is_met(bound, found)
    ]
    if wrong:
        sys.exit("Lower bounds in pyproject.toml that other requirements do not allow:\n" + "\n".join(wrong))
    print(f"The oldest of {len(found)} releases fit together.")


def _bounds() -> list[Requirement]:
    """The requirements of the package and of its extras, as far as they apply here."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    of_extras = [text for extra in EXTRAS for text in project["optional-dependencies"][extra]]
    requirements = map(Requirement, [*project["dependencies"], *of_extras])
    return [r for r in requirements if r.marker is None or r.marker.evaluate()]


def _is_met(bound: Requirement, found: dict) -> bool:
    """Whether the oldest release that a requirement allows is the one that was found."""
    (lowest,) = [Version(s.version) for s in bound.specifier if s.operator == ">="]
    return found[canonicalize_name(bound.name)].contains(lowest)


if __name__ == "__main__":
    main()
