"""Requests to an object's own `fetch`, and the values they are made of."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from durable_actor import (
    BodyError,
    CallTimeoutError,
    DurableObject,
    Headers,
    HostClosedError,
    MethodNotFoundError,
    ObjectResetError,
    Request,
    Response,
    StorageFullError,
)
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import Scene

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Site(DurableObject):
    """Answers by the path."""

    async def fetch(self, request: Request) -> Any:
        match request.path:
            case "/echo":
                return Response(
                    await request.bytes(),
                    status=201,
                    headers={"X-Method": request.method, "X-Query": request.query},
                )
            case "/count":
                count = await self.ctx.storage.get("count", 0) + 1
                self.ctx.storage.put("count", count)
                return Response.json({"count": count})
            case "/stream":
                return Response(self.lines())
            case "/mirror":
                return Response(request.body)
            case "/break":
                return Response(self.broken_lines())
            case "/fail":
                message = "fetch boom"
                raise LookupError(message)
            case "/nothing":
                return "not a response"
            case "/wait":
                await self.env.scene.reach("wait")
                return Response("waited")
            case "/other":
                other = self.env.namespace(Site).get_by_name("other")
                return await other.fetch(Request("/count"))
        return Response("nothing here", status=404)

    async def lines(self) -> AsyncIterator[str]:
        try:
            for n in range(3):
                self.ctx.storage.put("line", n)
                yield f"line {n}\n"
                await self.env.scene.reach(f"line {n}")
        finally:
            self.env.scene.note("closed")

    async def broken_lines(self) -> AsyncIterator[bytes]:
        yield b"one"
        message = "no more lines"
        raise LookupError(message)

    async def line(self) -> int | None:
        value: int | None = await self.ctx.storage.get("line")
        return value


class Mute(DurableObject):
    """Has no `fetch`."""


def site(test: TestHost, name: str = "a") -> Any:
    return test.host.namespace(Site).get_by_name(name)


async def test_an_object_answers_a_request() -> None:
    async with open_test_host() as test:
        response = await site(test).fetch(
            "http://example.com/echo?a=1", method="POST", body="hello"
        )
        assert (response.status, response.status_text) == (201, "Created")
        assert response.ok
        assert response.headers["x-method"] == "POST"
        assert response.headers["X-QUERY"] == "a=1"
        assert await response.text() == "hello"
        assert await response.bytes() == b"hello"


async def test_a_request_may_be_handed_over_whole() -> None:
    async with open_test_host() as test:
        request = Request("/echo", method="PUT", body=b"\xff")
        response = await site(test).fetch(request)
        assert await response.bytes() == b"\xff"
        assert response.headers["x-method"] == "PUT"


async def test_what_a_response_says_is_durable_before_it_leaves() -> None:
    async with open_test_host() as test:
        disk = take_over(test.host)
        disk.pause()
        asking = asyncio.ensure_future(site(test).fetch("/count"))
        await test.settle()
        assert not asking.done()
        disk.resume()
        assert await (await asking).json() == {"count": 1}


async def test_a_response_whose_commit_fails_never_leaves() -> None:
    async with open_test_host() as test:
        await site(test).fetch("/count")
        take_over(test.host).failures.append(StorageFullError("commit"))
        with pytest.raises(StorageFullError):
            await site(test).fetch("/count")
        assert await (await site(test).fetch("/count")).json() == {"count": 2}


async def test_requests_of_one_object_are_answered_one_at_a_time() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        waiting = asyncio.ensure_future(site(test).fetch("/wait"))
        counting = asyncio.ensure_future(site(test).fetch("/count"))
        await test.settle()
        assert not counting.done()
        scene.open("wait")
        assert await (await waiting).text() == "waited"
        assert await (await counting).json() == {"count": 1}


async def test_a_streamed_body_goes_on_after_the_handler_has_returned() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        response = await site(test).fetch("/stream")
        pieces = response.body
        assert pieces is not None
        assert await anext(pieces) == b"line 0\n"
        # The mailbox is free meanwhile, and the object stays in memory.
        assert await site(test).line() == 0
        await test.advance("5 minutes")
        assert test.host.stats().objects_resident == 1
        scene.open("line 0", "line 1", "line 2")
        assert [piece async for piece in pieces] == [b"line 1\n", b"line 2\n"]
        await test.settle()
        assert "closed" in scene.log
        await test.advance("5 minutes")
        assert test.host.stats().objects_resident == 0


async def test_a_piece_leaves_when_what_was_written_before_it_is_durable() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        pieces = (await site(test).fetch("/stream")).body
        await anext(pieces)
        disk = take_over(test.host)
        disk.pause()
        scene.open("line 0")
        reading = asyncio.ensure_future(anext(pieces))
        await test.settle()
        assert not reading.done()
        disk.resume()
        assert await reading == b"line 1\n"
        scene.open("line 1", "line 2")
        assert [piece async for piece in pieces] == [b"line 2\n"]
        await test.settle()


async def test_a_piece_whose_commit_fails_never_leaves() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        pieces = (await site(test).fetch("/stream")).body
        await anext(pieces)
        take_over(test.host).failures.append(StorageFullError("commit"))
        scene.open("line 0")
        with pytest.raises((BodyError, ObjectResetError)):
            await anext(pieces)
        await test.settle()


async def test_a_stream_nobody_reads_any_more_is_ended() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        response = await site(test).fetch("/stream")
        await response.aclose()
        assert scene.log[-1] == "closed"

        response = await site(test).fetch("/stream")
        await test.settle()
        scene.log.clear()
        del response
        gc.collect()
        await test.settle()
        assert scene.log[-1] == "closed"


async def test_a_stream_that_breaks_tells_its_reader() -> None:
    async with open_test_host() as test:
        pieces = (await site(test).fetch("/break")).body
        assert await anext(pieces) == b"one"
        with pytest.raises(LookupError, match="no more lines"):
            await anext(pieces)


async def test_bodies_stream_both_ways_at_once() -> None:
    sent: list[int] = []

    async def numbers() -> AsyncIterator[str]:
        for n in range(100):
            sent.append(n)
            yield f"{n},"

    async with open_test_host() as test:
        response = await site(test).fetch("/mirror", method="POST", body=numbers())
        assert response.body is not None
        assert await anext(response.body) == b"0,"
        assert len(sent) < 10
        await response.aclose()


async def test_a_failure_of_the_callers_own_stream_is_the_handlers() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"begun"
        message = "the caller's"
        raise LookupError(message)

    async with open_test_host() as test:
        with pytest.raises(LookupError, match="the caller's"):
            await site(test).fetch("/echo", method="POST", body=broken())


async def test_an_exception_of_the_handler_reaches_the_caller() -> None:
    async with open_test_host() as test:
        with pytest.raises(LookupError, match="fetch boom"):
            await site(test).fetch("/fail")
        with pytest.raises(TypeError, match="did not resolve to 'Response'"):
            await site(test).fetch("/nothing")
        assert (await site(test).fetch("/else")).status == 404


async def test_one_object_asks_another() -> None:
    async with open_test_host() as test:
        assert await (await site(test).fetch("/other")).json() == {"count": 1}
        assert await (await site(test, "other").fetch("/count")).json() == {"count": 2}


async def test_a_class_without_fetch_says_what_to_write() -> None:
    async with open_test_host() as test:
        mute: Any = test.host.namespace(Mute).get_by_name("a")
        with pytest.raises(MethodNotFoundError, match="async def fetch"):
            await mute.fetch("/")


async def test_fetch_is_no_method_to_call() -> None:
    async with open_test_host() as test:
        namespace = test.host.namespace(Site)
        target = namespace.id_from_name("a")
        options = namespace.get_by_name("a")._options  # type: ignore[attr-defined]
        with pytest.raises(MethodNotFoundError, match=r"stub\.fetch"):
            await test.host.call(target, "fetch", ("/",), {}, options)


async def test_a_caller_waits_only_as_long_as_it_says() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        stub: Any = test.host.namespace(Site).get_by_name("a", timeout="1 second")
        asking = asyncio.ensure_future(stub.fetch("/wait"))
        await test.advance("2 seconds")
        with pytest.raises(CallTimeoutError):
            await asking
        scene.open("wait")
        await test.settle()


async def test_a_caller_that_leaves_in_the_line_ends_its_own_stream() -> None:
    scene = Scene()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"piece"
        finally:
            scene.note("ended")

    async with open_test_host(env={"scene": scene}) as test:
        first = asyncio.ensure_future(site(test).fetch("/wait"))
        second = asyncio.ensure_future(
            site(test).fetch("/echo", method="POST", body=pieces())
        )
        await test.settle()
        second.cancel()
        await test.settle()
        assert scene.log == ["wait", "ended"]
        scene.open("wait")
        assert await (await first).text() == "waited"


async def test_a_response_is_not_kept_for_a_repeat() -> None:
    async with open_test_host() as test:
        stub: Any = test.host.namespace(Site).get_by_name("a", request_id="r")
        with pytest.raises(ValueError, match="request_id"):
            await stub.fetch("/count")


async def test_a_draining_host_takes_no_request() -> None:
    async with open_test_host() as test:
        await test.host.drain()
        with pytest.raises(HostClosedError):
            await site(test).fetch("/count")


def test_headers_have_no_case_and_may_come_twice() -> None:
    headers = Headers([("Accept", "a"), ("X", "1")])
    headers.append("accept", "b")
    assert headers["ACCEPT"] == "a, b"
    assert headers.get_all("Accept") == ["a", "b"]
    headers["accept"] = "c"
    assert headers.pairs() == [("accept", "c"), ("x", "1")]
    del headers["Accept"]
    assert "accept" not in headers
    assert dict(headers) == {"x": "1"}
    with pytest.raises(KeyError):
        headers["accept"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a b", "1"),
        ("", "1"),
        ("a\n", "1"),
        ("a", "1\r\nb: 2"),
        ("a", "1\0"),
        ("a", "☃"),
        ("a", 1),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="header"):
        Headers().append(name, value)
    with pytest.raises(ValueError, match="header"):
        Headers()[name] = value


@pytest.mark.parametrize(
    "make",
    [
        lambda: Request("example.com/a"),
        lambda: Request("ftp://example.com"),
        lambda: Request("http://"),
        lambda: Request("http://a:port/"),
        lambda: Request("/", method="GE T"),
        lambda: Response(status=99),
        lambda: Response(status=101),
        lambda: Response(status=600),
    ],
)
def test_what_is_no_request_or_response_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Request("/", body="a"),
        lambda: Request("/", method="HEAD", body=b""),
        lambda: Response("a", status=204),
        lambda: Response("", status=304),
        lambda: Response(1),  # type: ignore[arg-type]
        lambda: Request("/", method="POST", body={"a": 1}),  # type: ignore[arg-type]
    ],
)
def test_a_body_where_none_can_be_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match=r"\w"):
        make()


def test_a_url_is_written_so_that_it_can_be_sent() -> None:
    request = Request("/a b/é?q=ü#part", method="post")
    assert request.url == "http://durable-object/a%20b/%C3%A9?q=%C3%BC"
    assert request.path == "/a%20b/%C3%A9"
    assert request.query == "q=%C3%BC"
    assert request.method == "POST"


async def test_a_stream_is_read_once_and_what_was_read_stays() -> None:
    async def pieces() -> AsyncIterator[str]:
        yield '{"a":'
        yield "1}"

    response = Response(pieces())
    assert await response.json() == {"a": 1}
    assert await response.text() == '{"a":1}'

    response = Response(pieces())
    assert response.body is not None
    assert await anext(response.body) == b'{"a":'
    assert response.body_used
    with pytest.raises(BodyError, match="already been used"):
        await response.bytes()


async def test_json_of_a_class_makes_and_of_a_response_reads() -> None:
    response = Response.json({"a": (1, 2)}, status=202, headers={"X": "1"})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x"] == "1"
    assert response.status == 202
    assert await response.json() == {"a": [1, 2]}
    assert Response("text").headers["content-type"] == "text/plain;charset=UTF-8"
    assert Response(b"bytes").headers.get("content-type") is None
    with pytest.raises(ValueError, match="truncated"):
        await Response("{").json()
