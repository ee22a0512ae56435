"""Makes what a round follows from, as tests say it: by mappings."""

from xsc.allocation.granting import Gathered, Inputs, rows_of


def inputs_of(
    now_ms,
    own,
    others,
    *,
    theirs=None,
    drawn=None,
    pinned=None,
    credit=None,
    free=None,
    is_pending=False,
):
    takers = [each for _, each in sorted(others.items())]
    gathered = Gathered(
        now_ms=now_ms,
        own=own.said,
        others=tuple(each.said for each in takers),
        theirs=tuple(sorted((theirs or {}).items())),
        drawn=rows_of(drawn or {}),
        pinned=rows_of(pinned or {}),
        credit=tuple(sorted((credit or {}).items())),
        free=dict(free or {}),
        is_pending=is_pending,
    )
    return Inputs(gathered, own, takers)
