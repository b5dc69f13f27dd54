"""Many calls in one message: what a host that knows only bytes gets for them."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from harness import FILTER, HEALTH, PluginProcess, outcome, request
from palisade._generated import filter_pb2

PROGRAM = """
    import asyncio, threading, time
    from palisade import Plugin, allow, deny

    plugin = Plugin("test", workers=4)
    go, agone = threading.Event(), asyncio.Event()

    def judge(request):
        if request.path == "/raise":
            raise KeyError("no")
        if request.path == "/none":
            return None
        return allow() if request.path == "/" else deny(403, request.path)

    @plugin.filter
    def check(request, config):
        if request.path == "/wait":
            assert go.wait(50)
            return allow()
        if request.path == "/go":
            go.set()
        if request.path == "/slow":
            print("slow", flush=True)
            time.sleep(1)
        return judge(request)

    async def check_async(request, config):
        if request.path == "/wait":
            await agone.wait()
            return allow()
        if request.path == "/go":
            agone.set()
        if request.path == "/slow":
            print("slow", flush=True)
            await asyncio.sleep(1)
        return judge(request)

    if ASYNC:
        plugin._registrations.check = None
        plugin.filter(check_async)
    plugin.serve()
"""


class Host:
    """A stream to a plugin, over the socket that it has for that, or over the one that it has announced."""

    beside = True

    def __init__(self, plugin: PluginProcess) -> None:
        self._batches: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        channel = plugin._channel
        if self.beside:
            channel = plugin.also(grpc.insecure_channel(f"unix:{plugin.stream_socket()}"))
        assert channel is not None
        method: Any = channel.stream_stream(f"/{FILTER}/CheckBatches")
        self._answers = method(iter(self._batches.get, None), timeout=60)
        self.taken = 0
        self.hashes: set[str] = set()
        """Of the configurations that answers have come of."""

    def send(self, *calls: tuple[int, str], config_hash: str = "", timeout: float = 50) -> None:
        batch = filter_pb2.CheckBatch(config_hash=config_hash)
        for id, path in calls:
            call = batch.calls.add(id=id, timeout_micros=int(timeout * 1e6))
            if path:
                call.request.request.path = path
        self.send_message(batch)

    def send_message(self, batch: filter_pb2.CheckBatch) -> None:
        self._batches.put(batch.SerializeToString())

    def answers(self, count: int) -> dict[int, Any]:
        got: dict[int, Any] = {}
        while len(got) < count:
            message = filter_pb2.CheckBatchAnswer.FromString(next(self._answers))
            self.taken += message.taken
            if message.answers:
                self.hashes.add(message.config_hash)
            for answer in message.answers:
                assert answer.id not in got
                got[answer.id] = answer
        return got

    def rest(self) -> Iterator[bytes]:
        answers: Iterator[bytes] = self._answers
        return answers

    def end(self) -> None:
        self._batches.put(None)

    def cancel(self) -> None:
        self._answers.cancel()


@pytest.fixture(params=["beside", "announced"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "beside", request.param == "beside")


def verdict(answer: Any) -> object:
    kind = answer.WhichOneof("answer")
    if kind == "error":
        return answer.error.code, answer.error.message
    return answer.request.WhichOneof("verdict")


def both(program: str = PROGRAM) -> Iterator[str]:
    for is_async in (False, True):
        yield program.replace("ASYNC", str(is_async))


@pytest.mark.usefixtures("either_way")
def test_every_call_is_answered_once() -> None:
    for program in both():
        with PluginProcess(program) as plugin:
            plugin.connect()
            host = Host(plugin)
            host.send((1, "/"), (2, "/no"), (3, "/raise"), (4, "/none"), (5, ""))
            got = host.answers(5)
            assert [verdict(got[id]) for id in (1, 2)] == ["allow", "deny"]
            assert got[2].request.deny.body == b"/no"
            assert got[3].error.code == 13 and "KeyError" in got[3].error.message
            assert got[4].error.code == 13 and "NoneType" in got[4].error.message
            assert got[5].error.code == 12
            assert host.taken == 1
            host.send(*((id, "/") for id in range(10, 300)))
            assert {verdict(answer) for answer in host.answers(290).values()} == {"allow"}
            host.end()
            assert list(host.rest()) == []


def test_a_call_that_waits_holds_up_no_other() -> None:
    for program in both():
        with PluginProcess(program) as plugin:
            plugin.connect()
            host = Host(plugin)
            host.send((1, "/wait"), (2, "/no"), (3, "/wait"))
            assert verdict(host.answers(1)[2]) == "deny"
            while host.taken == 0:
                message = filter_pb2.CheckBatchAnswer.FromString(next(host.rest()))
                host.taken += message.taken
            host.send((4, "/go"))
            got = host.answers(3)
            assert [verdict(got[id]) for id in (1, 3, 4)] == ["allow", "allow", "deny"]


@pytest.mark.usefixtures("either_way")
def test_an_answer_does_not_wait_for_a_call_behind_it() -> None:
    for program in both():
        with PluginProcess(program) as plugin:
            plugin.connect()
            host = Host(plugin)
            host.send((1, "/no"), (2, "/wait"))
            assert verdict(host.answers(1)[1]) == "deny"
            host.send((3, "/go"))
            assert {verdict(answer) for answer in host.answers(2).values()} == {"allow", "deny"}


def test_a_call_of_another_configuration_is_not_judged() -> None:
    for program in both():
        with PluginProcess(program) as plugin:
            plugin.connect()
            host = Host(plugin)
            host.send((1, "/"), (2, "/"), config_hash="other")
            assert {answer.error.code for answer in host.answers(2).values()} == {9}
            assert host.taken == 1
            assert host.hashes == {""}


CONFIGURED = '''
import asyncio, threading
from palisade import Plugin, deny

plugin = Plugin("test", workers=2)
go, begun = threading.Event(), threading.Event()

if ASYNC:
    @plugin.filter
    async def check(request, config):
        if request.path == "/wait":
            begun.set()
            while not go.is_set():
                await asyncio.sleep(0.001)
        if request.path == "/begun":
            while not begun.is_set():
                await asyncio.sleep(0.001)
        if request.path == "/go":
            go.set()
        return deny(403, config["name"])
else:
    @plugin.filter
    def check(request, config):
        if request.path == "/wait":
            begun.set()
            go.wait()
        if request.path == "/begun":
            begun.wait()
        if request.path == "/go":
            go.set()
        return deny(403, config["name"])

plugin.serve()
'''


def test_an_answer_names_the_configuration_that_it_comes_of() -> None:
    for is_async in (False, True):
        with PluginProcess(CONFIGURED.replace("ASYNC", str(is_async))) as plugin:
            plugin.connect(config={"name": "first"})
            host = Host(plugin)
            # One is under way when another configuration comes.
            host.send((1, "/wait"), (2, "/begun"), config_hash="1")
            assert host.answers(1)[2].request.deny.body == b"first"
            plugin.configure({"name": "second"}, hash="2")
            host.send((3, "/"), config_hash="2")
            assert host.answers(1)[3].request.deny.body == b"second"
            assert host.hashes == {"1", "2"}
            host.hashes.clear()
            host.send((4, "/go"), config_hash="2")
            got: dict[int, tuple[str, bytes]] = {}
            while len(got) < 2:
                message = filter_pb2.CheckBatchAnswer.FromString(next(host.rest()))
                got.update({answer.id: (message.config_hash, answer.request.deny.body) for answer in message.answers})
            assert got == {1: ("1", b"first"), 4: ("2", b"second")}


@pytest.mark.usefixtures("either_way")
def test_a_coroutine_that_is_late_is_cancelled() -> None:
    with PluginProcess(PROGRAM.replace("ASYNC", "True")) as plugin:
        plugin.connect()
        host = Host(plugin)
        host.send((1, "/wait"), timeout=0.05)
        assert host.answers(1)[1].error.code == 4


LATE = """
    import gc, types
    from palisade import Plugin, deny

    plugin = Plugin("test")

    @plugin.filter
    def check(request, config):
        gc.collect()
        traces = [each for each in gc.get_objects() if isinstance(each, types.TracebackType)]
        return deny(403, str(sum(trace.tb_frame.f_code.co_name == "_answer" for trace in traces)))

    plugin.serve()
"""


def test_calls_that_are_late_leave_nothing_behind() -> None:
    with PluginProcess(LATE) as plugin:
        plugin.connect()
        host = Host(plugin)
        host.send(*((id, "/") for id in range(1, 101)), timeout=0)
        assert {answer.error.code for answer in host.answers(100).values()} == {4}
        host.send((101, "/"))
        assert int(host.answers(1)[101].request.deny.body) < 10


@pytest.mark.usefixtures("either_way")
def test_a_plugin_that_stops_answers_what_it_has() -> None:
    for program in both():
        with PluginProcess(program) as plugin:
            plugin.connect()
            host = Host(plugin)
            host.send((1, "/slow"))
            plugin.wait_for_log("slow")
            plugin.terminate()
            assert verdict(host.answers(1)[1]) == "deny"
            assert list(host.rest()) == []
            assert plugin.wait() == 0


AWAITABLES = """
    import asyncio
    from palisade import Plugin, allow, deny

    plugin = Plugin("test")

    async def judge(path):
        await asyncio.sleep(0)
        if path == "/raise":
            raise KeyError("no")
        if path == "/exit":
            raise SystemExit(1)
        if path == "/wait":
            await asyncio.Event().wait()
        return None if path == "/none" else deny(403)

    @plugin.filter
    def check(request, config):
        return allow() if request.path == "/" else judge(request.path)

    plugin.serve()
"""


def test_a_function_may_return_an_awaitable() -> None:
    with PluginProcess(AWAITABLES) as plugin:
        plugin.connect()
        host = Host(plugin)
        host.send((1, "/"), (2, "/no"), (3, "/raise"), (4, "/none"), (5, "/exit"))
        got = host.answers(5)
        assert [verdict(got[id]) for id in (1, 2)] == ["allow", "deny"]
        assert [got[id].error.code for id in (3, 4, 5)] == [13, 13, 13]
        assert "KeyError" in got[3].error.message
        host.send((6, "/wait"), timeout=0.05)
        assert host.answers(1)[6].error.code == 4
        assert host.taken == 2


def test_an_answer_and_what_is_taken_come_in_one_message() -> None:
    for program in both():
        with PluginProcess(program) as plugin:
            plugin.connect()
            host = Host(plugin)
            together = 0
            for id in range(1, 31):
                host.send((id, "/"))
                answered = taken = 0
                while answered == 0 or taken == 0:
                    message = filter_pb2.CheckBatchAnswer.FromString(next(host.rest()))
                    answered, taken = answered + len(message.answers), taken + message.taken
                    together += (len(message.answers), message.taken) == (1, 1)
            # Where a thread does not come to run for a millisecond, what is taken is told before.
            assert together > 15


MIXED = """
    from palisade import Plugin, deny, replace

    plugin = Plugin("test")

    @plugin.filter
    def check(request, config):
        return deny(403, request.path)

    @plugin.response
    async def respond(response, config):
        return None if response.status == 204 else replace(502, response.request.path)

    plugin.serve()
"""


def test_a_batch_may_ask_for_requests_and_responses() -> None:
    with PluginProcess(MIXED) as plugin:
        plugin.connect()
        host = Host(plugin)
        batch = filter_pb2.CheckBatch(config_hash="1")
        for id, status in ((1, 0), (2, 200), (3, 204), (4, 0)):
            call = batch.calls.add(id=id, timeout_micros=50_000_000)
            if status:
                call.response.status = status
                call.response.request.path = f"/{id}"
                call.response.context.request_id = f"request-{id}"
            else:
                call.request.request.path = f"/{id}"
        host.send_message(batch)
        got = host.answers(4)
        assert [got[id].request.deny.body for id in (1, 4)] == [b"/1", b"/4"]
        assert got[2].response.replace.body == b"/2"
        assert got[3].error.code == 13
        assert host.taken == 1
        plugin.wait_for_log('"request_id": "request-3"')


TOGETHER = """
    import asyncio, contextvars
    from palisade import Plugin, allow, deny

    plugin = Plugin("test")
    who = contextvars.ContextVar("who", default="")
    go, tasks = asyncio.Event(), set()

    @plugin.filter
    async def check(request, config):
        before, task = who.get(), asyncio.current_task()
        who.set(request.path)
        if request.path == "/cancel":
            task.cancel()
        if request.path.startswith("/wait"):
            tasks.add(task)
            # Of another one's deadline, this hears nothing.
            await go.wait()
        if request.path.startswith("/turn"):
            await asyncio.sleep(0)
            await asyncio.create_task(asyncio.sleep(0))
        if request.path == "/soon":
            try:
                await asyncio.wait_for(asyncio.Event().wait(), 0.01)
            except asyncio.TimeoutError:
                pass
        if request.path == "/swallow":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
        if request.path == "/go":
            go.set()
        same = task is asyncio.current_task() and who.get() == request.path
        return deny(403, f"{before}|{same}|{len(tasks)}")

    plugin.serve()
"""


def bodies(got: dict[int, Any]) -> dict[int, Any]:
    return {id: answer.request.deny.body.decode() or verdict(answer) for id, answer in got.items()}


@pytest.mark.usefixtures("either_way")
def test_coroutines_of_a_batch_have_contexts_of_their_own_and_keep_their_task() -> None:
    with PluginProcess(TOGETHER) as plugin:
        plugin.connect()
        host = Host(plugin)
        paths = ["/", "/turn", "/", "/turn/again", "/soon", "/", "/cancel", "/turn/behind", "/cancel", "/"] * 3
        host.send(*enumerate(paths, 1))
        assert bodies(host.answers(len(paths))) == {id: "|True|0" for id in range(1, len(paths) + 1)}
        assert host.taken == 1


@pytest.mark.usefixtures("either_way")
def test_each_coroutine_that_waits_has_a_task_of_its_own() -> None:
    with PluginProcess(TOGETHER) as plugin:
        plugin.connect()
        host = Host(plugin)
        waiting = range(1, 51)
        host.send(*((id, "/wait") for id in waiting), (51, "/"))
        assert bodies(host.answers(1)) == {51: "|True|50"}
        host.send((52, "/go"))
        assert bodies(host.answers(51)) == {id: "|True|50" for id in (*waiting, 52)}
        assert host.taken == 2


@pytest.mark.usefixtures("either_way")
def test_a_deadline_is_that_of_one_coroutine() -> None:
    with PluginProcess(TOGETHER) as plugin:
        plugin.connect()
        host = Host(plugin)
        batch = filter_pb2.CheckBatch()
        for id, path, timeout in ((1, "/", 0), (2, "/wait", 0.05), (3, "/wait", 50), (4, "/swallow", 0.05), (5, "/", 50)):
            batch.calls.add(id=id, timeout_micros=int(timeout * 1e6)).request.request.path = path
        host.send_message(batch)
        got = bodies(host.answers(4))
        assert {id: got[id] for id in (1, 4, 5)} == {1: "|True|0", 4: "|True|2", 5: "|True|2"}
        assert got[2] == (4, "the host waits no longer")
        host.send((6, "/go"))
        assert bodies(host.answers(2)) == {3: "|True|2", 6: "|True|2"}


LOST = """
    import asyncio
    from palisade import Plugin, allow

    plugin = Plugin("test")
    never = asyncio.Event()

    @plugin.filter
    async def check(request, config):
        print(f"begun {request.path}", flush=True)
        try:
            await never.wait()
        finally:
            print(f"ended {request.path}", flush=True)

    plugin.serve()
"""


def test_coroutines_end_with_their_stream() -> None:
    with PluginProcess(LOST) as plugin:
        plugin.connect()
        host = Host(plugin)
        host.send((1, "/1"), (2, "/2"), (3, "/3"), timeout=1000)
        for id in (1, 2, 3):
            plugin.wait_for_log(f"begun /{id}")
        host.cancel()
        for id in (1, 2, 3):
            plugin.wait_for_log(f"ended /{id}")


def test_calls_without_end_leave_a_turn_to_others() -> None:
    program = """
        from palisade import Plugin, _threads, allow

        plugin = Plugin("test", workers=1)
        # However slow this machine is, the next batch comes before.
        _threads._LINGER = 5

        @plugin.filter
        def check(request, config):
            return allow()

        @plugin.configure
        def configure(config):
            pass

        plugin.serve()
    """
    with PluginProcess(program) as plugin:
        plugin.connect()
        host = Host(plugin)
        configured = threading.Event()
        calls = itertools.count(1)

        def configure() -> None:
            plugin.configure({"name": "second"}, hash="2")
            configured.set()

        thread = threading.Thread(target=configure)
        thread.start()
        try:
            while not configured.is_set() and thread.is_alive():
                host.send((next(calls), "/"))
                host.answers(1)
        finally:
            thread.join()
        assert configured.is_set()


ESCAPES = """
    import asyncio, logging
    from palisade import Plugin, allow

    plugin = Plugin("test", workers=2)

    class Panic(BaseException):
        pass

    class Mute(Exception):
        def __str__(self):
            raise ValueError("no text")

    ERRORS = {"/panic": Panic("deep"), "/mute": Mute(), "/error": KeyError("plain"), "/generator": GeneratorExit()}

    def judge(request, config):
        if request.path in ERRORS:
            raise ERRORS[request.path]
        return allow()

    async def wait_and_judge(request, config):
        if request.path.endswith("s"):
            await asyncio.sleep(0)
        return judge(request, config)

    ERRORS.update({f"{path}s": error for path, error in ERRORS.items()})
    plain = logging.getLogRecordFactory()

    def record(*args, **kwargs):
        record = plain(*args, **kwargs)
        if LOGS == "own":
            record.request_id = "own"
        elif record.name == "palisade" and LOGS == "broken":
            raise Panic("no logs")
        return record

    if LOGS != "plain":
        logging.basicConfig()
        logging.setLogRecordFactory(record)
    plugin.filter(wait_and_judge if ASYNC else judge)
    plugin.serve()
"""


@pytest.mark.parametrize("logs", ["plain", "own", "broken"])
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_a_function_raises_the_calls_behind_it_are_answered(is_async: bool, logs: str) -> None:
    with PluginProcess(ESCAPES.replace("ASYNC", str(is_async)).replace("LOGS", repr(logs))) as plugin:
        plugin.connect()
        host = Host(plugin)
        raise_ = ["/panic", "/panics", "/mute", "/mutes", "/error", "/errors", "/generator", "/generators"]
        batch = filter_pb2.CheckBatch(config_hash="1")
        for id, path in enumerate([*raise_, "/"], 1):
            call = batch.calls.add(id=id, timeout_micros=50_000_000)
            call.request.request.path = path
            call.request.context.request_id = f"request-{id}"
        host.send_message(batch)
        got = host.answers(9)
        assert [got[id].error.code for id in range(1, 9)] == [13] * 8
        assert verdict(got[9]) == "allow"
        assert "Panic: deep" in got[1].error.message and "Panic: deep" in got[2].error.message
        assert "Mute (it has no text)" in got[3].error.message
        assert "KeyError: 'plain'" in got[5].error.message
        host.send((10, "/"))
        assert verdict(host.answers(1)[10]) == "allow"
        assert host.taken == 2
        if logs != "broken":
            plugin.wait_for_log("Panic: deep")


def test_an_answer_that_cannot_be_made_fails_its_own_call_alone() -> None:
    program = """
        from palisade import Plugin, _wire, allow, deny

        plugin = Plugin("test", workers=1)
        encode = _wire.encode_answer

        def encode_or_not(id, verdict):
            if id == 1:
                raise MemoryError
            if id == 2:
                raise BaseException
            return encode(id, verdict)

        _wire.encode_answer = encode_or_not

        def check(request, config):
            return allow()

        async def check_async(request, config):
            return allow()

        plugin.filter(check_async if ASYNC else check)
        plugin.serve()
    """
    for either in both(program):
        with PluginProcess(either) as plugin:
            plugin.connect()
            host = Host(plugin)
            host.send((1, "/"), (2, "/"), (3, "/"))
            got = host.answers(3)
            assert [got[id].error.code for id in (1, 2)] == [13, 13]
            assert verdict(got[3]) == "allow"
            assert host.taken == 1


def test_threads_that_cannot_be_started_are_tried_again() -> None:
    program = """
        import threading
        from palisade import Plugin, allow

        plugin = Plugin("test", workers=8)
        go = threading.Event()
        start, handlers = threading.Thread.start, []

        def start_or_not(thread):
            if thread.name.startswith("handler"):
                handlers.append(thread)
                if 1 < len(handlers) < 5:
                    raise RuntimeError("can't start new thread")
            start(thread)

        threading.Thread.start = start_or_not

        @plugin.filter
        def check(request, config):
            if request.path == "/wait":
                assert go.wait(50)
            else:
                go.set()
            return allow()

        plugin.serve()
    """
    with PluginProcess(program) as plugin:
        plugin.connect()
        host = Host(plugin)
        host.send((1, "/wait"), (2, "/go"))
        assert {verdict(answer) for answer in host.answers(2).values()} == {"allow"}
        host.send((3, "/"))
        assert verdict(host.answers(1)[3]) == "allow"


CONTEXTS = """
    import contextvars
    from palisade import Plugin, deny

    plugin = Plugin("test", workers=1)
    who = contextvars.ContextVar("who")
    who.set("main")

    async def judge(before):
        return deny(403, f"{before} {who.get()}")

    @plugin.filter
    def check(request, config):
        before = who.get("nobody")
        who.set(request.path)
        return judge(before) if request.path.startswith("/later") else deny(403, f"{before} {who.get()}")

    plugin.serve()
"""


@pytest.mark.usefixtures("either_way")
def test_functions_and_what_they_return_have_a_context_for_each_call() -> None:
    with PluginProcess(CONTEXTS) as plugin:
        plugin.connect()
        paths = ["/a", "/later/b", "/c", "/later/d"]
        host = Host(plugin)
        for _ in range(2):
            host.send(*enumerate(paths, 1))
            assert bodies(host.answers(4)) == {id: f"main {path}" for id, path in enumerate(paths, 1)}
        for path in paths * 2:
            assert plugin.check(path).text == f"main {path}"


def test_an_awaitable_has_the_deadline_of_its_call() -> None:
    program = """
        import asyncio, time
        from palisade import Plugin, deny

        plugin = Plugin("test")

        async def judge():
            await asyncio.sleep(1.5)
            return deny(403)

        @plugin.filter
        def check(request, config):
            time.sleep(1)
            return judge()

        plugin.serve()
    """
    with PluginProcess(program) as plugin:
        plugin.connect()
        host = Host(plugin)
        host.send((1, "/"), timeout=2)
        assert verdict(host.answers(1)[1]) == (4, "the host waits no longer")


LONG = """
    import os, threading, time
    from palisade import Plugin, _batches, deny

    # However slow this machine is, each call is quick.
    _batches._PATIENCE = 0.2
    _batches._LONG = 0.4
    plugin = Plugin("test", workers=4)
    threads = set()

    def check(request, config):
        threads.add(threading.get_ident())
        heard = os.path.exists("heard")
        if not heard:
            time.sleep(0.02)
        return deny(403, f"{heard} {len(threads) > 1}")

    async def check_async(request, config):
        return check(request, config)

    plugin.filter(check_async if ASYNC else check)
    plugin.serve()
"""


def test_answers_do_not_wait_for_all_that_is_quick() -> None:
    for is_async in (False, True):
        with PluginProcess(LONG.replace("ASYNC", str(is_async))) as plugin:
            plugin.connect()
            host = Host(plugin)
            host.send(*((id, "/") for id in range(1, 501)))
            first = filter_pb2.CheckBatchAnswer.FromString(next(host.rest())).answers
            # The loop has its turns for all else, too.
            plugin.call(f"{HEALTH}/Check")
            (plugin.directory / "heard").touch()
            got = {answer.id: answer for answer in first} | host.answers(500 - len(first))
            assert bodies(got)[500].startswith("True")


def test_many_calls_that_are_quick_get_more_threads() -> None:
    with PluginProcess(LONG.replace("ASYNC", "False")) as plugin:
        plugin.connect()
        host = Host(plugin)
        host.send(*((id, "/") for id in range(1, 201)))
        assert bodies(host.answers(200))[200] == "False True"


LARGE = """
    from palisade import Plugin, allow, deny, keep, replace

    plugin = Plugin("test")

    def large(path):
        kind, size = path.split()
        return kind, {"x-large": "x" * int(size)}

    def check(request, config):
        kind, headers = large(request.path)
        return deny(403, "no", headers) if kind == "deny" else allow(set_headers=headers)

    def respond(response, config):
        kind, headers = large(response.request.path)
        return replace(403, "no", headers) if kind == "replace" else keep(set_headers=headers)

    async def check_async(request, config):
        return check(request, config)

    async def respond_async(response, config):
        return respond(response, config)

    plugin.filter(check_async if ASYNC else check)
    plugin.response(respond_async if ASYNC else respond)
    plugin.serve()
"""


def about_responses(*calls: tuple[int, str]) -> filter_pb2.CheckBatch:
    batch = filter_pb2.CheckBatch()
    for id, path in calls:
        batch.calls.add(id=id, timeout_micros=50_000_000).response.request.path = path
    return batch


def test_an_answer_that_is_too_large_fails_its_own_call_alone() -> None:
    for program in both(LARGE):
        with PluginProcess(program) as plugin:
            plugin.connect()
            host = Host(plugin)
            host.send((1, "allow 100"), (2, "allow 1200000"), (3, "allow 1100000"))
            host.send_message(about_responses((4, "keep 1200000")))
            got = host.answers(4)
            assert [verdict(got[id]) for id in (1, 3)] == ["allow", "allow"]
            for id in (2, 4):
                assert got[id].error.code == 13 and "an answer of 12000" in got[id].error.message


def test_a_denial_that_is_too_large_stays_one() -> None:
    for program in both(LARGE):
        with PluginProcess(program) as plugin:
            plugin.connect()
            host = Host(plugin)
            host.send((1, "deny 1200000"), (2, "deny 100"))
            host.send_message(about_responses((3, "replace 1200000")))
            got = host.answers(3)
            assert verdict(got[1]) == "deny" and not got[1].request.deny.ByteSize()
            assert got[2].request.deny.body == b"no"
            assert got[3].response.WhichOneof("verdict") == "replace" and not got[3].response.replace.ByteSize()
            # They are verdicts.
            assert host.hashes == {"1"}
            plugin.terminate()
            plugin.wait()
            assert plugin.log.count("returned an answer of 12000") == 2


def test_a_denial_of_any_size_is_sent_where_it_is_alone() -> None:
    """A host refuses the request if it can't read the answer, and may not if it gets an error in its place."""
    with PluginProcess(LARGE.replace("ASYNC", "False")) as plugin:
        plugin.connect()
        options = [("grpc.max_receive_message_length", -1)]
        channel = plugin.also(grpc.insecure_channel(f"unix:{plugin.address}", options))
        method: Any = channel.unary_unary(f"/{FILTER}/CheckRequest")
        assert not outcome(method(request("deny 17000000"), timeout=60)).allowed


def test_a_batch_may_have_no_calls_and_calls_no_request() -> None:
    for program in both():
        with PluginProcess(program) as plugin:
            plugin.connect()
            host = Host(plugin)
            host.send()
            assert filter_pb2.CheckBatchAnswer.FromString(next(host.rest())).taken == 1
            batch = filter_pb2.CheckBatch()
            batch.calls.add(id=1, timeout_micros=50_000_000).request.SetInParent()
            host.send_message(batch)
            assert verdict(host.answers(1)[1]) == (3, "no request")
