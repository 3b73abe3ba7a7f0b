"""Has the import hook of ``nnunetv2_swipe.autoload`` installed once, and only if, nnU-Net is imported.

Python calls ``install`` whenever it starts: from ``nnunetv2_swipe.pth``, or from Python 3.15 on from
``nnunetv2_swipe.start`` (PEP 829). It costs a fraction of a millisecond because it is all that happens
then, in a small module outside the package that imports nothing; outside, it also cannot go missing
with a deleted editable checkout, of which Python would complain at every start.
"""

import sys


class NnunetWatcher:
    """Meta path finder that finds nothing itself."""

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> None:  # noqa: ARG004
        """Install the hook when the import of nnU-Net begins; the finders behind this one go on with it."""
        if fullname != "nnunetv2":
            return
        try:
            from nnunetv2_swipe.autoload import install

            install()
        except ModuleNotFoundError:  # a deleted checkout
            return
        except Exception as error:  # whatever is wrong with our files, nnU-Net works
            _warn(error)


def _warn(error: Exception) -> None:
    """Tell the user in one line, from the process that was started first and not again from its workers."""
    from multiprocessing import parent_process

    if parent_process() is None:
        print(
            f"nnunetv2-swipe cannot be loaded; install it again. nnU-Net runs without it. ({error!r})", file=sys.stderr
        )


def install() -> None:
    """Start watching; further calls do nothing (some Pythons read .pth files twice)."""
    if NnunetWatcher not in sys.meta_path:
        sys.meta_path.insert(0, NnunetWatcher)
