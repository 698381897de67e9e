"""Waiting for what is to become true: on a loaded machine it takes its time."""

import time

PATIENCE_SECONDS = 60.0


class PatienceIsOver(AssertionError):
    pass


def eventually(condition, what):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise PatienceIsOver(f"{what} did not become true within {PATIENCE_SECONDS} s")
        time.sleep(0.05)
