"""`python -m durable_actor`: the command line."""

from durable_actor.daemon.cli import main

main()
