"""Addresses: from the class and the name in a path to what the daemon serves."""

from __future__ import annotations

from durable_actor.daemon.loader import Served, ServedClass
from durable_actor.daemon.problems import nearest, no_class, refuse
from durable_actor.daemon.routing import Incoming
from durable_actor.ids import IdSpace, ObjectId

BY = {"by": "What {name} is: `name` (the default) or `id`, 64 hexadecimal characters."}


def class_of(served: Served, name: str) -> ServedClass:
    """Return the class with a name, or the one a binding leads to.

    Raises:
        ProblemError: 404.
    """
    found = served.find(name)
    if found is None:
        raise no_class(name, nearest(name, served.names()))
    return found


def target_of(
    served: ServedClass, incoming: Incoming, *, by: str | None = None
) -> ObjectId:
    """Return the object of the path: by its name, or by its id if the query says so.

    Args:
        served: The class of the path.
        incoming: The request.
        by: `name` or `id`, if it is not for the query to say.

    Raises:
        ProblemError: 400.
        InvalidIdError: Not a name, or not an id.
    """
    return id_in(served.ids, incoming, by=by)


def id_in(ids: IdSpace, incoming: Incoming, *, by: str | None = None) -> ObjectId:
    """Return the object of the path in a namespace; see `target_of`."""
    name = incoming.names["name"]
    match by or incoming.query.get("by", "name"):
        case "name":
            return ids.from_name(name)
        case "id":
            return ids.parse(name)
        case other:
            raise refuse("bad_request", f"by is {other[:20]!r}.", "Write name or id.")
