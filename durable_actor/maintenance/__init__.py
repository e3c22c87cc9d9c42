"""Looking at a data directory, and moving it, while no host has it open.

`copies` takes the lock and brings a copy in order with the code that a start uses, so
that what lies there stays as it is; `inspection` looks for damage, `export` and
`importing` turn a directory into lines of JSON and back, `backups` copies it whole.
"""
