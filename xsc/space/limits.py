"""Bounds of the space. Sizes are bytes, times milliseconds; all are part of the formats."""

from __future__ import annotations

from xsc.base.limits import GIB, KIB, MIB, PEERS_MAX

PATH_BYTES_MAX = 1_024
PART_BYTES_MAX = 128
PATH_PARTS_MAX = 32

VALUE_BYTES_MAX = 1 * MIB
VALUE_INLINE_BYTES_MAX = 4 * KIB
"""Values up to this size travel beside their record; larger ones are fetched by their hash."""
RECORDS_MAX = 10_000
"""Live records of one owner."""
OWNER_BYTES_MAX = 64 * MIB
"""Records of one owner, live and deleted, with their values."""
RECORD_BYTES = 192
"""What a record counts beside its path, stamp and value: more than its other fields take."""
OWNER_SURE_BYTES = 1 * MIB
"""What every owner has at a replica, however much the others have."""
OTHERS_BYTES_MAX = 4 * GIB
"""What all other owners have together at one node, beside what each has for sure."""
TOMBSTONES_MAX = 10_000
"""Tombstones of one owner that a replica keeps; the oldest goes first."""
TOMBSTONE_KEPT_MS = 30 * 24 * 3_600_000
UNSUBSCRIBED_KEPT_MS = 24 * 3_600_000
"""How long records are kept that nobody here subscribes to any more."""
COMPACT_STEP_BYTES = 32 * MIB
"""Of the disk that one step of a compaction rewrites; what one owner has can come on top."""
FUTURE_MS_MAX = 10 * 60_000
"""How far ahead of the receiver's clock a record or head may be dated."""

HEAD_INTERVAL_MS = 30_000
"""Least time between two heads of one owner."""
ACTIVE_MS = 60_000
"""How old the newest head of an active node is at most."""
HELD_REQUEST_MS_MAX = 25_000
"""How long a request for news is held before it is answered with nothing."""
FOLLOWING_SETTLE_MS = 1_000
"""Between two changes of what is followed that come of recognition."""
RETRY_MS = 5_000
"""Between two tries at a peer that did not answer, or answered badly."""
RETRY_MS_MAX = 300_000
"""Each malformed answer in a row doubles RETRY_MS, up to this."""
CURSORS_MAX = 8 * PEERS_MAX
"""Sections in one request: those that are followed of every peer, and what else is."""
RELAYS_MAX = 2
"""Replicas that are asked for an owner that does not answer itself."""
PAGE_BYTES = 1 * MIB
"""Records of one answer; one more can come on top."""
PAGE_RECORDS = 1_000
ASKED_RECORDS_MAX = 256
"""Paths of one request for records by their paths."""
SHOWN_BYTES_MAX = 2 * MIB
"""A head with changes that are larger is not told; a later one has fewer."""
ANSWER_BYTES_MAX = PAGE_BYTES + SHOWN_BYTES_MAX + MIB
"""One body of an answer: a page, one record and one head more, and what stands around them."""
LISTING_BYTES_MAX = RECORDS_MAX * (PATH_BYTES_MAX + 64) + MIB
"""The body of a listing."""
RECORD_UNITS = 250
"""Of the quota of a peer, for a record of it that is verified."""
STAMP_BYTES_A_RECORD = 32
"""A stamp counts as so many further records as it has of these: about 90 nodes to read."""
PROOF_ROWS_A_RECORD = 16
"""So many rows of a listing, or that are compared to a head, count as one record or row."""
ROW_UNITS = 50
"""Of the quota of a peer, for a cursor, path, record or listed row that it is answered."""
ROW_BYTES = 4 * KIB
"""A large value counts as so many rows as it has of these."""
CHECKED_BYTES_A_RECORD = KIB
"""A head, or a value that is checked, counts as a record that is verified for each of these."""
WATCHES_MAX = 256

GRANTS_A_PEER_MAX = 4
GRANTS_MS = 24 * 3_600_000
"""Intervals that one peer may ask for within this time."""
ASK_AGAIN_MS = 30_000
"""Between two questions for an interval, until there is one."""
ASKED_MAX = 10
"""Rounds of questions; then the node founds a domain with its next write."""
GRANTS_A_RECEIVER_MAX = 8
"""Parts of one interval that its owner gives to the same node, at any time."""
CLOCK_DEPTH_MAX = 64
CLOCK_NODES_MAX = 4_096
CLOCK_NODES_JOINED_MAX = 3_072
"""A node joins no interval that would make its own stamp larger: others would refuse it."""
CLOCK_BYTES_MAX = 16 * KIB
CLOCK_BYTES_JOINED_MAX = 12 * KIB
"""As CLOCK_NODES_JOINED_MAX, in bytes. The rest is room for own counters."""
GRANT_LEVELS_MAX = CLOCK_DEPTH_MAX // 2 + 1
"""Grants in each other: each is cut at least two levels deeper than its giver's."""
GRANT_BYTES_MAX = 32 * KIB
"""A grant with all that are in it."""
INTERVAL_NODES_MAX = 256
"""`cut_grant` leaves no giver more than about 130; own counters take 3.4 KiB at most."""
COUNTER_END = 2**53
"""Counters of a clock are below this."""
FILL_END = 2**52
"""`fill` lifts no counter to this or above, so that no neighbour can use up the counters left."""
