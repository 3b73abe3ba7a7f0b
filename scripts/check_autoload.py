"""Checks, in throw-away virtual environments, that nnU-Net finds our classes after ``pip install`` alone.

Builds and installs the checkout normally and in editable mode, uninstalls it again, and deletes an editable
checkout, each time against a fake nnunetv2 in site-packages and one elsewhere on the path: no torch needed.
Prints one line per check and exits with 1 if any failed. Needs network access for the build backend.

    python scripts/check_autoload.py
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCES = ("nnunetv2_swipe", "startup", "pyproject.toml", "README.md", "LICENSE", ".gitignore")
TARGETS = {
    "SwIPETrainer": "nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py",
    "SwIPETrainer_noSPO": "nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py",
    "SwIPEPlanner": "nnunetv2/experiment_planning/experiment_planners/default_experiment_planner.py",
    "SwIPEPreprocessor": "nnunetv2/preprocessing/preprocessors/default_preprocessor.py",
}
LIMIT_MS = 1.0
TIMED_STARTS = 15

# Walks the packages as nnunetv2.utilities.find_class_by_name does. Our packages need torch, so stubs stand in.
FIND = """
import importlib, json, pkgutil, sys, types
import nnunetv2

def find(folder, name, package):
    modules = list(pkgutil.iter_modules([folder]))
    for _, module, is_package in modules:
        if not is_package:
            found = importlib.import_module(f"{package}.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    for _, module, is_package in modules:
        if is_package:
            found = find(f"{folder}/{module}", name, f"{package}.{module}")
            if found is not None:
                return found

for provider in ("trainers", "planners", "preprocessing"):
    stub = sys.modules[f"nnunetv2_swipe.{provider}"] = types.ModuleType(provider)
    vars(stub).update((name, f"{provider}:{name}") for name in sys.argv[1:])
print(json.dumps([find(nnunetv2.__path__[0], name, "nnunetv2") for name in sys.argv[1:]]))
"""

FAIL = """
import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as module
try:
    print(hasattr(module, "SwIPETrainer"))
except ImportError as error:
    print("ImportError:", error)
"""

SPAWN = """
import multiprocessing
with multiprocessing.get_context("spawn").Pool(1) as pool:
    print(pool.apply(eval, ("'_nnunetv2_swipe_startup' in __import__('sys').modules",)))
"""

LOADED = "import sys; print(*({'torch', 'nnunetv2', 'numpy', 'typing', 're', 'importlib.util'} & set(sys.modules)))"

# With -S, then site imported but not run: the state in which Python comes to read a .pth file. The first import
# of a program lists the folders of sys.path for all that follow; a failing one, untimed, sets that apart.
TIME = """
import site, sys, time
line, folder, first = sys.argv[1:]
sys.path.append(folder)
if first == "no":
    try:
        import no_such_module
    except ImportError:
        pass
start = time.perf_counter()
exec(line)
print((time.perf_counter() - start) * 1e3, "_nnunetv2_swipe_startup" in sys.modules)
"""


@dataclass
class Environment:
    """A virtual environment without torch."""

    folder: Path

    def __post_init__(self) -> None:
        venv.create(self.folder, with_pip=True, symlinks=os.name != "nt")
        bin_folder = "Scripts" if os.name == "nt" else "bin"
        self.python = str(self.folder / bin_folder / "python")
        self.site_packages = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))"))

    def run(self, code: str, *args: str, flags: tuple[str, ...] = ()) -> str:
        """Run code, isolated from the caller's variables and folder; what it printed, errors included."""
        command = [self.python, "-I", *flags, "-c", code, *args]
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        return (result.stdout + result.stderr).strip()

    def pip(self, *args: str) -> None:
        """Run pip; its output is shown if it fails."""
        command = [self.python, "-m", "pip", "--disable-pip-version-check", *args]
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise SystemExit(f"pip {' '.join(args)} failed:\n{result.stdout}{result.stderr}")

    @contextmanager
    def fake_nnunet(self, place: str) -> Iterator[None]:
        """A fake nnunetv2, in site-packages or elsewhere with a .pth file that names the folder."""
        home = self.site_packages if place == "site-packages" else self.folder / "nnunet_checkout"
        pointer = self.site_packages / "fake_nnunet.pth"
        for target in set(TARGETS.values()):
            file = home / target
            file.parent.mkdir(parents=True)
            file.touch()
            for package in Path(target).parents[:-1]:
                (home / package / "__init__.py").touch()
        pointer.write_text(f"{home}\n")
        yield
        shutil.rmtree(home / "nnunetv2")
        pointer.unlink()


class Report:
    """Prints each check and remembers whether one failed."""

    failed = False

    def check(self, what: str, found: object, expected: object) -> None:
        """Compare and print."""
        good = found == expected
        self.failed |= not good
        print(f"{'ok  ' if good else 'FAIL'} {what}" + ("" if good else f": {found!r}, not {expected!r}"), flush=True)

    def names(self, what: str, env: Environment, found: bool) -> None:
        """Check that nnU-Net finds all of our names, or none, wherever it lives."""
        homes = {"Tr": "trainers", "Pl": "planners", "Pr": "preprocessing"}
        expected = [f"{homes[name[5:7]]}:{name}" if found else None for name in TARGETS]
        for place in ("site-packages", "a checkout"):
            with env.fake_nnunet(place):
                answer = env.run(FIND, *TARGETS)
                self.check(
                    f"{what}, nnunetv2 in {place}: names {'found' if found else 'absent'}", answer, json.dumps(expected)
                )

    def installed(self, what: str, env: Environment) -> None:
        """Check an environment in which the package is installed."""
        self.check(f"{what}: Python starts silently", env.run("pass"), "")
        self.check(f"{what}: nothing heavy loaded at start", env.run(LOADED), "")
        self.check(f"{what}: hook present in spawned children", env.run(SPAWN), "True")
        self.names(what, env, found=True)
        with env.fake_nnunet("site-packages"):
            message = env.run(FAIL)
        self.check(f"{what}: a failing import of ours is reported [{message}]", message.split(" ")[0], "ImportError:")
        self.cost(what, env)

    def gone(self, what: str, env: Environment) -> None:
        """Check an environment from which the package was uninstalled."""
        left = [path.name for path in env.site_packages.rglob("*swipe*")]
        self.check(f"{what}: no file left", left, [])
        self.check(f"{what}: Python starts silently", env.run("pass"), "")
        self.names(what, env, found=False)

    def cost(self, what: str, env: Environment) -> None:
        """Time what an interpreter start pays: the least of fresh interpreters, compiled files in place."""
        pth = (env.site_packages / "nnunetv2_swipe.pth").read_text()
        (line,) = (line for line in pth.splitlines() if line.startswith("import"))
        least, loaded = {}, set()
        for first in ("no", "yes"):
            args = (line, str(env.site_packages), first)
            runs = [env.run(TIME, *args, flags=("-S",)).split() for _ in range(TIMED_STARTS)]
            least[first] = min(float(ms) for ms, _ in runs)
            loaded |= {in_modules for _, in_modules in runs}
        self.check(f"{what}: hook loaded in all timed starts", loaded, {"True"})
        figures = f"{least['no']:.2f} ms ({least['yes']:.2f} ms if nothing else is ever imported)"
        self.check(f"{what}: start costs {figures}, at most {LIMIT_MS} ms", least["no"] <= LIMIT_MS, True)


def copy_checkout(to: Path) -> str:
    """Copy what a build needs, so that nothing is built in the checkout itself."""
    to.mkdir()
    for source in (CHECKOUT / name for name in SOURCES):
        if source.is_dir():
            shutil.copytree(source, to / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, to)
    return str(to)


def main() -> int:
    """Run all checks."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()

        normal = Environment(root / "normal")
        normal.pip("install", "--no-deps", copy_checkout(root / "checkout_normal"))
        report.installed("installed", normal)

        editable = Environment(root / "editable")
        checkout = copy_checkout(root / "checkout_editable")
        editable.pip("install", "--no-deps", "--editable", checkout)
        report.installed("editable", editable)

        uninstalled = Environment(root / "uninstalled")
        for mode in ([], ["--editable"]):
            uninstalled.pip("install", "--no-deps", *mode, checkout)
            uninstalled.pip("uninstall", "--yes", "nnunetv2-swipe")
            report.gone(f"{'editable ' if mode else ''}uninstalled", uninstalled)

        shutil.rmtree(checkout)
        report.check("editable checkout deleted: Python starts silently", editable.run("pass"), "")
        with editable.fake_nnunet("site-packages"):
            report.check("editable checkout deleted: nnU-Net goes on without us", editable.run(FAIL), "False")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
