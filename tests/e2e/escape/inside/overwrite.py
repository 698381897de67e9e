"""Attempt 4: writing to programs that run, by their processes: `overwrite.py <seconds>`."""

import glob
import os
import sys
import time

from kernel import only_inside, tell

only_inside()
opened, seen = set(), set()
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for link in [*glob.glob("/proc/[0-9]*/exe"), "/run/atoll/agent/envd"]:
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            try:
                name = os.readlink(link) if link.startswith("/proc") else link
                seen.add(name)
                # Its own interpreter and shells are the sandbox's; it may do with them what it likes.
                if flags & os.O_TRUNC and "envd" not in name:
                    continue
                os.close(os.open(link, flags))
                opened.add(name)
            except OSError:
                pass
tell({"opened": sorted(opened), "seen": sorted(seen)})
