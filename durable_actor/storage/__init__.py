"""State on disk: one log, one shard file, one group commit for many objects.

Reading order: `batch` (what is written), `shard` (the only writer), `fold` (from the
log into the tables), `committer` (tickets and groups), `overlay` (one object's view)
and `facade` (`ctx.storage`).
"""
