"""What holds in every test."""

from hypothesis import settings

# A busy machine is not a failing test; pytest's own timeout catches one that hangs.
# A failure prints what repeats it. The parent keeps Hypothesis's habits under CI.
settings.register_profile(
    "suite", parent=settings.default, deadline=None, print_blob=True
)
settings.load_profile("suite")
