"""How much memory this process has ever had in use, for tests that measure one of their own."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_resident() -> int:
    """Bytes, since this program started.

    Linux's ru_maxrss will not do: a child starts with its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
