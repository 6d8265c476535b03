"""Ctrl-C in a command of this package: one line, exit status 130, at once.

To import JAX takes seconds, and to compile a program does too, in one call that no
Python handler can end. So a thread waits for the signal. It is there in processes that
run a command alone: a library does not touch the signals of its user. A command that
has written part of its text may ask for the time to end it (`postponed`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

STATUS = 130
_PACKAGE, _SCRIPT = "globalres_jax", "globalres-jax"


def is_command() -> bool:
    """Whether `python -m globalres_jax...` or the script is what this process runs."""
    if sys.argv[:1] == ["-m"]:  # what it is until the module has been found
        return any(word.split(".")[0] == _PACKAGE for word in sys.orig_argv)
    return bool(sys.argv) and Path(sys.argv[0]).stem == _SCRIPT


def watch() -> None:
    """Ends this process on Ctrl-C from now on, unless the signal is ignored."""
    ignored = signal.getsignal(signal.SIGINT) != signal.default_int_handler
    if ignored or threading.current_thread() is not threading.main_thread():
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    # The line to the thread lives as long as this handler, which does nothing itself.
    signal.signal(signal.SIGINT, lambda *_, line=sender: None)
    threading.Thread(target=_wait, args=(receiver,), daemon=True).start()


@contextlib.contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """What is inside ends by itself on Ctrl-C; the second Ctrl-C ends it at once.

    So that what has been written can be brought to an end. What it yields says whether
    Ctrl-C was asked for. A process that does not `watch` gets a handler of its own for
    that time, where one can be had.
    """
    asked = threading.Event()
    _POSTPONED.append(asked)
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    raises = is_main and before == signal.default_int_handler

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            signal.default_int_handler(number, frame)
        asked.set()

    if raises:
        signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        if raises:
            signal.signal(signal.SIGINT, before)
        _POSTPONED.remove(asked)


#: Set on Ctrl-C: of those who would rather end by themselves, the last.
_POSTPONED: list[threading.Event] = []


def _wait(receiver: socket.socket) -> None:
    while receiver.recv(1) != bytes([signal.SIGINT]) or _is_left_to_others():
        pass
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(STATUS)


def _is_left_to_others() -> bool:
    """Whether somebody inside `postponed` has now been asked for the first time."""
    asked = next(reversed(_POSTPONED), None)
    if asked is None or asked.is_set():
        return False
    asked.set()
    return True
