"""Times sandboxes as a user of the official Python SDK sees them, and prints seconds as JSON.

`cargo xtask bench` runs it against a house of its own, and says how many runs there are of what is done one after another. The SDK runs each command in a login shell.
"""

import asyncio
import json
import sys
import time

from e2b import AsyncSandbox, Sandbox

RUNS = int(sys.argv[1])
AT_ONCE = 50


def one_after_another():
    seconds = []
    for _ in range(RUNS):
        time.sleep(0.03)
        begun = time.perf_counter()
        sandbox = Sandbox.create()
        sandbox.commands.run("true")
        seconds.append(time.perf_counter() - begun)
        sandbox.kill()
    return seconds


async def at_once():
    begun = time.perf_counter()

    async def one():
        sandbox = await AsyncSandbox.create()
        await sandbox.commands.run("true")
        return time.perf_counter() - begun, sandbox

    all_of_them = await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    await asyncio.gather(*(sandbox.kill() for _, sandbox in all_of_them))
    return [seconds for seconds, _ in all_of_them]


def command():
    sandbox = Sandbox.create()
    seconds = []
    for _ in range(RUNS * 2):
        begun = time.perf_counter()
        sandbox.commands.run("true")
        seconds.append(time.perf_counter() - begun)
    sandbox.kill()
    return seconds


if __name__ == "__main__":
    print(json.dumps({"one_after_another": one_after_another(), "at_once": asyncio.run(at_once()), "command": command()}))
