"""Makes stock nnU-Net find this package's classes by name.

nnU-Net has no entry points: it looks a trainer, planner or preprocessor up by walking its own modules
and asking each one ``hasattr(module, class_name)``. Three modules that it asks anyway get a lazy,
module-level ``__getattr__`` (PEP 562) for our names as they are imported. No function of nnU-Net is
replaced and no file of it is touched, so it may live anywhere, an editable checkout included.

Nobody needs to call ``install``: with the package installed, a file in ``startup/`` calls it just before
nnU-Net is imported. Set ``NNUNETV2_SWIPE_AUTOLOAD=0`` to prevent that. Call it yourself where Python reads
no ``.pth`` files (``python -S``, a zipapp); it may come before or after the import of nnU-Net. This file
imports only what a started interpreter holds, not even ``typing``.
"""

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False  # what type checkers read as true, without the price of importing ``typing``

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["install"]

_SWITCH = "NNUNETV2_SWIPE_AUTOLOAD"
_OLDEST_NNUNET, _TOO_NEW_NNUNET = (2, 8, 1), (3,)

# nnU-Net's module -> (how the class names that it gains begin, our package that holds them). A prefix, so
# that a new ablation SwIPETrainer_... needs no change here.
_TARGETS = {
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer": ("SwIPETrainer", "nnunetv2_swipe.trainers"),
    "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner": (
        "SwIPEPlanner",
        "nnunetv2_swipe.planners",
    ),
    "nnunetv2.preprocessing.preprocessors.default_preprocessor": (
        "SwIPEPreprocessor",
        "nnunetv2_swipe.preprocessing",
    ),
}


def install() -> None:
    """Register the import hook; a second call, or the variable set to 0, false or off, does nothing."""
    if os.environ.get(_SWITCH, "").strip().lower() in ("0", "false", "off"):
        return
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name in _TARGETS:  # where install is called by hand, nnU-Net may have come first
        module = sys.modules.get(name)
        if module is not None:
            _add_lazy_names(module, name)


class _Finder:
    """Meta path finder that finds nothing itself: it lets the true loader of a target add our names."""

    def __init__(self) -> None:
        self._asking: set[tuple[int, str]] = set()

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the other finders' spec of a target module, its loader wrapped; ``None`` for the rest."""
        if fullname not in _TARGETS:
            return None
        key = (get_ident(), fullname)
        if key in self._asking:  # a hook that, like this one, asks all finders: do not go in circles
            return None
        self._asking.add(key)
        try:
            spec = self._ask_others(fullname, path, target)
        finally:
            self._asking.discard(key)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, fullname)  # type: ignore[assignment, arg-type]
        return spec

    def _ask_others(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None"
    ) -> "ModuleSpec | None":
        for finder in tuple(sys.meta_path):
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find_spec is None else find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None


class _Loader:
    """The true loader of one module, apart from what happens right after the module's code has run."""

    def __init__(self, loader: "Loader", target: str) -> None:
        self._loader = loader
        self._target = target

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # create_module, get_source, get_resource_reader, ...

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module's code with its true loader back in place, then add our names."""
        for holder, attribute in ((module, "__loader__"), (module.__spec__, "loader")):
            if getattr(holder, attribute, None) is self:
                setattr(holder, attribute, self._loader)
        self._loader.exec_module(module)
        _add_lazy_names(module, self._target)


class _LazyNames:
    """The ``__getattr__`` that a target module gets; Python calls it for names the module lacks."""

    def __init__(self, module: "ModuleType", target: str, previous: "Callable[[str], object] | None") -> None:
        self._module = module
        self._prefix, self._provider = _TARGETS[target]
        self._previous = previous

    def __call__(self, name: str) -> object:
        if name.startswith(self._prefix):
            found = getattr(_import_provider(self._provider), name, None)
            if found is not None:
                return found
        if self._previous is not None:
            return self._previous(name)
        message = f"module {self._module.__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=self._module)


def _add_lazy_names(module: "ModuleType", target: str) -> None:
    previous = vars(module).get("__getattr__")
    if not isinstance(previous, _LazyNames):  # importlib.reload keeps the one from before
        vars(module)["__getattr__"] = _LazyNames(module, target, previous)


def _require_supported_nnunet() -> None:
    """ImportError if the installed nnU-Net is too old or too new: its trainers and predictor have other functions."""
    import re
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("nnunetv2")
    except PackageNotFoundError:  # a checkout on sys.path that was never installed
        return
    (release,) = re.findall(r"^[\d.]+", found) or [""]  # 2.9rc1, 2.8.1+local
    numbers = tuple(int(part) for part in release.split(".")[:3] if part)
    if not _OLDEST_NNUNET <= numbers < _TOO_NEW_NNUNET:
        raise ImportError(
            f"nnunetv2-swipe needs nnunetv2 from 2.8.1 to below 3, found {found}: pip install 'nnunetv2>=2.8.1,<3'"
        )


def _import_provider(name: str) -> "ModuleType":
    from importlib import import_module

    _require_supported_nnunet()
    try:
        return import_module(name)
    except AttributeError as error:
        # hasattr would take this for "no such class" and hide it; an ImportError reaches the user.
        raise ImportError(f"{name} cannot be imported: {error}", name=name) from error
