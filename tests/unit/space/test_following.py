"""What is followed of a peer, and that there is room to follow it of every peer."""

from itertools import product

from xsc.base.limits import PEERS_MAX
from xsc.space.following import prefixes_of
from xsc.space.limits import CURSORS_MAX, WATCHES_MAX
from xsc.space.paths import UserSpacePaths, is_under

ALL = (
    UserSpacePaths.RECOGNITION,
    UserSpacePaths.COMMITMENT,
    UserSpacePaths.ALLOCATION_STATE,
)


def test_what_is_followed_of_every_peer_fits_one_request():
    for mine, theirs in product((0, 1), (0, 1)):
        prefixes = prefixes_of(mine, theirs)
        assert len(prefixes) * PEERS_MAX + WATCHES_MAX <= CURSORS_MAX
        for path in ALL:
            assert sum(is_under(path, prefix) for prefix in prefixes) == 1
