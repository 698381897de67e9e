"""The long form of the crash tests: a churn with many deaths, then one without, and a closing line.

Run by `cargo xtask soak`. Says what it is at once a minute; a failure ends it, and leaves the house for people to look at.
"""

import argparse
import random
import sys
import time

from churn import Churn, Measure, assert_flat
from house import House
from machine import Machine

SAY_EVERY_SECONDS = 60.0


def main():
    options = argparse.ArgumentParser(prog="cargo xtask soak", description="Churns sandboxes for long, with deaths of the daemon.")
    options.add_argument("--minutes", type=float, default=60.0, help="how long in all [60]")
    options.add_argument("--workers", type=int, default=6, help="clients at once [6]")
    options.add_argument("--calm", type=float, default=0.5, help="part of the time that is without deaths, in which memory and descriptors must stay flat [0.5]")
    options.add_argument("--seed", type=int, default=None, help="of what clients do and when the daemon dies [random]")
    options = options.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    print(f"soak: {options.minutes:g} minutes, {options.workers} workers, seed {seed}", flush=True)

    began = time.monotonic()
    seconds = options.minutes * 60
    house = House()
    start = Machine(house)
    house.start()
    print(f"soak: the house is {house.dir}", flush=True)
    machine = Machine(house)
    churn = Churn(house, machine, options.workers, seed)
    said = began

    def say(what):
        nonlocal said
        if time.monotonic() - said > SAY_EVERY_SECONDS:
            said = time.monotonic()
            print(f"soak: {said - began:.0f} s, {what}: {churn.cycles} cycles, {churn.deaths} deaths, {Measure(machine)}", flush=True)

    while time.monotonic() - began < seconds * (1 - options.calm):
        churn.die(after_seconds=churn.random.uniform(0.1, 8.0))
        say("with deaths")
    churn.end()

    # A daemon is warm when its threads, caches and allocators have seen some work.
    churn.live(seconds=max(5.0, seconds * options.calm * 0.2))
    churn.end()
    before = Measure(machine)
    while time.monotonic() - began < seconds:
        churn.live(seconds=min(SAY_EVERY_SECONDS, max(5.0, seconds - (time.monotonic() - began))))
        say("calm")
    churn.end()
    after = assert_flat(machine, before, "the calm part of the soak")
    house.down()
    start.assert_clean("atoll down")
    print(f"soak: {churn.cycles} cycles, {churn.deaths} deaths in {time.monotonic() - began:.0f} s; nothing lost, nothing left; before: {before}; after: {after}")


if __name__ == "__main__":
    sys.exit(main())
