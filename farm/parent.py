"""How does a process end with the one that started it?"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

EX_TEMPFAIL = 75
"""The exit status of a process that wants to be started again. Source: sysexits.h."""


def die_with_parent(parent: int, how: signal.Signals) -> None:
    """Asks the kernel to send `how` to this process when its parent ends; ends at once if it already has.

    Source: prctl(2), PR_SET_PDEATHSIG; on other systems than Linux the process outlives a killed parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, how)
    if os.getppid() != parent:
        sys.exit(EX_TEMPFAIL)
