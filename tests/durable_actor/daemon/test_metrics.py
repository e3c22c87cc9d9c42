"""The text of `/metrics`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from durable_actor.daemon import metrics
from durable_actor.daemon.metrics import make_metrics
from durable_actor.directory import HostStats
from durable_actor.entrypoints import DurableObject
from durable_actor.host import Host


class Till(DurableObject):
    async def fill(self) -> None:
        self.ctx.storage.put("coins", 1)


async def test_every_statistic_of_the_host_is_shown(tmp_path: Path) -> None:
    async with Host(tmp_path / "data") as host:
        await host.namespace(Till).get_by_name("a").fill()
        render = make_metrics(host.stats, state=lambda: "full", in_flight=lambda: 3)
        text = render().decode()

    assert "durable_calls_total 1.0" in text
    assert "durable_objects_resident 1.0" in text
    assert "durable_http_in_flight 3.0" in text
    assert 'durable_storage_state{state="full"} 1.0' in text
    assert 'durable_storage_state{state="ok"} 0.0' in text
    assert "durable_build_info{" in text


def test_no_statistic_is_forgotten() -> None:
    fields = {field.name for field in dataclasses.fields(HostStats)}

    assert fields == {*metrics._GAUGES, *metrics._COUNTERS}


async def test_two_hosts_in_one_process_do_not_collide(tmp_path: Path) -> None:
    async with Host(tmp_path / "a") as one, Host(tmp_path / "b") as two:
        first = make_metrics(one.stats, state=lambda: "ok", in_flight=lambda: 0)
        second = make_metrics(two.stats, state=lambda: "ok", in_flight=lambda: 0)
        await one.namespace(Till).get_by_name("a").fill()

        assert b"durable_calls_total 1.0" in first()
        assert b"durable_calls_total 0.0" in second()
