"""The outbox: events reach their sink at least once, in order, and slow nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from durable_actor import (
    Config,
    DurableObject,
    EventSink,
    OutboxEvent,
    StorageFullError,
)
from durable_actor.config import StorageConfig
from durable_actor.storage.store import DriverKind
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Sink:
    """Takes events; or fails, or makes the host wait, if told to."""

    def __init__(self) -> None:
        self.taken: list[OutboxEvent] = []
        self.failures: list[BaseException] = []
        self.offered = 0
        self._open = asyncio.Event()
        self._open.set()

    @property
    def numbers(self) -> list[object]:
        return [event.data["n"] for event in self.taken]

    def pause(self) -> None:
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        self.offered += 1
        await self._open.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.taken += events


class Source(DurableObject):
    async def emit(self, *numbers: int) -> None:
        for number in numbers:
            self.ctx.emit({"n": number})

    async def emit_and_write(self, number: int) -> None:
        self.ctx.storage.put("n", number)
        self.ctx.emit({"n": number})

    async def emit_and_abort(self, number: int) -> None:
        self.ctx.emit({"n": number})
        self.ctx.abort()


class Orphan(DurableObject):
    async def emit(self) -> None:
        self.ctx.emit({"n": 1})


def source_with(sink: EventSink) -> type[Source]:
    class Bound(Source):
        event_sink: ClassVar[EventSink | None] = sink

    Bound.__name__ = "Source"
    return Bound


class Bench:
    """A source, the sink of its class, and the host and disk between them."""

    def __init__(self, test: TestHost, cls: type[Source], sink: Sink) -> None:
        self.test = test
        self.cls = cls
        self.sink = sink
        self.disk = take_over(test.host)  # until the host starts again

    @property
    def source(self) -> Source:
        return self.test.host.namespace(self.cls).get_by_name("a")


@asynccontextmanager
async def open_bench(
    *, config: Config | None = None, driver: DriverKind = "thread"
) -> AsyncIterator[Bench]:
    """Open a host that knows the class of the source from its start."""
    sink = Sink()
    cls = source_with(sink)
    async with open_test_host(classes=[cls], config=config, driver=driver) as test:
        yield Bench(test, cls, sink)


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_g9_events_arrive_in_order(driver: DriverKind) -> None:
    async with open_bench(driver=driver) as bench:
        await bench.source.emit(1, 2, 3)
        await bench.source.emit(4)
        await bench.test.settle()
        assert bench.sink.numbers == [1, 2, 3, 4]
        object_id = bench.test.host.namespace(bench.cls).id_from_name("a")
        assert {event.object_id for event in bench.sink.taken} == {str(object_id)}
        places = [event.seq for event in bench.sink.taken]
        assert places == sorted(set(places))
        assert bench.test.host.stats().events_delivered == 4
        assert bench.test.host.stats().events_waiting == 0


async def test_an_event_leaves_only_after_its_turn_is_durable() -> None:
    async with open_bench() as bench:
        await bench.source.emit()
        bench.disk.pause()
        emitting = asyncio.ensure_future(bench.source.emit_and_write(1))
        await bench.test.settle()
        assert bench.sink.offered == 0
        bench.disk.resume()
        await emitting
        await bench.test.settle()
        assert bench.sink.numbers == [1]


async def test_an_event_of_a_lost_turn_is_lost_with_it() -> None:
    async with open_bench() as bench:
        await bench.source.emit()
        await results([bench.source.emit_and_abort(1)])
        bench.disk.failures.append(StorageFullError("commit", "full"))
        await results([bench.source.emit_and_write(2)])
        await bench.source.emit(3)
        await bench.test.settle()
        assert bench.sink.numbers == [3]


async def test_a_sink_that_fails_is_offered_the_same_events_later() -> None:
    async with open_bench() as bench:
        bench.sink.failures = [ConnectionError("away"), ConnectionError("still away")]
        await bench.source.emit(1, 2)
        await bench.test.settle()
        assert (bench.sink.offered, bench.sink.numbers) == (1, [])
        assert bench.test.host.stats().events_waiting == 2
        await bench.source.emit(3)
        await bench.test.advance("1 minute")
        assert bench.sink.numbers == [1, 2, 3]
        assert bench.test.host.stats().events_waiting == 0


async def test_a_sink_that_raises_a_cancellation_is_one_that_fails() -> None:
    async with open_bench() as bench:
        bench.sink.failures = [asyncio.CancelledError()]
        await bench.source.emit(1)
        await bench.test.advance("1 minute")
        assert bench.sink.numbers == [1]


async def test_a_sink_that_hangs_slows_nobody() -> None:
    other_sink = Sink()

    class Other(Source):
        event_sink: ClassVar[EventSink | None] = other_sink

    async with open_bench() as bench:
        bench.sink.pause()
        await bench.source.emit(1)
        await bench.source.emit(2)
        await bench.test.host.namespace(Other).get_by_name("b").emit(3)
        await bench.test.settle()
        assert (bench.sink.numbers, other_sink.numbers) == ([], [3])
        bench.sink.resume()
        await bench.test.settle()
        assert bench.sink.numbers == [1, 2]


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_what_was_not_delivered_is_delivered_after_a_restart(
    driver: DriverKind,
) -> None:
    async with open_bench(driver=driver) as bench:
        bench.sink.pause()
        await bench.source.emit(1, 2)
        await bench.test.settle()
        await bench.test.crash()
        bench.sink.resume()
        await bench.test.start()
        await bench.test.settle()
        assert bench.sink.numbers == [1, 2]
        await bench.source.emit(3)
        await bench.test.settle()
        assert bench.sink.numbers == [1, 2, 3]


async def test_what_was_delivered_is_not_delivered_again_after_a_clean_end() -> None:
    async with open_bench() as bench:
        await bench.source.emit(1, 2)
        await bench.test.settle()
        await bench.test.host.close()
        await bench.test.start()
        await bench.test.settle()
        assert bench.sink.numbers == [1, 2]


async def test_events_of_a_class_wait_until_it_is_registered() -> None:
    sink = Sink()
    cls = source_with(sink)
    async with open_test_host() as test:
        sink.pause()
        await test.host.namespace(cls).get_by_name("a").emit(1)
        await test.restart()
        sink.resume()
        await test.settle()
        assert sink.numbers == []
        assert test.host.stats().events_waiting == 1
        test.host.register(cls)
        await test.settle()
        assert sink.numbers == [1]


async def test_closing_delivers_what_becomes_durable_meanwhile() -> None:
    async with open_bench() as bench:
        await bench.source.emit()
        bench.disk.pause()
        emitting = asyncio.ensure_future(bench.source.emit_and_write(1))
        await bench.test.settle()
        closing = asyncio.ensure_future(bench.test.host.close(grace_ms=0))
        await bench.test.settle()
        bench.disk.resume()
        await results([closing, emitting])
        assert bench.sink.numbers == [1]
        offered = bench.sink.offered
        await bench.test.settle()
        assert bench.sink.offered == offered


async def test_g9_a_full_outbox_drops_and_counts() -> None:
    config = Config(storage=StorageConfig(outbox_events_max=10))
    async with open_bench(config=config) as bench:
        bench.sink.pause()
        await bench.source.emit(*range(8))
        await bench.source.emit(*range(8, 20))
        stats = bench.test.host.stats()
        assert stats.events_waiting == 10
        assert stats.events_dropped == 10
        bench.sink.resume()
        await bench.test.settle()
        assert bench.sink.numbers == list(range(10))
        await bench.source.emit(20)
        await bench.test.settle()
        assert bench.sink.numbers[-1] == 20


async def test_events_that_fail_to_commit_take_up_no_room() -> None:
    config = Config(storage=StorageConfig(outbox_events_max=10))
    async with open_bench(config=config) as bench:
        await bench.source.emit()
        for _ in range(3):
            bench.disk.failures.append(StorageFullError("commit", "full"))
            await results([bench.source.emit(*range(10))])
            await results([bench.source.emit_and_abort(1)])
        await bench.source.emit(*range(10))
        await bench.test.settle()
        assert bench.sink.numbers == list(range(10))


async def test_a_class_without_a_sink_emits_into_nothing() -> None:
    async with open_test_host() as test:
        await test.host.namespace(Orphan).get_by_name("a").emit()
        assert test.host.stats().events_waiting == 0
        assert test.host.stats().events_dropped == 0
