"""Much work, and many deaths: nothing is lost, and nothing is left. `cargo xtask soak` does it for hours."""

import concurrent.futures

from churn import Churn, Measure, assert_flat
from machine import Machine

CYCLES = 300
DEATHS = 6


def test_three_hundred_cycles_leave_the_machine_as_it_was(house):
    machine = Machine(house)

    def cycles(count):
        with concurrent.futures.ThreadPoolExecutor(10) as load:
            for done in [load.submit(lambda: house.create().kill()) for _ in range(count)]:
                assert done.result()
        machine.assert_accounted([], f"{count} cycles")

    cycles(30)
    before = Measure(machine)
    cycles(CYCLES)
    assert_flat(machine, before, f"{CYCLES} cycles")


def test_a_churn_leaves_the_machine_as_it_was(house):
    machine = Machine(house)
    churn = Churn(house, machine)
    churn.live(cycles=12)
    churn.end()
    before = Measure(machine)
    churn.live(cycles=48)
    churn.end()
    assert_flat(machine, before, "the churn")


def test_deaths_in_a_churn_lose_nothing_and_leave_nothing(house):
    churn = Churn(house, Machine(house))
    for death in range(DEATHS):
        churn.die(after_seconds=0.3 + 0.4 * death)
    churn.end()
