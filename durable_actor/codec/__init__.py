"""Codec: what a value may be, and the bytes that bring back exactly that value.

Storage, calls between objects, replies and journals all speak through this package, so
that "what you read equals what you wrote" is kept, or refused, in one place.

Theory of operation
    The bytes are one version byte and one MessagePack item. MessagePack knows None,
    bool, 64-bit int, float, str, bytes, list and dict. msgspec would quietly change
    everything else: a tuple would come back as a list, a UUID as a text. So anything
    else becomes an extension item: a tag that names the type, and a payload.

    An instance of a class is stored as the key of its class, "module:qualname", and its
    parts by name. A form knows how the instances of one class come apart and are put
    together again, without its `__init__`.

Promises
    A value comes back with the same types all the way down, or `encode` refuses it and
    says where in the value the trouble sits and what to do.
    Types are compared with `is`, never with `==`: 1, True and 1.0 are three values.
    Reading never imports, evaluates or unpickles. A class is found if it was
    registered, or if its module is already imported. Whatever the bytes, the only
    exception is `DecodeError`.

Not promised: that an object appearing twice in a value comes back as one object, or the
order of a set.

Reading order: `tags` is the format in numbers; `refusals` and `wording` say what went
wrong; `leaves` writes and reads values without parts, `forms` and `registry` instances
of classes; `values` puts it together. On top of that, `failures` carries exceptions to
a caller and `readable` shows values to people. `arguments` stands alone.

Does not know who stores or sends the bytes.
"""

from durable_actor.codec.arguments import convert_arguments
from durable_actor.codec.failures import dumps_error, loads_error
from durable_actor.codec.readable import stored_to_json, to_json
from durable_actor.codec.registry import register
from durable_actor.codec.values import clone, decode, encode

__all__ = [
    "clone",
    "convert_arguments",
    "decode",
    "dumps_error",
    "encode",
    "loads_error",
    "register",
    "stored_to_json",
    "to_json",
]
