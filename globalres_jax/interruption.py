"""Ctrl-C in a command of this package: one line, exit status 130, at once.

To import JAX takes seconds, and to compile a program does too, in one call that no
Python handler can end. So a thread waits for the signal. It is there in processes that
run a command alone: a library does not touch the signals of its user.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from pathlib import Path

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


def _wait(receiver: socket.socket) -> None:
    while receiver.recv(1) != bytes([signal.SIGINT]):
        pass
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(STATUS)
