"""The delivery of one object's alarm: from the reminder to the seal that ends it.

Theory of operation
    The row of the alarm stays on disk while the handler runs and is dropped, or moved
    to a retry, by the seal that ends the delivery: a crash in between fires it again,
    and is not counted. An exception of the handler is counted, and after so many the
    alarm is given up.

    A handler that breaks its activation cannot note how it ended: the overlay is gone.
    The retry is then owed by the host, and taken over by the next activation, provided
    the disk still has the same alarm.

    The wheel hears of a change once the seal that made it is durable
    (*alarm-never-late*).

Functions without state of their own: an object without an alarm pays nothing for them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from durable_actor.delivery import was_cancelled
from durable_actor.entrypoints import ClassInfo, DurableObject
from durable_actor.errors import StorageError
from durable_actor.ids import ObjectId
from durable_actor.log import get_logger
from durable_actor.rpc import AlarmInfo
from durable_actor.storage.batch import AlarmRow
from durable_actor.storage.overlay import Overlay
from durable_actor.surroundings import Surroundings

ALARM_BACKOFF_DOUBLINGS_MAX = 9  # 2 s doubled nine times: about 17 minutes
ALARM_JITTER = 0.25  # added, never taken away

log = get_logger("durable_actor.objects")


async def deliver_alarm(
    host: Surroundings,
    object_id: ObjectId,
    overlay: Overlay,
    instance: DurableObject,
    info: ClassInfo,
) -> bool:
    """Run the alarm handler if the alarm is due, and note in the overlay how it ended.

    Returns:
        Whether it was due, so that there is something to seal.
    """
    counters = host.counters
    alarm = overlay.stored_alarm
    if alarm is None or alarm.due_at_ms > host.clock.now_ms():
        return False
    overlay.begin_alarm()
    overlay.outlast(alarm=True)
    told = AlarmInfo(
        retry_count=alarm.retries,
        is_retry=alarm.retries > 0,
        scheduled_at_ms=alarm.scheduled_at_ms,
    )
    handler: Any = instance.alarm  # type: ignore[attr-defined]  # it has one
    retry = None
    try:
        await (handler(told) if info.alarm_takes_info else handler())
        counters.alarms_delivered += 1
    except (Exception, asyncio.CancelledError):
        if overlay.reset is not None or was_cancelled():
            raise
        counters.alarms_failed += 1
        log.exception("alarm.failed", object=repr(object_id), retries=alarm.retries)
        if alarm.counted < host.settings.alarm_retry_limit:
            retry = retry_of(alarm, host, counts=True)
        else:
            counters.alarms_abandoned += 1
            log.warning(
                "alarm.abandoned", object=repr(object_id), tries=alarm.counted + 1
            )
    overlay.end_alarm(retry)
    overlay.outlast(alarm=True)
    return True


def retry_of(alarm: AlarmRow, host: Surroundings, *, counts: bool) -> AlarmRow:
    """Return the alarm as it is tried again, later each time."""
    doublings = min(alarm.retries, ALARM_BACKOFF_DOUBLINGS_MAX)
    delay_ms = host.settings.alarm_retry_base_ms << doublings
    delay_ms += int(delay_ms * ALARM_JITTER * host.random.random())
    return AlarmRow(
        due_at_ms=host.clock.now_ms() + delay_ms,
        scheduled_at_ms=alarm.scheduled_at_ms,
        retries=alarm.retries + 1,
        counted=alarm.counted + (1 if counts else 0),
    )


def tell_of_alarm(host: Surroundings, object_id: ObjectId, overlay: Overlay) -> None:
    """Tell the wheel of the alarm, once the seal that set it is durable."""
    alarm = overlay.stored_alarm
    due_at_ms = None if alarm is None else alarm.due_at_ms
    reminders = host.reminders

    def tell(failure: StorageError | None) -> None:
        if failure is None:
            reminders.changed(object_id, due_at_ms)
        else:
            # The disk still has the alarm before; the object will look at it.
            reminders.undelivered(object_id)

    host.committer.when_durable(overlay.alarm_ticket, tell)


def take_over_owed_alarm(
    host: Surroundings, object_id: ObjectId, overlay: Overlay
) -> bool:
    """Set the alarm anew that the activation before could not note; was there one?"""
    owed, stored = host.reminders.take_owed(object_id), overlay.stored_alarm
    if owed is None or stored is None or stored.scheduled_at_ms != owed.scheduled_at_ms:
        return False
    if owed.counted > host.settings.alarm_retry_limit:
        overlay.set_alarm(None)
        host.counters.alarms_abandoned += 1
        log.warning("alarm.abandoned", object=repr(object_id), tries=owed.counted)
    else:
        overlay.set_alarm(owed)
    return True
