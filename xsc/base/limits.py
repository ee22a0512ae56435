"""Bounds that several modules share, and how they relate.

The others stand beside the code that holds them. Sizes are bytes, times
milliseconds. A bound that a user may change is the default of a configuration key
(docs/configuration.md); the others are part of the formats.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# Storage
SEGMENT_BYTES = 4 * MIB
LEAF_BYTES = 16 * KIB
INLINE_BYTES_MAX = 4 * KIB
"""Objects up to this size travel inside the sealed manifest."""
READ_TOGETHER_MAX = 128
"""Small objects that one call of the API reads."""
DATA_SHARDS_DEFAULT = 4
PARITY_SHARDS_DEFAULT = 2
SHARDS_MAX = 255
"""n = k + m of one code: zfec works over GF(2^8)."""
SEGMENTS_IN_FLIGHT = 3
MANIFEST_BYTES_MAX = 32 * MIB
OBJECT_BYTES_MAX = 512 * GIB
"""Bounded by the manifest: about 250 bytes a segment of 4 MiB, in 32 MiB."""
DIRECTORY_HEAD_BYTES_MAX = 2 * MIB
"""Kept whole at every peer: the addresses of PEERS_MAX peers and a small directory."""
DIRECTORY_BYTES_MAX = 1 * GIB
DIRECTORY_WAITED_MS = 150
"""Least time between two writes of the directory for each HEAD_STEP_BYTES that the head has begun,
while somebody waits for it."""
HEAD_STEP_BYTES = 128 * KIB
TREE_BYTES_MAX = 64 * MIB
TREE_DEPTH_MAX = 128
STORE_REQUEST_BYTES_MAX = 16 * MIB
"""Shards of one put request; more columns at one host go in several."""
STAT_READ_BYTES_MAX = 64 * MIB
"""How much a stat reads to find damage; beyond it, only damage met before is told."""
COLUMNS_MAX = 4_096
"""Columns of one object, of all customers, that a host tells of."""
DAMAGED_TOLD_MAX = 64
"""Damaged segments of a column that a stat names one by one; all of them are counted."""
SWEEP_SLICE = 2_000
"""Index entries looked at without a pause."""
READ_AHEAD_KEPT_MS = 10 * 60_000
CUSTODIANS = 2
"""Peers that are asked to look after an object while its owner is away."""
CUSTODIANS_MAX = 16
"""Of one object, as far as one is told of those before it."""
STORAGE_QUESTION_TIMEOUT_MS = 5_000
"""For find, stat and delete, which carry no shards."""

# Peer messages
FRAME_HEADER_BYTES_MAX = 1 * MIB
"""Of the methods that need most (docs/design/net.md, F4)."""
HEAD_BYTES_MAX = 64 * KIB
"""Header of a message of a method that declares nothing else. What is larger, and an answer or a
value of a space that is, is decoded in a thread, of each peer one at a time."""
REQUEST_UNITS = 500
"""What a small request costs: a unit is about a microsecond of a processor."""
SYNC_BYTES = 4 * KIB
"""What is written and synced counts as so many bytes more than it has."""
SYNCED_A_PEER_BYTES_MAX = 64 * MIB
"""Bytes that one peer may have written and synced within SYNCED_MS, where nobody pays for it."""
SYNCED_MS = 60_000
FRAME_PARTS_MAX = 256
PEER_BODY_BYTES_MAX = MANIFEST_BYTES_MAX + 2 * MIB
REQUEST_WINDOW_MS = 60_000
"""How far a request's creation may lie from the receiver's clock, either way."""
NONCE_BYTES = 16
PEER_TIMEOUT_MS = 15_000
PEER_CONNECT_TIMEOUT_MS = 3_000
PEER_REQUESTS_IN_FLIGHT_MAX = 64
"""Requests of one peer that are read, answered or written at once."""
PEER_REQUESTS_A_SECOND_MAX = 2_000
"""Of one peer, where each costs REQUEST_UNITS; of dearer ones fewer."""
BATCH_CALLS_MAX = 32
"""Small calls that travel in one request."""
BATCH_CALL_BYTES_MAX = 64 * KIB
"""Header and parts of a call that may travel with others, and of its answer."""
BATCH_CALL_PARTS_MAX = FRAME_PARTS_MAX // BATCH_CALLS_MAX
BATCH_BYTES_MAX = 512 * KIB
SMALL_BODIES_BYTES = 16 * MIB
"""How much of the room for bodies, and of that for answers, only small ones get."""
SMALL_BODY_BYTES_MAX = 64 * KIB
"""A body is small as long as no more of it has come."""
JOIN_BYTES_MAX = 16 * KIB
"""What a caller that is not known may send."""
NO_PROGRESS_MS = 10_000
"""The window in which a transfer must bring what is due, or end; a head may take as long."""
PEERS_MAX = 1_000
REMOVED_LISTED_MAX = 1_000
"""Peers that were removed that a directory head lists, the newest: a recovery bars them again."""
INTRODUCED_A_PEER_MAX = 64
"""Peers that one introducer makes known to a node and that its operator has not confirmed; as many
that these make known; as many are introduced to a peer at a time."""
SOUGHT_MAX = 64
"""Peers in one question."""
RECORD_BYTES_MAX = 256 * KIB

# Compute
MODULE_BYTES_MAX = 32 * MIB
PROGRAM_DOCUMENT_BYTES_MAX = 256 * KIB
FUEL_DEFAULT = 1_000_000_000
FUEL_MAX = 2**58
"""With the most memory steps a run still counts below 2^63 fuel steps."""
MEMORY_BYTES_DEFAULT = 64 * MIB
MEMORY_BYTES_MAX = 1 * GIB
TIMEOUT_MS_DEFAULT = 10_000
TIMEOUT_MS_MAX = 600_000
OUTPUT_BYTES_MAX = 16 * MIB
STDIN_BYTES_MAX = 16 * MIB
INPUT_BYTES_MAX = 64 * MIB
"""All files mounted into one job, together."""
ARGUMENTS_MAX = 64
ARGUMENT_BYTES_MAX = 64 * KIB
KILL_GRACE_MS = 30
"""After the deadline the worker may report by itself; then it is killed."""
JOBS_QUEUED_MAX = 64
JOINT_RECORDS_MAX = 64
"""Records under one signature."""
RETRY_AFTER_S_MAX = 60
"""Longest time that a caller is told, or lets itself be told, to wait before it tries again."""
JOBS_QUEUED_A_PEER_MAX = 32
MODULE_LOST_MS = 3_600_000
"""How long a provider refuses a module to a customer whose run of it ended with its worker process.
The customer pays no second loss within half of it: so much its clock may differ."""
RUN_FUEL = 5_000_000
"""What taking and answering an order or a request costs beside the program: about a millisecond. At
the default price, less its greatest discount, that is a micro-credit: no run is less, which would
be nothing."""
COMPILE_MS_DEFAULT = 20_000
COMPILE_MS_MAX = 600_000
"""Most that a node may allow a module to be compiled, and that compiling it is billed for."""
COMPILE_BYTE_FUEL = 1_000
"""What a byte of a module costs that an order brings and that has to be compiled: 1 MB takes
about as long as that much fuel at MILLISECOND_FUEL."""
COMPILE_ADDRESS_BYTES = 1536 * MIB
"""Address space of a jail, its own 300 MiB included."""
WORKER_ADDRESS_BYTES = 4 * GIB
"""Address space of a worker: a memory that grows is copied, so twice MEMORY_BYTES_MAX must fit."""
WORKER_FRAME_BYTES_MAX = MODULE_BYTES_MAX + INPUT_BYTES_MAX + STDIN_BYTES_MAX + MIB
LOCALITY_BYTES_LEAST = 64 * KIB
"""A node that saves less of a job's module and input than this counts as saving nothing."""
NEAR_PRICE_PPM = 1_250_000
"""How much dearer for its quality the provider may be that saves most bytes."""
MODULES_REMEMBERED_MAX = 1024
"""Modules of which a customer knows which nodes have them."""
MODULE_NAMED_BYTES_LEAST = 64 * KIB
"""A module of at least this size is first named by its hash to the own node, and then sent."""
EXPORTS_MAX = 16_384
"""A worker reads all of them before it runs the module, which takes a third of a second at most."""
TABLES_MAX = 16
TABLE_ELEMENTS_MAX = 1_000_000
MILLISECOND_FUEL = 4_000_000
"""What a millisecond costs a run that is ended for its time: what a plain loop burns in one."""
HOST_CALL_FUEL = 1_000
"""What one host call costs beside one unit a byte: it takes as long as that many instructions."""
LISTED_ENTRY_FUEL = 300
"""What each entry of a directory costs a call that lists it, however few of them it returns."""
MOVED_ENTRY_FUEL = 1_000
"""What each entry below a directory costs a call that renames it: all their paths change."""
OUTPUT_FILES_MAX = FRAME_PARTS_MAX - 2
"""Files, directories and links in /out: with both streams each file is a part of one answer."""
OUTPUT_PATH_BYTES_MAX = 2048
"""Of a path in /out: all of them stand in the header of that answer."""
FILE_NAME_BYTES_MAX = 255
ENVIRONMENT_MAX = 256
STREAM_PIECE_BYTES = 256 * KIB
"""Of each stream in one answer to who watches a run."""
PROVIDERS_TRIED_MAX = 3
BATCH_ITEMS_MAX = 65_536
"""Calls of one batch."""
BATCH_CALL_FUEL = 50_000
"""What each call of a batch costs beside its fuel: it has an instance of its own."""

# Services
SERVICE_CONCURRENCY_MAX = 32
SERVICE_RECORD_BYTES_MAX = 128 * KIB
"""One signed deployment: its variables have ARGUMENT_BYTES_MAX."""
SERVICE_LOG_ROWS_MAX = 4096
"""Requests of one service that the log keeps."""
SERVICE_PAGE_ROWS_MAX = 256
SERVICE_COLLECT_MS = 1_000
"""How often an owner fetches receipts of its services at others, and looks after their leases."""
SERVICE_COLLECT_TIMEOUT_MS = 5_000
SERVICE_RATE_MS = 600_000
"""Over how long it is measured at which rate services run."""
SERVICE_RATES_MAX = 8
"""Leases with a cleared rate that an owner names to a holder of its services."""
SERVICE_CONNECTIONS_MAX = 512

# Market and ledger
EPOCH_MS = 3_600_000
PRICE_BYTES = GIB
"""A price of storage is for so many bytes, and an epoch."""
PRICE_FUEL = 10**9
"""A price of compute is for so many fuel steps: a Gfuel."""
SLOT_STEP_BYTES = 64 * MIB
"""Slots and needs of storage are stated in so many bytes."""
SLOT_STEP_FUEL = 10_000_000
"""Slots and needs of compute are stated in so many fuel steps a second."""
MFUEL = 1_000_000
MEMORY_STEP_BYTES = 64 * MIB
COMPUTE_LEASE_MS = 60_000
STORAGE_LEASE_MS = 90 * 24 * 3_600_000
LEASE_URGENT_MS = 30 * 24 * 3_600_000
"""So long before the end of a lease that a host refused to renew, what lies there moves."""
LEASE_RESCUE_MS = 21 * 24 * 3_600_000
"""So long before the end the first custodian keeps what an absent owner did not renew."""
LEASE_TURN_MS = 5 * 24 * 3_600_000
"""The next custodian comes so much later."""
LEASE_LAST_MS = 7 * 24 * 3_600_000
"""Then it moves what it cannot keep where it is."""
LEASE_WARNING_MS = 30 * 24 * 3_600_000
"""So long before its end a lease that was not renewed is spoken of."""
COMPUTE_WAIT_MS = 60_000
"""How long a call waits for its turn."""
LEASE_TIMEOUT_MS = 5_000
LEASES_A_CUSTOMER_MAX = 256
"""Leases of one customer that are open."""
LEASES_DONE_A_CUSTOMER_MAX = 256
"""Leases of one customer that are over; the oldest are forgotten, and stay owed."""
COUNT_LEASES_MAX = LEASES_A_CUSTOMER_MAX + LEASES_DONE_A_CUSTOMER_MAX
"""Leases of one customer in a count: those that are open, and those that are over."""
TIDY_MS = 5_000
PPM = 1_000_000
MUTUAL_RECOGNITION_THRESHOLD_PPM = 10_000
AMOUNT_MAX = 2**63 - 1
NEAR_LIMIT_PPM = 800_000
"""Of what a node may owe: both sides say so once a debt is beyond."""
SLOT_ID_BYTES = 16
SLOTS_MAX = 64
"""Slots that one node offers at a time."""
NEEDS_MAX = 64
SLOT_HORIZON_MS = 90 * 24 * 3_600_000
"""No window ends later than so long from now."""
OFFER_MS = 60_000
"""How long what a clearing grants is kept free for its customer to take a lease on it."""
OFFER_PAUSES_MAX = 1_000
"""Pauses in one published state; of more, those that end first are forgotten."""
OFFER_SETTLE_MS = 10_000
"""How long a customer waits at most for other providers before it takes what it is offered."""
ALLOCATION_DEBOUNCE_MS = 100
ALLOCATION_LOOK_MS = 60_000
"""How often capacity is looked at where nothing else changed."""
CLEARINGS_BYTES_MAX = 32 * MIB
"""Of these records with what they name. Each slot has an equal part of it; it is half of what an
owner has in its space."""
CONVERGED_LOOK_MS = 1_000
"""How long a node waits for further changes before it says that it has converged."""
COMMITMENT_BYTES_MAX = 64 * KIB
DAMPING_HISTORY_MAX = 3
LEDGER_RECORD_BYTES_MAX = 4 * KIB
"""One half or one voucher, with its envelope (some 700 bytes)."""
LEDGER_RETRY_MS = 30_000
INCARNATION_GAP = 2**20
"""Least distance of an incarnation's first number from all that is known of the ones before:
no half that was lost, and is not known, may have a number of the new one."""

# Clearing
CLEARING_BYTES_MAX = 1 * MIB
"""Of a signed clearing record: a value of the space."""
SPACE_EVIDENCE_BYTES_MAX = 24 * KIB
"""Of a record of a space inside of a clearing record."""
ALLOCATIONS_MAX = 4_096
"""What needs are granted of slots, in one published state. Who comes later takes no part."""

# Health
PROBE_TIMEOUT_MS = 3_000

# What one peer may cost others (docs/security.md)
OTHERS_GET_MS_MAX = 30_000
"""Within this a small object is read while k of its columns lie at honest nodes that are up."""
OTHERS_PUT_MS_MAX = 60_000
"""Within this a small object is stored while enough honest nodes are up."""
STORED_OVERHEAD_BYTES_A_PEER_MAX = 32 * KIB
"""What a customer's bodies may take on a disk beyond twice what it is billed for."""

assert SEGMENT_BYTES % LEAF_BYTES == 0
assert INLINE_BYTES_MAX < SEGMENT_BYTES
assert PEER_BODY_BYTES_MAX > SEGMENT_BYTES + FRAME_HEADER_BYTES_MAX
assert BATCH_CALL_BYTES_MAX < BATCH_BYTES_MAX
assert OUTPUT_FILES_MAX * OUTPUT_PATH_BYTES_MAX < FRAME_HEADER_BYTES_MAX // 2
assert BATCH_BYTES_MAX + BATCH_CALL_BYTES_MAX < FRAME_HEADER_BYTES_MAX
assert BATCH_CALLS_MAX < PEER_REQUESTS_IN_FLIGHT_MAX
assert STORE_REQUEST_BYTES_MAX >= SEGMENT_BYTES
assert 2 * STORE_REQUEST_BYTES_MAX <= PEER_BODY_BYTES_MAX
assert OBJECT_BYTES_MAX // SEGMENT_BYTES * 250 <= MANIFEST_BYTES_MAX
assert JOIN_BYTES_MAX < PEER_BODY_BYTES_MAX
assert SYNCED_A_PEER_BYTES_MAX > SYNCED_MS // DIRECTORY_WAITED_MS * (HEAD_STEP_BYTES + SYNC_BYTES)
assert LEDGER_RECORD_BYTES_MAX < RECORD_BYTES_MAX
assert COMPUTE_LEASE_MS < STORAGE_LEASE_MS
assert LEASE_URGENT_MS < STORAGE_LEASE_MS // 2 - STORAGE_LEASE_MS // 8
assert LEASE_LAST_MS < LEASE_RESCUE_MS - (CUSTODIANS - 1) * LEASE_TURN_MS
assert LEASE_RESCUE_MS < LEASE_URGENT_MS
assert LEASE_WARNING_MS < STORAGE_LEASE_MS // 2 - STORAGE_LEASE_MS // 8
assert TIMEOUT_MS_DEFAULT <= TIMEOUT_MS_MAX
assert (
    FUEL_MAX + RUN_FUEL + MODULE_BYTES_MAX * COMPILE_BYTE_FUEL + BATCH_ITEMS_MAX * BATCH_CALL_FUEL
) * (MEMORY_BYTES_MAX // MEMORY_STEP_BYTES) < 2**63
assert WORKER_ADDRESS_BYTES >= COMPILE_ADDRESS_BYTES + 2 * MEMORY_BYTES_MAX
assert SERVICE_COLLECT_TIMEOUT_MS + SERVICE_COLLECT_MS < COMPUTE_LEASE_MS
