"""Ctrl-C at a moment when Python ignores exceptions: in destructors and in callbacks of weak references."""

import _thread
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def ignored_interruptions_repeated() -> Iterator[None]:
    """Interrupt this process again whenever Python has ignored a KeyboardInterrupt, within a `with` block.

    h5py keeps its objects in a dictionary of weak references, whose callback runs whenever one of them is freed: about
    one of 15 interruptions of an analysis arrives there, and the command would go on as if nothing had happened.
    """
    before = sys.unraisablehook
    repetitions: list[_thread.LockType] = []

    def repeat(repetition: _thread.LockType) -> None:
        _thread.interrupt_main()
        repetition.release()

    def hook(unraisable: "sys.UnraisableHookArgs", /) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        while True:
            with suppress(KeyboardInterrupt):
                repetition = _thread.allocate_lock()
                repetition.acquire()
                repetitions.append(repetition)
                # From a thread: its turn comes after this hook has returned, or else the hook repeats it once more.
                _thread.start_new_thread(repeat, (repetition,))
                return

    sys.unraisablehook = hook
    try:
        yield
        for repetition in repetitions:
            repetition.acquire()
    finally:
        sys.unraisablehook = before
