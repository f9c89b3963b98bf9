"""The limit on the log."""

from __future__ import annotations

import logging

from nodma.hosting.ratelimit import BURST, PERIOD, RateLimit


def test_a_flood_is_cut_and_told_of() -> None:
    now = 0.0
    limit = RateLimit(lambda: now)

    def log() -> str | None:
        record = logging.LogRecord("nodma", logging.WARNING, __file__, 1, "wrong: %d", (7,), None)
        return record.getMessage() if limit.filter(record) else None

    assert [log() for _ in range(BURST)] == ["wrong: 7"] * BURST
    assert [log() for _ in range(500)] == [None] * 500
    now = PERIOD
    assert log() == "wrong: 7 (500 earlier messages were suppressed)"
    assert log() == "wrong: 7"
