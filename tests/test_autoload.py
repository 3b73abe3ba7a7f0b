"""The import hook, on a fake nnU-Net and in fresh interpreters: nothing here needs torch or nnunetv2."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import nnunetv2_swipe

TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
PLANNER = "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner"
PREPROCESSOR = "nnunetv2.preprocessing.preprocessors.default_preprocessor"
BYSTANDER = "nnunetv2.training.nnUNetTrainer.variants"
ABLATIONS = (
    "noSPO",
    "noMEA",
    "noRFB",
    "noCascade",
    "interpolatedStages",
    "noSourceCoordinates",
    "noGlobalConditioning",
    "noImageDecoder",
    "unweightedPoints",
)
TRAINERS = ("SwIPETrainer", *(f"SwIPETrainer_{ablation}" for ablation in ABLATIONS))
INSTALL = "from nnunetv2_swipe.autoload import install; install()\n"
STARTUP = Path(__file__).parents[1] / "startup"


def write_module(root: Path, name: str, source: str = "") -> Path:
    """Write a module and the packages around it."""
    file = root.joinpath(*name.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    for package in file.relative_to(root).parents[:-1]:
        (root / package / "__init__.py").touch()
    file.write_text(textwrap.dedent(source))
    return file


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A folder for sys.path: the real hook, and stand-ins for nnU-Net and for our classes."""
    for name in (TRAINER, PLANNER, PREPROCESSOR, BYSTANDER):
        write_module(tmp_path, name, "def own():\n    return 'own'\n")
    write_module(tmp_path, "nnunetv2_swipe.trainers", "".join(f"class {name}: pass\n" for name in TRAINERS))
    write_module(tmp_path, "nnunetv2_swipe.planners", "class SwIPEPlanner: pass")
    write_module(tmp_path, "nnunetv2_swipe.preprocessing", "class SwIPEPreprocessor: pass")
    for file in ("__init__.py", "autoload.py"):
        shutil.copy(Path(nnunetv2_swipe.__file__).parent / file, tmp_path / "nnunetv2_swipe")
    return tmp_path


def run(fakes: Path, code: str, **env: str) -> str:
    """Run code that warns of nothing in an interpreter of its own, see `run_raw`; return what it printed."""
    result = run_raw(fakes, code, **env)
    assert result.stderr == ""
    return result.stdout.strip()


def run_raw(fakes: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that sees the standard library and the fakes only."""
    result = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(code)],
        cwd=fakes,
        env={**{key: os.environ[key] for key in os.environ if not key.startswith(("NNUNETV2_SWIPE", "PYTHON"))}, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.parametrize(
    ("module", "names", "home"),
    [
        (TRAINER, TRAINERS, "nnunetv2_swipe.trainers"),
        (PLANNER, ("SwIPEPlanner",), "nnunetv2_swipe.planners"),
        (PREPROCESSOR, ("SwIPEPreprocessor",), "nnunetv2_swipe.preprocessing"),
    ],
)
def test_names_resolve_on_their_module(fakes, module, names, home):
    code = f"import {module} as m; print({{getattr(m, name).__module__ for name in {names}}})"
    assert run(fakes, INSTALL + code) == str({home})


def test_names_resolve_nowhere_else(fakes):
    code = f"""
    from importlib import import_module
    for target in {(TRAINER, PLANNER, PREPROCESSOR, BYSTANDER)}:
        module = import_module(target)
        print(*(hasattr(module, name) for name in ("SwIPETrainer", "SwIPEPlanner", "SwIPEPreprocessor")))
    """
    found = run(fakes, INSTALL + textwrap.dedent(code)).splitlines()
    assert found == ["True False False", "False True False", "False False True", "False False False"]


def test_our_packages_load_on_first_use_only(fakes):
    code = f"""
    import sys
    import {TRAINER} as m
    hasattr(m, "__wrapped__"), hasattr(m, "nnUNetTrainerNoDA")
    print("nnunetv2_swipe.trainers" in sys.modules)
    m.SwIPETrainer
    print("nnunetv2_swipe.trainers" in sys.modules)
    """
    assert run(fakes, INSTALL + textwrap.dedent(code)).split() == ["False", "True"]


def test_new_ablation_needs_no_change_of_the_hook(fakes):
    with (fakes / "nnunetv2_swipe/trainers.py").open("a") as file:
        file.write("class SwIPETrainer_noNovelty: pass\n")
    assert "noNovelty" in run(fakes, INSTALL + f"import {TRAINER} as m; print(m.SwIPETrainer_noNovelty)")


@pytest.mark.parametrize("name", ["missing", "__wrapped__", "SwIPETrainer_missing"])
def test_unknown_name_raises_what_python_would(fakes, name):
    code = f"""
    import {TRAINER} as m, {BYSTANDER} as plain
    for module in m, plain:
        try:
            module.{name}
        except AttributeError as error:
            print(str(error).replace(module.__name__, "M"), error.name, error.obj is module)
    """
    hooked, plain = run(fakes, INSTALL + textwrap.dedent(code)).splitlines()
    assert hooked == f"module 'M' has no attribute '{name}' {name} True"
    assert plain.startswith(f"module 'M' has no attribute '{name}'")


def test_existing_module_getattr_is_chained(fakes):
    source = """
    def __getattr__(name):
        if name == "old":
            return "old value"
        raise AttributeError(f"theirs: {name}")
    """
    write_module(fakes, PLANNER, source)
    code = f"""
    import {PLANNER} as m
    print(m.old, m.SwIPEPlanner.__name__)
    try:
        m.SwIPEPlanner_missing
    except AttributeError as error:
        print(error)
    """
    found = run(fakes, INSTALL + textwrap.dedent(code)).splitlines()
    assert found == ["old value SwIPEPlanner", "theirs: SwIPEPlanner_missing"]


def test_second_install_adds_nothing(fakes):
    code = "import sys; before = len(sys.meta_path)\n" + 2 * INSTALL + "print(len(sys.meta_path) - before)"
    assert run(fakes, code) == "1"


@pytest.mark.parametrize("value", ["0", "false", "OFF"])
def test_switched_off(fakes, value):
    code = f"import {TRAINER} as m; print(hasattr(m, 'SwIPETrainer'))"
    assert run(fakes, INSTALL + code, NNUNETV2_SWIPE_AUTOLOAD=value) == "False"
    assert run(fakes, INSTALL + code, NNUNETV2_SWIPE_AUTOLOAD="1") == "True"


def test_install_after_the_import_of_nnunet(fakes):
    assert run(fakes, f"import {TRAINER} as m\n{INSTALL}print(m.SwIPETrainer.__name__)") == "SwIPETrainer"


def test_true_loader_stays_visible(fakes):
    code = f"""
    import importlib.machinery as machinery, importlib.resources as resources, importlib.util, inspect
    spec = importlib.util.find_spec({TRAINER!r})
    print(spec.loader.get_source({TRAINER!r}).splitlines()[0])
    import {TRAINER} as m
    print(type(m.__loader__) is type(m.__spec__.loader) is machinery.SourceFileLoader)
    print(inspect.getsource(m.own).splitlines()[1].strip())
    print(resources.files("nnunetv2.training.nnUNetTrainer").joinpath("nnUNetTrainer.py").is_file())
    """
    found = run(fakes, INSTALL + textwrap.dedent(code)).splitlines()
    assert found == ["def own():", "True", "return 'own'", "True"]


def test_reload(fakes):
    code = f"""
    import importlib, importlib.machinery as machinery
    import {TRAINER} as m
    first = m.__getattr__
    del m.own
    importlib.reload(m)
    print(m.own(), m.SwIPETrainer.__name__, m.__getattr__ is first)
    print(type(m.__loader__) is type(m.__spec__.loader) is machinery.SourceFileLoader)
    """
    assert run(fakes, INSTALL + textwrap.dedent(code)).splitlines() == ["own SwIPETrainer True", "True"]


def test_module_that_fails_to_import_fails_as_before(fakes):
    write_module(fakes, TRAINER, "raise RuntimeError('theirs')")
    code = f"""
    import sys
    try:
        import {TRAINER}
    except RuntimeError as error:
        print(error, {TRAINER!r} in sys.modules)
    """
    assert run(fakes, INSTALL + textwrap.dedent(code)) == "theirs False"


def test_another_hook_that_asks_all_finders(fakes):
    code = f"""
    import importlib.util, sys
    class Asking:
        busy = False
        def find_spec(self, name, path=None, target=None):
            if self.busy or name != {TRAINER!r}:
                return None
            self.busy = True
            try:
                return importlib.util.find_spec(name)
            finally:
                self.busy = False
    sys.meta_path.insert(0 if FIRST else len(sys.meta_path), Asking())
    import {TRAINER} as m
    print(m.SwIPETrainer.__name__)
    """
    code = INSTALL + textwrap.dedent(code)
    assert run(fakes, code.replace("FIRST", "True")) == "SwIPETrainer"
    assert run(fakes, code.replace("FIRST", "False")) == "SwIPETrainer"


def test_nnunet_outside_sys_path(fakes):
    """Editable installs of setuptools bring a finder of their own, behind ours."""
    (fakes / "elsewhere").mkdir()
    (fakes / "nnunetv2").rename(fakes / "elsewhere" / "nnunetv2")
    code = f"""
    import sys
    from importlib.machinery import PathFinder
    class Editable:
        def find_spec(self, name, path=None, target=None):
            return PathFinder.find_spec(name, ["elsewhere"]) if name == "nnunetv2" else None
    sys.meta_path.append(Editable())
    import {TRAINER} as m
    print(m.SwIPETrainer.__name__)
    """
    assert run(fakes, INSTALL + textwrap.dedent(code)) == "SwIPETrainer"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ImportError('nnunetv2 is too old')", "nnunetv2 is too old"),
        ("import nnunetv2.absent", "No module named 'nnunetv2.absent'"),
        (
            "import nnunetv2\nnnunetv2.absent",
            "nnunetv2_swipe.trainers cannot be imported: module 'nnunetv2' has no attribute 'absent'",
        ),
    ],
)
def test_failing_import_of_ours_reaches_the_user(fakes, source, message):
    write_module(fakes, "nnunetv2_swipe.trainers", source)
    code = f"""
    import {TRAINER} as m
    try:
        hasattr(m, "SwIPETrainer")  # what nnU-Net does; it hides nothing but AttributeError
    except ImportError as error:
        print(error)
    """
    assert run(fakes, INSTALL + textwrap.dedent(code)) == message


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("2.8.0", False),
        ("2.8.1", True),
        ("2.8.1+local", True),
        ("2.9rc1", True),
        ("2.8rc1", False),
        ("2.10", True),
        ("3.0.0", False),
    ],
)
def test_only_supported_versions_of_nnunet_get_our_classes(fakes, version, accepted):
    metadata = fakes / f"nnunetv2-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: nnunetv2\nVersion: {version}\n")
    code = f"""
    import {TRAINER} as m
    try:
        print(hasattr(m, "SwIPETrainer"))
    except ImportError as error:
        print(error)
    """
    printed = run(fakes, INSTALL + textwrap.dedent(code))
    assert printed == "True" if accepted else (f"found {version}" in printed and "pip install" in printed)


def test_version():
    assert nnunetv2_swipe.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="module 'nnunetv2_swipe' has no attribute 'missing'"):
        _ = nnunetv2_swipe.missing


class TestStartupFiles:
    """The files that the wheel puts beside the package, read by Python's own site module."""

    START = "import site, sys; site.addsitedir('site')\n"
    PROBE = f"import {TRAINER} as m; print(hasattr(m, 'SwIPETrainer'))"

    @pytest.fixture(autouse=True)
    def site_dir(self, fakes):
        shutil.copytree(STARTUP, fakes / "site")

    def test_hook_comes_with_nnunet(self, fakes):
        assert run(fakes, self.START + self.PROBE) == "True"

    def test_switched_off(self, fakes):
        assert run(fakes, self.START + self.PROBE, NNUNETV2_SWIPE_AUTOLOAD="0") == "False"

    def test_start_loads_one_small_module(self, fakes):
        code = f"""
        import io, os, site, sys  # what every interpreter start has loaded before it reads .pth files
        sys.path.append('site')
        before = set(sys.modules)
        exec({self.import_line()!r})
        print(*sorted(set(sys.modules) - before))
        """
        assert run(fakes, code) == "_nnunetv2_swipe_startup"

    def test_files_read_twice(self, fakes):
        """Python 3.11 and others read them twice in a virtual environment."""
        code = f"before = len(sys.meta_path)\nsite.addsitedir('site')\nprint(len(sys.meta_path) - before)\n{self.PROBE}"
        assert run(fakes, self.START + code).split() == ["0", "True"]

    def test_other_finders_are_still_asked(self, fakes):
        """The hook is put in front of sys.meta_path while Python walks it."""
        code = """
        class Witness:
            def find_spec(self, name, path=None, target=None):
                if name == "nnunetv2":
                    print("asked")
        sys.meta_path.insert(1, Witness())
        """
        assert run(fakes, self.START + textwrap.dedent(code) + self.PROBE).split() == ["asked", "True"]

    def test_deleted_checkout_is_silent(self, fakes):
        shutil.rmtree(fakes / "nnunetv2_swipe")
        assert run(fakes, self.START + self.PROBE) == "False"

    @pytest.mark.parametrize(
        ("damaged", "content", "reason"),
        [
            ("autoload.py", b"def install():\n    values = (", "SyntaxError"),
            ("autoload.py", b"", "ImportError"),
            ("autoload.py", bytes(64), "Error"),  # what a power cut leaves of a file
            ("autoload.py", b"def install():\n    raise OSError('gone')", "OSError"),
            ("__init__.py", b"if", "SyntaxError"),
        ],
    )
    def test_damage_to_our_files_is_said_once_and_nnunet_works(self, fakes, damaged, content, reason):
        (fakes / "nnunetv2_swipe" / damaged).write_bytes(content)
        worker = f"{self.START}import {TRAINER} as m\nprint(m.own())\n"
        code = f"""
        from multiprocessing import get_context
        for _ in range(2):
            process = get_context("spawn").Process(target=exec, args=({worker!r},))
            process.start()
            process.join()
        exec({worker!r})
        """
        result = run_raw(fakes, code)
        assert result.stdout.split() == ["own"] * 3
        (line,) = result.stderr.splitlines()
        assert line.startswith("nnunetv2-swipe cannot be loaded; install it again.")
        assert reason in line

    def test_both_files_call_the_same_function(self):
        lines = (STARTUP / "nnunetv2_swipe.start").read_text().splitlines()
        (entry,) = (line for line in lines if not line.startswith("#"))
        module, function = entry.split(":")
        assert self.import_line() == f"import {module} as startup; startup.{function}()"

    @staticmethod
    def import_line() -> str:
        (line,) = (line for line in (STARTUP / "nnunetv2_swipe.pth").read_text().splitlines() if line[0] != "#")
        return line
