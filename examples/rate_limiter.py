"""A rate limiter: one token bucket for each client, refilled by its alarm.

An object has one alarm. It is stored with everything else, so a bucket is refilled on
time even if the host was closed in between, and a full bucket costs nothing: it has no
alarm and leaves memory. One client's bucket never waits for another's.

    python examples/rate_limiter.py [DIRECTORY]

Expected output:
    alice asks five times at once: yes yes yes no no
    bob asks twice: yes yes
    after a refill alice asks again: yes
    left alone, alice's bucket fills up to 3 tokens and no further
"""

import asyncio
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import structlog

from durable_actor import DurableObject, Host

TOKENS_MAX = 3
REFILL = timedelta(milliseconds=300)  # one token


class Bucket(DurableObject):
    """The tokens of one client."""

    async def take(self) -> bool:
        """Take a token if there is one."""
        tokens = await self.tokens()
        if tokens == 0:
            return False
        self.ctx.storage.put("tokens", tokens - 1)
        if await self.ctx.storage.get_alarm() is None:
            self.ctx.storage.set_alarm(REFILL)
        return True

    async def tokens(self) -> int:
        """Return how many are left; a bucket that was never used is full."""
        tokens: int = await self.ctx.storage.get("tokens", TOKENS_MAX)
        return tokens

    async def alarm(self) -> None:
        """Put one token back, and come again unless the bucket is full."""
        # An alarm may ring twice if the process dies at the wrong moment: never beyond.
        tokens = min(await self.tokens() + 1, TOKENS_MAX)
        self.ctx.storage.put("tokens", tokens)
        if tokens < TOKENS_MAX:
            self.ctx.storage.set_alarm(REFILL)


async def ask(directory: Path) -> None:
    """Let two clients ask for more than they get."""
    # Named here, Bucket's alarms ring from the start; otherwise, from its first use on.
    async with Host(directory, classes=[Bucket]) as host:
        buckets = host.namespace(Bucket)
        alice, bob = buckets.get_by_name("alice"), buckets.get_by_name("bob")

        answers = await asyncio.gather(*(alice.take() for _ in range(5)))
        print("alice asks five times at once:", *map(_word, answers))
        print("bob asks twice:", _word(await bob.take()), _word(await bob.take()))

        await _until_tokens(alice, 1)
        print("after a refill alice asks again:", _word(await alice.take()))

        await _until_tokens(alice, TOKENS_MAX)
        await asyncio.sleep(1.5 * REFILL.total_seconds())
        left = await alice.tokens()
        print(f"left alone, alice's bucket fills up to {left} tokens and no further")


def _word(answer: bool) -> str:  # noqa: FBT001  # it is the subject
    return "yes" if answer else "no"


async def _until_tokens(bucket: Bucket, tokens: int) -> None:
    while await bucket.tokens() < tokens:  # noqa: ASYNC110  # asks as a client would
        await asyncio.sleep(0.01)


def main() -> None:
    """Limit in the directory given, or in one that is gone afterwards."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(ask(Path(sys.argv[1] if sys.argv[1:] else temporary)))


if __name__ == "__main__":
    main()
