"""How many examples a property test draws.

A run of the tests draws at most 40 of each property; `--hypothesis-profile nightly` draws the number that each test
names. Examples are derandomized: a number of examples is always the same examples.
"""

from hypothesis import settings

__all__ = ["NIGHTLY", "examples"]

NIGHTLY = "nightly"
_MOST = 40


def examples(nightly: int) -> settings:
    """The settings of a property: `nightly` examples in the nightly profile, at most 40 in every other run."""
    count = nightly if settings.get_current_profile_name() == NIGHTLY else min(nightly, _MOST)
    return settings(derandomize=True, deadline=None, database=None, max_examples=count)
