"""The daemon: one process that serves a host over HTTP, and its command line.

`loader` finds the user's classes, `routing`, `bodies`, `problems` and `openapi` are the
words of the HTTP face, `guard` decides who may come in, `app` joins them to a host,
`protocol` and `server` are the process, `doctor` and `cli` the commands.
"""
