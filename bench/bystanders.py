"""How much of the processor other processes take while something is measured."""

from __future__ import annotations

import os
from pathlib import Path

_STAT = Path("/proc/stat")


class Bystanders:
    """Counts from when it is made. What this process and its finished children use is not others'."""

    def __init__(self) -> None:
        self._start = _seconds()

    def share(self) -> float | None:
        """Of all processors' time since, 0 to 1, time that a host took away included; None where no one tells."""
        if self._start is None or (end := _seconds()) is None:
            return None
        whole, busy, ours = (after - before for after, before in zip(end, self._start, strict=True))
        return max(0.0, busy - ours) / whole if whole > 0 else 0.0


def _seconds() -> tuple[float, float, float] | None:
    """Processor seconds so far: all, busy, ours. The first line of Linux's /proc/stat (proc_stat(5)) and times(2)."""
    try:
        fields = [int(word) for word in _STAT.read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, idle, waiting, *interrupts_and_stolen = fields
    busy = user + nice + system + sum(interrupts_and_stolen)
    ticks = os.sysconf("SC_CLK_TCK")
    return (busy + idle + waiting) / ticks, busy / ticks, sum(os.times()[:4])
