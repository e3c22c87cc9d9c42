"""Access: whether a caller may use a route for the names in it; asked in one place.

A route belongs to the class or the workflow in its path or, if that is how it is
narrowed down, in its query. What belongs to no class and no workflow is for tokens that
cover everything, unless the route says that it is for all.

Promises
    To a caller whose token does not cover a name, the name does not exist: the answer
    is that for a name nobody serves, to the byte, whatever the verb and whatever else
    is wrong with the request. Only then is the verb looked at.
    Every request for an admin verb leaves one line in the log, with who and what, and
    without arguments, keys or values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from durable_actor.daemon.grants import Grant, Verb
from durable_actor.daemon.loader import Served
from durable_actor.daemon.problems import Problem, no_class, no_workflow, refuse
from durable_actor.daemon.routing import Route
from durable_actor.errors import DurableActorError
from durable_actor.log import get_logger

log = get_logger("durable_actor.daemon.access")
# What a hint says after these would name what others have.
_TELLING_CODES = frozenset({"unknown_class", "unknown_workflow"})


class Access:
    """Decides by grant, route and names.

    Args:
        served: The classes, with the names of their bindings.
        workflows: The names of all workflows.
    """

    def __init__(self, served: Served, workflows: Collection[str]) -> None:
        self._served = served
        self._workflows = frozenset(workflows)

    def check(
        self,
        grant: Grant,
        route: Route,
        names: Mapping[str, str],
        query: Mapping[str, str],
        *,
        verb: Verb | None = None,
    ) -> None:
        """Let the request pass.

        Args:
            grant: The caller's.
            route: What is asked for.
            names: Those in the path.
            query: The parameters.
            verb: If the request needs another than its route, as a handshake does.

        Raises:
            ProblemError: 404, for the caller there is no such name; 403, the token
                lacks the verb, or does not cover what belongs to no namespace; 400, it
                is narrower than the question.
        """
        if not grant.is_full:
            self._check_names(grant, route, names, query)
        needs = verb or route.needs
        if needs not in grant.verbs:
            raise refuse(
                "forbidden",
                f"{route.name} needs the verb {needs!r},"
                f" which the token {grant.name!r} does not have.",
                "Use a token that has it; `durable-actor tokens create` makes one.",
            )

    def _check_names(
        self,
        grant: Grant,
        route: Route,
        names: Mapping[str, str],
        query: Mapping[str, str],
    ) -> None:
        given = {**query, **names}
        if "{class}" in route.path or "class" in route.query:
            if "class" not in given:
                raise _too_wide(grant, "class")
            if not self._covers_class(grant, given["class"]):
                raise no_class(given["class"])
        elif "{workflow}" in route.path or "workflow" in route.query:
            if "workflow" not in given:
                raise _too_wide(grant, "workflow")
            name = given["workflow"]
            if name not in self._workflows or not grant.covers_workflow(name):
                raise no_workflow(name)
        elif not route.is_for_all:
            raise refuse(
                "forbidden",
                f"{route.name} is about the whole daemon, and the token"
                f" {grant.name!r} covers a part of it.",
                "Use a token that covers everything.",
            )

    def _covers_class(self, grant: Grant, name: str) -> bool:
        found = self._served.find(name)
        if found is None:
            return grant.covers_class(name)  # of a class that once was served
        bindings = [b for b, bound in self._served.bindings.items() if bound is found]
        return grant.covers_class(found.name, *bindings)

    def told_to(self, grant: Grant, problem: Problem) -> Problem:
        """Return the problem without what is not for the caller to know."""
        if grant.is_full or problem.code not in _TELLING_CODES:
            return problem
        return problem.without_hint()

    def note(
        self,
        grant: Grant,
        route: Route,
        names: Mapping[str, str],
        *,
        status: int,
        trace_id: str,
    ) -> None:
        """Write down that an admin verb was used, or refused."""
        if route.needs != "admin":
            return
        facts = {
            "operation": route.name,
            "token": grant.name,
            "status": status,
            "trace_id": trace_id,
        }
        for kind in ("class", "workflow"):
            if kind in names:
                facts[kind] = names[kind][:100]
        if "class" in names and "name" in names:
            facts["object"] = self._id_of(names["class"], names["name"])
        log.info("admin.request", **facts)

    def _id_of(self, object_class: str, name: str) -> str | None:
        """Return the id: a name may tell more than a log should keep."""
        found = self._served.find(object_class)
        if found is None:
            return None
        try:
            return str(found.ids.from_name(name))
        except DurableActorError:
            return None


def _too_wide(grant: Grant, kind: str) -> Exception:
    return refuse(
        "bad_request",
        f"The token {grant.name!r} does not cover everything.",
        f"Narrow the question down with ?{kind}=.",
    )
