"""Processes that a plugin forks: signals that are meant for them are none of the plugin's."""

from __future__ import annotations

import signal

from harness import DEADLINE, PluginProcess

PROGRAM = """
    import multiprocessing
    import os
    import signal
    import time
    from palisade import Plugin, allow

    {before}

    fork = multiprocessing.get_context("fork")
    plugin = Plugin("forking")

    def child(started):
        {child}

    @plugin.filter
    def check(request, config):
        started = fork.Event()
        process = fork.Process(target=child, args=(started,))
        process.start()
        {meanwhile}
        process.join()
        print(f"the child has ended with {{process.exitcode}}")
        process.kill()
        return allow()

    plugin.serve()
"""

SLEEPS = f"started.set(); time.sleep({DEADLINE})"
TERMINATES = "started.wait(); process.terminate()"


def check_with_a_child(child: str, exitcode: int, *, meanwhile: str = "", before: str = "") -> None:
    program = PROGRAM.format(child=child, meanwhile=meanwhile, before=before)
    # What gRPC does of its own accord in a child of a thread of its own may abort it.
    with PluginProcess(program, GRPC_ENABLE_FORK_SUPPORT="0") as plugin:
        plugin.connect()
        for _ in range(2):
            assert plugin.check().allowed
        plugin.terminate()
        assert plugin.wait() == 0
        assert plugin.log.count(f"the child has ended with {exitcode}\n") == 2
        assert plugin.log.index("got SIGTERM") > plugin.log.rindex("the child has ended with"), "it was its own"


def test_a_child_is_terminated_and_the_plugin_serves_on() -> None:
    check_with_a_child(SLEEPS, -signal.SIGTERM, meanwhile=TERMINATES)


def test_a_signal_that_comes_while_the_child_begins_is_the_childs() -> None:
    """Before it has come to what the SDK does there: this is registered first."""
    at_once = "os.register_at_fork(after_in_child=lambda: signal.raise_signal(signal.SIGTERM))"
    check_with_a_child(SLEEPS, -signal.SIGTERM, before=at_once)


def test_what_a_child_handles_its_own_children_do() -> None:
    child = "; ".join(
        [
            "signal.signal(signal.SIGTERM, lambda number, frame: os._exit(7))",
            "pid = os.fork()",
            "pid or signal.raise_signal(signal.SIGTERM)",
            "os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
        ]
    )
    check_with_a_child(child, 7)
