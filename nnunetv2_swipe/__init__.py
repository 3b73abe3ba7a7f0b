"""Continuous (implicit) medical image segmentation as an nnU-Net plug-in: SwIPE.

Importing this package loads nothing else: every import of nnU-Net brings it along (see ``autoload``).
"""

TYPE_CHECKING = False  # what type checkers read as true, without the price of importing ``typing``

if TYPE_CHECKING:
    __version__: str
else:  # hidden from type checkers, which would take every name for defined

    def __getattr__(name: str) -> str:
        """Read the version on first use; importlib.metadata is slow to import."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("nnunetv2-swipe")
        except PackageNotFoundError:  # a checkout on sys.path that was never installed
            found = "0+unknown"
        globals()[name] = found
        return found
