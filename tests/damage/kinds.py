# SPDX-License-Identifier: MIT
"""The table of kinds of damage; the modules of damage register theirs."""
from good import GOOD

KINDS = {}      # name -> (good image, function)


def kind(*goods):
    """Registers a function for each of @goods: GOOD-function."""
    def add(f):
        for good in goods:
            KINDS[f"{good}-{f.__name__.replace('_', '-')}"] = (good, f)
        return f
    return add


@kind(*GOOD)
def good(i):
    pass
