"""What the API tells."""

from e2b import Sandbox


def sandboxes():
    """Those that run, or are paused."""
    pages, found = Sandbox.list(), []
    while pages.has_next:
        found += [info.sandbox_id for info in pages.next_items()]
    return found
