"""Durable objects for Python: addressable, single-threaded, durable things.

Reading order of the package: `errors`, `ids`, `clock` and `codec` are its words;
`gates`, `mailbox` and `alarms` its mechanisms; `storage/` its state on disk;
`websockets`, `fetch`, `rpc`, `state`, `namespace` and `entrypoints` what user code
holds; `activation` and `host` the runtime; `daemon/` and `client` its edges.
"""

from durable_actor.client import Client, connect
from durable_actor.clock import (
    Clock,
    Duration,
    Instant,
    SystemClock,
    Timer,
    deadline,
    duration_ms,
    instant_ms,
    sleep_until,
    to_datetime,
)
from durable_actor.codec import convert_arguments, decode, encode, register, to_json
from durable_actor.config import Config, load_config
from durable_actor.directory import (
    AlarmEntry,
    AlarmPage,
    HostStats,
    ObjectEntry,
    ObjectPage,
    StoredKey,
    StoredPage,
)
from durable_actor.entrypoints import DurableObject, interleave
from durable_actor.env import Env
from durable_actor.errors import (
    BadArgumentsError,
    BodyError,
    CallTimeoutError,
    ConfigError,
    CorruptionError,
    DataDirectoryInUseError,
    DecodeError,
    DurableActorError,
    EncodeError,
    ForeignIdError,
    FormatTooNewError,
    HostClosedError,
    HostMisuseError,
    InvalidIdError,
    InvalidTimeError,
    MethodNotFoundError,
    ObjectDeadlockError,
    ObjectError,
    ObjectOverloadedError,
    ObjectResetError,
    Outcome,
    RemoteError,
    SqlError,
    StorageError,
    StorageFailedError,
    StorageFullError,
    StorageLimitError,
    TransactionClosedError,
    TransportError,
    UnauthorizedError,
    WebSocketClosedError,
    WebSocketMisuseError,
)
from durable_actor.fetch import Headers, Request, Response
from durable_actor.host import Host
from durable_actor.ids import ObjectId
from durable_actor.log import get_logger
from durable_actor.namespace import DurableObjectNamespace, DurableObjectStub
from durable_actor.rpc import AlarmInfo, CallOptions, EventSink, OutboxEvent, Router
from durable_actor.schedules import Schedule, Schedules
from durable_actor.state import DurableObjectState
from durable_actor.storage.facade import (
    DurableObjectStorage,
    DurableObjectTransaction,
)
from durable_actor.storage.watches import StateChange, Watch
from durable_actor.websockets import (
    ReadyState,
    WebSocket,
    WebSocketPair,
    WebSocketRequestResponsePair,
)

__all__ = [
    "AlarmEntry",
    "AlarmInfo",
    "AlarmPage",
    "BadArgumentsError",
    "BodyError",
    "CallOptions",
    "CallTimeoutError",
    "Client",
    "Clock",
    "Config",
    "ConfigError",
    "CorruptionError",
    "DataDirectoryInUseError",
    "DecodeError",
    "DurableActorError",
    "DurableObject",
    "DurableObjectNamespace",
    "DurableObjectState",
    "DurableObjectStorage",
    "DurableObjectStub",
    "DurableObjectTransaction",
    "Duration",
    "EncodeError",
    "Env",
    "EventSink",
    "ForeignIdError",
    "FormatTooNewError",
    "Headers",
    "Host",
    "HostClosedError",
    "HostMisuseError",
    "HostStats",
    "Instant",
    "InvalidIdError",
    "InvalidTimeError",
    "MethodNotFoundError",
    "ObjectDeadlockError",
    "ObjectEntry",
    "ObjectError",
    "ObjectId",
    "ObjectOverloadedError",
    "ObjectPage",
    "ObjectResetError",
    "OutboxEvent",
    "Outcome",
    "ReadyState",
    "RemoteError",
    "Request",
    "Response",
    "Router",
    "Schedule",
    "Schedules",
    "SqlError",
    "StateChange",
    "StorageError",
    "StorageFailedError",
    "StorageFullError",
    "StorageLimitError",
    "StoredKey",
    "StoredPage",
    "SystemClock",
    "Timer",
    "TransactionClosedError",
    "TransportError",
    "UnauthorizedError",
    "Watch",
    "WebSocket",
    "WebSocketClosedError",
    "WebSocketMisuseError",
    "WebSocketPair",
    "WebSocketRequestResponsePair",
    "connect",
    "convert_arguments",
    "deadline",
    "decode",
    "duration_ms",
    "encode",
    "get_logger",
    "instant_ms",
    "interleave",
    "load_config",
    "register",
    "sleep_until",
    "to_datetime",
    "to_json",
]
