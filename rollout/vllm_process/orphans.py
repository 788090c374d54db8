"""vLLM's processes end when the process that started them is gone, however it went."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

PATIENCE_S = 30.0
"""How long an orphan may take to end in an orderly way, which is what gives its shared memory back."""


def end_with_parent() -> None:
    """Watch the parent from a thread, in a process that `multiprocessing` started; elsewhere do nothing.

    vLLM's engine process waits for requests for ever when its client is killed. A GPU that it holds would be missing to
    the engine that is started in its actor's place.
    """
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == _NAME for thread in threading.enumerate()):
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE_S)
        os._exit(1)

    threading.Thread(target=watch, name=_NAME, daemon=True).start()


_NAME = "end-with-parent"
