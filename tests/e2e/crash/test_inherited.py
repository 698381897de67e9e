"""What the daemon was started with is not what sandboxes start with."""

import signal


def test_signals_that_are_ignored_outside_are_not_inside(house):
    house.stop()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM)}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        # As nohup does it.
        house.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        for number, handler in before.items():
            signal.signal(number, handler)
    status = house.create().commands.run("grep -E '^Sig(Ign|Blk)' /proc/self/status").stdout.split()
    assert [int(mask, 16) for mask in status[1::2]] == [0, 0], status
