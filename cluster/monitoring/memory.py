"""Peak memory of a run on this machine."""

from __future__ import annotations

import psutil

from cluster.monitoring.periodic import Periodic


class PeakMemory(Periodic):
    """Samples the proportional set size of this process and all its descendants in a thread.

    PSS counts a page shared by n processes as 1/n in each, so the object store and shared libraries are counted
    once. Ray's processes are descendants when Ray was started here; on a cluster only this node's driver is seen.
    A look takes a third of a second of CPU time where page tables are read slowly, and so it is not taken often.
    """

    def __init__(self, interval_s: float = 20.0) -> None:
        super().__init__("peak-memory", interval_s)
        self.peak_bytes = 0

    def sample(self) -> int:
        """Bytes in use now; also raises the peak."""
        me = psutil.Process()
        used = sum(proportional_bytes(process) for process in [me, *me.children(recursive=True)])
        self.peak_bytes = max(self.peak_bytes, used)
        return used

    def look(self) -> None:
        self.sample()


def proportional_bytes(process: psutil.Process) -> int:
    """PSS of a process in bytes; 0 when it is gone (it ended between listing and reading) or is another user's.

    psutil reads the kernel's sum (`smaps_rollup`), not the table of all mappings.
    """
    try:
        size: int = process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return size
