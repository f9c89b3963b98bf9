"""How serving a queue ends, and how much of it is done at once."""

from __future__ import annotations

from typing import Final

IDLE: Final = 0
"""Nothing is left to take."""
BUSY: Final = 1
"""There may be more."""
FAULT: Final = -1
"""A chain breaks a rule; the path explains which."""
PAUSED: Final = 2
"""The loop was asked to end."""

BATCH: Final = 16
"""Requests that are taken, and published, at once: so few that driver and device work at the same time."""
LARGE_BATCH: Final = 64
"""As many at most where more are there: of a deep queue half, for each batch costs an interrupt."""
TURNS: Final = 4
"""Batches that a queue may have before others, and the VMM, have their turn."""
