"""Every bound in the system, and how they relate.

Sizes are bytes, times milliseconds. A bound that a user may change is the
default of a configuration key (docs/configuration.md); the others are part of
the formats.
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
BODY_OVERHEAD_BYTES = 512
"""What a stored shard or object record counts for beside its bytes. Header, keys and index entry
take 354 to 378 bytes of the disk for a shard, 430 to 540 for a record."""
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
DIRECTORY_INLINE_BYTES_MAX = 512 * KIB
"""A larger directory is an object of its own."""
DIRECTORY_BYTES_MAX = 1 * GIB
DIRECTORY_DELAY_MS = 500
"""Changes of the directory within this time are written together."""
DIRECTORY_INTERVAL_MS = 5_000
"""Least time between two writes of the directory, and between tries to tell peers."""
DIRECTORY_WAITED_MS = 150
"""The same for each HEAD_STEP_BYTES that the head has begun, while somebody waits for it."""
DIRECTORY_TOLD_MS_MAX = 3_000
"""How long a put waits for its name, and a stop for the last head."""
HEAD_STEP_BYTES = 128 * KIB
RECOVERY_PARALLEL = 16
"""Objects looked for at once by a recovery."""
TREE_ENTRIES_MAX = 2**17
"""Files, directories and links of one stored directory."""
TREE_BYTES_MAX = 64 * MIB
TREE_DEPTH_MAX = 128
LEDGER_HISTORY_ITEMS_MAX = 64
"""Entries in one page of a ledger's history."""
STORE_REQUEST_BYTES_MAX = 16 * MIB
"""Shards of one put request; more columns at one host go in several."""
GONE_BYTES_MAX = 4 * MIB
"""Notes of deletions that a shard store keeps until its index is synced: some 110 bytes a body."""
TOMBSTONES_MAX = 16_384
"""Deleted objects of which a host takes nothing that was under way meanwhile."""
STAT_READ_BYTES_MAX = 64 * MIB
"""How much a stat reads to find damage; beyond it, only damage met before is told."""
DEFAULT_LOSSES_MAX = 2
"""Nodes that an object must survive at most where no contract is asked for."""
OVERLAPS_MAX = 8
"""Failure domains that overlap others, up to which the yearly loss of an object is exact."""
STAT_ROWS_MAX = 1_024
"""Shards that one answer to a stat speaks of; it takes some 45 ms, and a longer one goes on from
the place where the last ended."""
STAT_PAGES_MAX = 1_024
COLUMNS_MAX = 4_096
"""Columns of one object, of all customers, that a host tells of."""
STAT_TIMEOUT_MS = 60_000
"""For all pages of one stat."""
DAMAGED_TOLD_MAX = 64
"""Damaged segments of a column that a stat names one by one; all of them are counted."""
SWEEP_INTERVAL_MS = 3_600_000
"""Between two rounds in which a host looks for what it need not keep."""
SWEEP_SLICE = 2_000
"""Index entries looked at without a pause."""
SWEEP_PAUSE_MS = 20
SWEEP_OBJECTS_MAX = 10_000
"""Parts of objects dropped in one round."""
UPLOAD_KEPT_MS = 24 * 3_600_000
"""How long a put that broke off may still go on; then what it stored is deleted."""
UPLOADS_INTERVAL_MS = 60_000
"""How often puts that broke off are looked through."""
PUT_ENDS_MS = 10_000
"""How long segments may still be on their way whose client has gone."""
READ_AHEAD_BYTES = 5 * MIB
"""What a node gave last to a client that went away: more than sockets and the client hold."""
READ_AHEAD_TOTAL_BYTES_MAX = 32 * MIB
"""The same, of all reads; who began first loses it first."""
READ_AHEAD_READS_MAX = 64
"""Readers that went away of which something is kept."""
READ_AHEAD_KEPT_MS = 10 * 60_000
HEDGE_FLOOR_MS = 50
"""No shard is asked for a second time elsewhere before that."""
HEDGE_CEILING_MS = 500
"""Beside a host that has not answered after that long another is asked, whatever is expected of
it; after longer where the answer is large: as long as HEDGE_BYTES_A_SECOND_MIN takes for it."""
HEDGE_BYTES_A_SECOND_MIN = 512 * KIB
REPROBE_INTERVAL_MS = 5_000
"""A host that is asked last is asked for a shard beside the others that often, if it is silent."""
FIND_GRACE_MS = 100
"""How long others may still say what they hold, once enough is known to read the object."""
REPAIRS_AT_ONCE = 2
REPAIRS_A_ROUND_MAX = 256
"""Objects repaired before the order of urgency is made anew."""
SURVEYS_AT_ONCE = 8
LOG_LINES_MAX = 120
"""Log lines a minute of one event about one peer; the next one says how many were dropped."""
LOG_KINDS_MAX = 4_096
"""Kinds of lines that are counted apart within a minute."""
WATCHES_MAX = 4_096
"""Nodes of which it is remembered since when they are silent: peers, and what placements name."""
CUSTODIANS = 2
"""Peers that are asked to look after an object while its owner is away."""
CUSTODIAN_RETRY_MS = 600_000
"""A node that refused custody is asked again after that."""
CUSTODIANS_MAX = 16
"""Of one object, as far as one is told of those before it."""
REPORTS_AN_OBJECT_MAX = 16
"""How often within REPORTS_MS an owner reads all of an object because a peer reports copies."""
REPORTS_MS = 24 * 3_600_000
CUSTODY_SHARES = 4
"""What a node keeps for all absent owners: so many times what it keeps for one (`guard_bytes`)."""
CUSTODY_OBJECTS_A_PEER_MAX = 10_000
"""Objects that a node has in custody for one peer."""
CUSTODY_ROW_BYTES_A_PEER_MAX = 16 * MIB
"""What it keeps on its disk of those: the row of one can have from 400 to 9 000 bytes."""
DRAIN_LOOK_MS = 2_000
"""How often a node that leaves counts what it still holds; longer where counting takes long."""
DRAIN_STUCK_LISTED = 100
"""Objects of which a node that leaves says one by one why they stay."""
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
HEAD_KIB_UNITS = 650
"""What each KiB of a head costs beside: four times what it takes to decode the worst one."""
SIGNATURE_UNITS = 100
SYNC_BYTES = 4 * KIB
"""What is written and synced counts as so many bytes more than it has."""
SYNCED_A_PEER_BYTES_MAX = 64 * MIB
"""Bytes that one peer may have written and synced within SYNCED_MS, where nobody pays for it."""
SYNCED_BYTES_MAX = 16 * SYNCED_A_PEER_BYTES_MAX
"""The same, of all peers."""
SYNCED_MS = 60_000
WORK_INLINE_BYTES = 4 * KIB
"""What a peer sent is decoded without waiting for its turn up to this size."""
FRAME_PARTS_MAX = 256
PEER_BODY_BYTES_MAX = MANIFEST_BYTES_MAX + 2 * MIB
REQUEST_WINDOW_MS = 60_000
"""How far a request's creation may lie from the receiver's clock, either way."""
NONCE_BYTES = 16
PEER_TIMEOUT_MS = 15_000
PEER_CONNECT_TIMEOUT_MS = 3_000
PORT_WAIT_MS = 5_000
"""How long a port that is still in use is waited for."""
PORT_RETRY_MS = 50
PEER_REQUESTS_IN_FLIGHT_MAX = 64
"""Requests of one peer that are read, answered or written at once."""
REQUESTS_IN_FLIGHT_MAX = 1_024
"""The same, of all callers."""
PEER_REQUESTS_A_SECOND_MAX = 2_000
"""Of one peer, where each costs REQUEST_UNITS; of dearer ones fewer."""
UNKNOWN_REQUESTS_A_SECOND_MAX = 100
"""Of all callers together that are not known."""
UNKNOWN_AN_ADDRESS_A_SECOND_MAX = 50
"""The same, of one source: an IPv4 address, or the first 64 bits of one of IPv6."""
UNKNOWN_AN_ADDRESS_IN_FLIGHT_MAX = 8
UNKNOWN_IN_FLIGHT_MAX = 128
"""The same, of all callers that are not known."""
BATCH_CALLS_MAX = 32
"""Small calls that travel in one request."""
SIGNATURES_KEPT = 8_192
"""Verified signatures of records that a process remembers: a node looks at the records of its
objects again and again."""
BATCH_CALL_BYTES_MAX = 64 * KIB
"""Header and parts of a call that may travel with others, and of its answer."""
BATCH_CALL_PARTS_MAX = FRAME_PARTS_MAX // BATCH_CALLS_MAX
BATCH_BYTES_MAX = 512 * KIB
BATCH_WAITING_MAX = 1_024
"""Calls that wait for one peer; more go by themselves."""
REQUEST_BODIES_BYTES_MAX = 288 * MIB
"""Bodies of requests that a node holds at once, of all callers; counted as they arrive."""
REQUEST_BODIES_A_PEER_BYTES_MAX = 2 * PEER_BODY_BYTES_MAX
"""The same, of one peer."""
SMALL_BODIES_BYTES = 16 * MIB
"""How much of the room for bodies, and of that for answers, only small ones get."""
SMALL_BODY_BYTES_MAX = 64 * KIB
"""A body is small as long as no more of it has come."""
ANSWERS_BYTES_MAX = 12 * PEER_BODY_BYTES_MAX + SMALL_BODIES_BYTES
"""Answers to all peers, from before they are made until they are written."""
ANSWERS_A_PEER_BYTES_MAX = 4 * PEER_BODY_BYTES_MAX
"""The same, to one peer."""
REPLIES_BYTES_MAX = 12 * PEER_BODY_BYTES_MAX + SMALL_BODIES_BYTES
"""Answers of all peers that this node is receiving."""
REPLIES_A_PEER_BYTES_MAX = 4 * PEER_BODY_BYTES_MAX
"""The same, of one peer."""
JOIN_BYTES_MAX = 16 * KIB
"""What a caller that is not known may send."""
CONNECTIONS_MAX = 512
"""Connections that a node serves its peers on at once."""
CONNECTIONS_AN_ADDRESS_MAX = 256
"""The same, from one source: an IPv4 address, or the first 64 bits of one of IPv6."""
CONNECTIONS_OUT_MAX = 512
"""Connections that a node has to its peers at once."""
API_CONNECTIONS_MAX = 512
"""Connections from this machine to the API."""
DESCRIPTORS_MAX = 65_536
"""Descriptors that a node asks the system for, if it lets it have so many."""
DESCRIPTOR_SHARES = 16
"""Each kind of connection gets one such part of the descriptors at most, and each of the three
that come in another for those that are accepted at once; the databases have the rest."""
ACCEPTED_AT_ONCE_MAX = 100
"""Connections that are taken from the system before the first of them is counted."""
CONNECTIONS_TO_A_PEER_MAX = PEER_REQUESTS_IN_FLIGHT_MAX
"""One request each: a long job must not keep a probe waiting."""
PEER_HEADER_BYTES_MAX = 16 * KIB
"""Half of what is held of a head: of its first line, or of its fields."""
NO_PROGRESS_MS = 10_000
"""The window in which a transfer must bring what is due, or end; a head may take as long."""
BODY_BYTES_A_SECOND_MIN = 16 * KIB
"""What is due in a window, of a body and of an answer: slower ones are given up."""
PEERS_MAX = 1_000
REMOVED_LISTED_MAX = 1_000
"""Peers that were removed that a directory head lists, the newest: a recovery bars them again."""
PEER_NAME_CHARS_MAX = 64
PEER_ADDRESSES_MAX = 12
"""So many of PEER_ADDRESS_CHARS_MAX let an introduction travel beside its record in the space."""
PEER_ADDRESS_CHARS_MAX = 255
ADDRESSES_A_PEER_MAX = 16
"""New records of where it is that a peer is heard with within ADDRESSES_MS; a start or a move
makes one."""
ADDRESSES_MS = 60_000
INVITATIONS_OPEN_MAX = 1_000
INTRODUCED_A_PEER_MAX = 64
"""Peers that one introducer makes known to a node and that its operator has not confirmed; as many
that these make known; as many are introduced to a peer at a time."""
INTRODUCTION_HOPS_MAX = 2
"""Between an introducer and whom it introduces: its own friends, and the friends of these."""
INTRODUCTIONS_A_PEER_MAX = 64
"""Times that the introductions of a peer are verified within ADDRESSES_MS: each is up to
2 · INTRODUCED_A_PEER_MAX signatures."""
SEEK_INTERVAL_MS = 5_000
"""Between two questions where silent peers are."""
SEEK_FRIENDS = 8
"""Asked at a time; the next ones the next time."""
SOUGHT_MAX = 64
"""Peers in one question."""
INVITATION_TTL_MS = 24 * 3_600_000
RECORD_BYTES_MAX = 256 * KIB
RECORD_DEPTH_MAX = 32
RECORD_FIELDS_MAX = 64
"""Of a record, and of each within it."""
CONTAINER_BYTES = 32
"""A value has at most one list or map for so many bytes of its bound."""

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
STACK_BYTES = 512 * KIB
KILL_GRACE_MS = 30
"""After the deadline the worker may report by itself; then it is killed."""
JOBS_QUEUED_MAX = 64
JOINT_RECORDS_MAX = 64
"""Records under one signature."""
QUEUE_CALLS_MAX = 16
"""Quick calls that a worker is given at once."""
RETRY_AFTER_S_MAX = 60
"""Longest time that a caller is told, or lets itself be told, to wait before it tries again."""
JOBS_QUEUED_A_PEER_MAX = 32
WORKERS_LOST_A_PEER_MAX = 20
"""Runs of one customer, within WORKERS_LOST_MS, that may end with their worker."""
WORKERS_LOST_MS = 60_000
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
COMPILE_MS_A_PEER_MAX = 300_000
"""What one customer may have compiled within COMPILE_SHARE_MS, whoever pays: what takes long to
compile may be small, and a bill goes by size."""
COMPILE_SHARE_MS = 3_600_000
COMPILE_BYTE_FUEL = 1_000
"""What a byte of a module costs that an order brings and that has to be compiled: 1 MB takes
about as long as that much fuel at MILLISECOND_FUEL."""
COMPILE_ADDRESS_BYTES = 1536 * MIB
"""Address space of a jail, its own 300 MiB included."""
COMPILES_QUEUED_MAX = 64
"""Modules that wait to be compiled, or are."""
COMPILES_QUEUED_A_PEER_MAX = 8
CODE_KEPT_BYTES_MAX = 64 * MIB
"""Code that is kept in memory where there is no directory for it."""
CODE_CACHE_BYTES_MAX = 1 * GIB
CODE_CACHE_FILES_MAX = 4096
WORKER_ADDRESS_BYTES = 4 * GIB
"""Address space of a worker: a memory that grows is copied, so twice MEMORY_BYTES_MAX must fit."""
WORKER_FRAME_BYTES_MAX = MODULE_BYTES_MAX + INPUT_BYTES_MAX + STDIN_BYTES_MAX + MIB
MODULES_COMPILED_MAX = 32
MODULES_COMPILED_BYTES_MAX = 64 * MIB
"""Compiled modules that one worker keeps, and the bytes they came from: code is four times that."""
LOCALITY_BYTES_LEAST = 64 * KIB
"""A node that saves less of a job's module and input than this counts as saving nothing."""
PASSED_OVER_MAX = 1024
"""Leases and providers of which a node knows why it passed them over."""
NEAR_PRICE_PPM = 1_250_000
"""How much dearer for its quality the provider may be that saves most bytes."""
MODULES_REMEMBERED_MAX = 1024
"""Modules of which a customer knows which nodes have them."""
INPUT_HASHES_REMEMBERED_MAX = 4096
"""Objects whose size and SHA-256 a customer knows without reading them again."""
INPUTS_HELD_BYTES_MAX = 256 * MIB
"""Inputs, and modules that orders brought, of all jobs that a provider has taken and not ended."""
INPUTS_HELD_A_PEER_BYTES_MAX = 128 * MIB
"""The same of one customer."""
MODULE_NAMED_BYTES_LEAST = 64 * KIB
"""A module of at least this size is first named by its hash to the own node, and then sent."""
MODULES_NAMED_BYTES_MAX = 128 * MIB
"""Modules that a node keeps because jobs at its API brought them."""
MODULES_KEPT_BYTES_MAX = 256 * MIB
"""Modules of customers that a provider keeps, so that each is sent once."""
FUNCTIONS_MAX = 200_000
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
OPEN_FILES_MAX = 256
OUTPUT_FILES_MAX = FRAME_PARTS_MAX - 2
"""Files, directories and links in /out: with both streams each file is a part of one answer."""
OUTPUT_PATH_BYTES_MAX = 2048
"""Of a path in /out: all of them stand in the header of that answer."""
SCRATCH_FILES_MAX = 1_024
"""The same outside of /out; their bytes count as the program's memory."""
FILE_NAME_BYTES_MAX = 255
ENVIRONMENT_MAX = 256
ORDERS_REMEMBERED_A_PEER_MAX = PEER_REQUESTS_A_SECOND_MAX * (REQUEST_WINDOW_MS // 1000 + 2)
"""As many as its quota lets a customer bring, so that only orders dated ahead are refused by it."""
ORDERS_REMEMBERED_MAX = 2 * ORDERS_REMEMBERED_A_PEER_MAX
ANSWERS_KEPT_BYTES_MAX = 64 * MIB
"""Answers to orders that are kept to be given again."""
ANSWER_COST_BYTES = 2 * KIB
"""What an answer counts beside its bytes: objects take more than what they say."""
STREAM_FLUSH_MS = 20
"""What a program writes within this time is shown together."""
STREAM_PIECE_BYTES = 256 * KIB
"""Of each stream in one answer to who watches a run."""
STREAM_WAIT_MS = 2_000
"""How long a provider holds a question for more output."""
STREAM_PAUSE_MS = 50
"""Before an order is asked about again that has not arrived yet."""
STREAM_TRIES_MAX = 100
PROVIDERS_TRIED_MAX = 3
RATE_PAUSE_MS = 100
"""Before a provider that has too many requests of this node is asked again, within `--wait`."""
PROVIDERS_VERIFYING_MAX = 9
"""Providers that one order can be run by at once."""
DISSENTS_KEPT_MAX = 1024
"""Evidence against providers; the oldest goes first."""
FUNCTIONS_REMEMBERED_MAX = 1_024
"""Functions of which a customer knows that they are quick."""
BATCH_ITEMS_MAX = 65_536
"""Calls of one batch."""
BATCH_CALL_FUEL = 50_000
"""What each call of a batch costs beside its fuel: it has an instance of its own."""
BATCH_TRAPS_MAX = 256
BATCH_TRAPS_BYTES_MAX = 64 * KIB
"""Different traps that one batch can name."""
PROGRAMS_REMEMBERED_MAX = 32
"""Modules whose declarations a customer need not read again."""

# Services
SERVICES_MAX = 64
"""Services that a node holds, its own and those of peers."""
SERVICES_A_PEER_MAX = 8
SERVICE_VERSIONS_KEPT = 16
"""Versions of one service that can be gone back to."""
SERVICE_CONCURRENCY_DEFAULT = 4
SERVICE_CONCURRENCY_MAX = 32
SERVICE_QUEUE_MAX = 64
"""Requests that wait for one service."""
SERVICE_WAIT_MS_MAX = 10_000
"""How long a request waits for its turn."""
SERVICE_RECORD_BYTES_MAX = 128 * KIB
"""One signed deployment: its variables have ARGUMENT_BYTES_MAX."""
SERVICE_LOG_ROWS_MAX = 4096
"""Requests of one service that the log keeps."""
SERVICE_UNPAID_ROWS_MAX = 2048
"""Receipts that the owner has not fetched; beyond that the service does not run."""
SERVICE_UNPAID_BYTES_MAX = 8 * MIB
"""The same in bytes: each holds the deployment, whole."""
SERVICE_NOTE_BYTES_MAX = 1 * KIB
"""Of what a request writes to standard error, the end that the log keeps."""
SERVICE_PAGE_ROWS_MAX = 256
SERVICE_PAGE_BYTES_MAX = 512 * KIB
SERVICE_COLLECT_MS = 1_000
"""How often an owner fetches receipts of its services at others, and looks after their leases."""
SERVICE_COLLECT_TIMEOUT_MS = 5_000
SERVICE_RATE_MS = 600_000
"""Over how long it is measured at which rate services run."""
SERVICE_RATES_MAX = 8
"""Leases with a cleared rate that an owner names to a holder of its services."""
SERVICE_LEASE_WAIT_MS = 3_000
"""How long a request waits at a holder for the owner to bring another lease."""
SERVICE_UNPAID_KEPT_MS = 24 * 3_600_000
"""How long a service is held whose owner says nothing."""
SERVICE_MODULES_BYTES_MAX = 512 * MIB
"""Modules of all services on the disk."""
SERVICE_MODULES_A_PEER_BYTES_MAX = 128 * MIB
"""The same of one peer's services, all kept versions."""
"""Modules of services in memory."""
SERVICE_CONNECTIONS_MAX = 512
SERVICE_CONNECTIONS_AN_ADDRESS_MAX = 256
SERVICE_REQUESTS_AN_ADDRESS_MAX = 48
"""Requests from one source that run, or wait for their turn, at once."""
SERVICE_HEADER_BYTES_MAX = 16 * KIB
SERVICE_HEADERS_MAX = 128
SERVICE_BODIES_BYTES_MAX = 160 * MIB
"""Bodies of requests and answers that are in memory at once; counted as they arrive."""
SERVICE_BODIES_AN_ADDRESS_BYTES_MAX = 48 * MIB
"""The same, of one source."""
SERVICE_ANSWER_BYTES_A_SECOND_MIN = 64 * KIB
"""An answer that is read slower is given up."""
SERVICE_ANSWER_HEAD_BYTES_MAX = 16 * KIB
"""What a service may write before the empty line."""
SERVICE_ANSWER_FIELDS_MAX = 64

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
CLEARED_COMPUTE_MS = 24 * 3_600_000
"""How long a lease of compute lasts at most that a clearing granted."""
STORAGE_LEASE_MS = 90 * 24 * 3_600_000
LATE_MS = 30 * 24 * 3_600_000
"""For so long after its end what is held under a lease of storage is paid."""
RENEWAL_RETRY_MS = 6 * 3_600_000
"""After a refusal; silent hosts are asked at the first look at which they are up."""
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
COMPUTE_WAITING_MAX = 1024
"""Calls of this node that look for a lease, or wait for others of it to end."""
COMPUTE_IN_FLIGHT_MAX = JOBS_QUEUED_A_PEER_MAX
"""Runs of this node at one provider, which has no more of one customer wait."""
REFUSED_RETRY_MS = 60_000
"""After the second refusal of a booking by its debtor; each further one doubles it."""
REFUSED_RETRY_MS_MAX = 24 * 3_600_000
PRICES_POSTED_MS = 3_600_000
"""A node's posted prices follow its utilisation that often."""
DEAR_PPM = 1_125_000
"""A lease at hand takes nothing new that costs more than so much of a new one."""
QUALITY_STEP_PPM = 100_000
"""Providers whose quality is of one such step are alike."""
RESERVE_STEPS = 8
"""From a buyer's own price to the most that it pays, where fewer win than could."""
LEASE_TIMEOUT_MS = 5_000
SETTLE_TIMEOUT_MS = 15_000
AGREE_TIMEOUT_MS = 2 * SETTLE_TIMEOUT_MS
"""For a count and the leases that it names and this node does not know."""
SETTLE_LAST_MS = 3_000
"""How long a peer is waited for that is settled with before it is blocked or removed."""
LEASES_A_CUSTOMER_MAX = 256
"""Leases of one customer that are open."""
BOOKING_CREDIT_PPM = 250_000
"""What waits to be booked is booked at once when it is so much of the credit that is left."""
LEASES_DONE_A_CUSTOMER_MAX = 256
"""Leases of one customer that are over; the oldest are forgotten, and stay owed."""
BOOKINGS_ASKED_A_CUSTOMER_MAX = 256
"""Bookings that a customer may ask for within an hour; beyond that its provider decides when."""
BOOKINGS_ASKED_MS = 3_600_000
COUNT_LEASES_MAX = LEASES_A_CUSTOMER_MAX + LEASES_DONE_A_CUSTOMER_MAX
"""Leases of one customer in a count: those that are open, and those that are over."""
LEASE_KEPT_MS = 3_600_000
"""How long a lease that is over is remembered."""
LEASE_REFUSED_MS = 600_000
"""How long a customer leaves a lease alone under which its host took no more."""
PROMISE_MS = 600_000
"""How long a customer keeps room free for a write or a run that it never hears of again."""
TIDY_MS = 5_000
PPM = 1_000_000
MUTUAL_RECOGNITION_THRESHOLD_PPM = 10_000
AMOUNT_MAX = 2**63 - 1
SLOT_ID_BYTES = 16
SLOTS_MAX = 64
"""Slots that one node offers at a time."""
NEEDS_MAX = 64
NEED_MARGIN_PPM = 100_000
"""What a default need states beyond what is held, so that a lost shard finds room."""
NEED_INTERVAL_MS = 60_000
"""How long a default need stays as it is at least."""
SHORT_MS = 30 * 24 * 3_600_000
"""How long a node states that it needs room for what was refused."""
SHORT_FILLED_MS = 24 * 3_600_000
"""How long it keeps room for that once it has leased it."""
SHORTS_MAX = 64
"""Refusals for which it states a need."""
SLOT_FILTERS_MAX = 8
SLOT_HORIZON_MS = 90 * 24 * 3_600_000
"""No window ends later than so long from now."""
OFFER_MS = 60_000
"""How long what a clearing grants is kept free for its customer to take a lease on it."""
OFFER_PAUSE_MS = 10 * 60_000
"""A customer that took no lease is offered nothing of the slot for so long; then twice as long."""
OFFER_PAUSE_MS_MAX = 24 * 3_600_000
OFFER_PAUSES_MAX = 1_000
"""Pauses in one published state; of more, those that end first are forgotten."""
OFFER_SETTLE_MS = 10_000
"""How long a customer waits at most for other providers before it takes what it is offered."""
LOWER_MS = 2 * OFFER_MS
"""A provider that confirms no longer that room was given up is owed nothing for that room."""
ALLOCATION_DEBOUNCE_MS = 100
ROUND_REST = 9
"""A round waits for so many times as long as the last one took."""
ALLOCATION_LOOK_MS = 60_000
"""How often capacity is looked at where nothing else changed."""
WHYS_MAX = 64
"""Rows of one explanation: each is cleared again some dozens of times."""
WHY_RECORDS_MAX = 16
"""Clearing records that one explanation fetches from others, of CLEARING_BYTES_MAX each."""
CLEARINGS_KEPT_MAX = 512
"""Clearing records in the own space: the present ones, and the newest of the others."""
CLEARINGS_BYTES_MAX = 32 * MIB
"""Of these records with what they name. Each slot has an equal part of it; it is half of what an
owner has in its space."""
CONVERGED_LOOK_MS = 1_000
"""How long a node waits for further changes before it says that it has converged."""
CLEARING_ASKED_MAX = 10
"""How often a clearing record that its provider does not give is asked for, a second apart, before
nothing of the provider counts."""
COMMITMENT_BYTES_MAX = 64 * KIB
DAMPING_HISTORY_MAX = 3
LEDGER_RECORD_BYTES_MAX = 4 * KIB
"""One half or one voucher, with its envelope (some 700 bytes)."""
ACCOUNT_TIMEOUT_MS = 2_000
"""How long a peer has to say how an account stands: a person waits for it."""
LEDGER_HEAD_TIMEOUT_MS = 2_000
"""How long a peer has to say where it has seen this node's chain end: a start waits for it."""
HISTORY_TIMEOUT_MS = 60_000
"""For all pages of what one peer holds of a node that lost its disk: entries, or leases."""
NOTED_ACCOUNTS_MAX = 2**14
"""Accounts of which the directory head says how they stand: half a head."""
LEDGER_RETRY_MS = 30_000
LEDGER_CONFLICTS_KEPT = 16
"""Kept as evidence for each peer; one proves the point, more only fill the disk."""
INCARNATION_GAP = 2**20
"""Least distance of an incarnation's first number from all that is known of the ones before:
no half that was lost, and is not known, may have a number of the new one."""

# Clearing
STRANGER_BYTES_MAX = 16 * KIB
"""What a clearing reads of a customer that its provider does not recognise."""
CLEARING_BYTES_MAX = 1 * MIB
"""Of a signed clearing record: a value of the space."""
CLEARING_VALUE_BYTES = 4 * KIB
"""What a value that a clearing record names counts at least, so that they are not too many."""
CLEARING_DRAW = 16
"""A customer recomputes one in so many of the clearings that grant it something."""
FALSE_CLEARINGS_MAX = 16
"""Clearings that did not recompute and are kept as evidence, of one provider each."""
FALSE_CLEARING_BYTES_MAX = 2 * MIB
"""Of one of them with what it names. A larger one counts against its provider all the same."""
GATHERED_BYTES_MAX = 16 * MIB
"""Of all that one round of the allocation follows from. Beyond it the program does not serve."""
SPACE_EVIDENCE_BYTES_MAX = 24 * KIB
"""Of a record of a space inside of a clearing record."""
ALLOCATIONS_MAX = 4_096
"""What needs are granted of slots, in one published state. Who comes later takes no part."""
ALLOCATIONS_A_CUSTOMER_MAX = 512
"""Of them, those of one customer that its provider recognises."""
ALLOCATIONS_A_STRANGER_MAX = 64
"""The same of one that is not recognised."""

# Health
PROBE_INTERVAL_MS = 5_000
PROBE_TIMEOUT_MS = 3_000
PROBED_BESIDE_MAX = 16
"""So many other peers are asked, those heard last, before one counts as away."""
RESPONSES_KEPT = 200
"""Answers of a peer in this run whose mean time is expected of the next."""
BUCKET_MS = 6 * 3_600_000
BUCKETS_KEPT = 56
"""Results of a peer are counted by BUCKET_MS, and kept for 14 days."""
PROBES_IN_FLIGHT = 64
MISSES_TO_DOWN = 2
"""Probes missed in a row after which a peer is down; before that it is suspect."""
ATTEND_FIRST_MS = 500
"""After a call has taken that long, its peer is asked whether it is there; then more rarely."""
ATTEND_LAST_MS = 4_000
ATTEND_TIMEOUT_MS = 500
"""How long it may take to say so; it is asked twice."""
RESPONSE_EXPECTED_MS = 50
"""What is assumed of a peer that has not answered yet."""

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
assert REQUEST_BODIES_BYTES_MAX >= 4 * REQUEST_BODIES_A_PEER_BYTES_MAX + SMALL_BODIES_BYTES
assert REQUEST_BODIES_A_PEER_BYTES_MAX >= PEER_BODY_BYTES_MAX
assert ANSWERS_BYTES_MAX >= 3 * ANSWERS_A_PEER_BYTES_MAX + SMALL_BODIES_BYTES
assert REPLIES_BYTES_MAX >= 3 * REPLIES_A_PEER_BYTES_MAX + SMALL_BODIES_BYTES
assert PEER_REQUESTS_IN_FLIGHT_MAX * 8 <= REQUESTS_IN_FLIGHT_MAX
assert DESCRIPTOR_SHARES >= 2 * (4 + 3)
assert 128 * KIB <= BODY_BYTES_A_SECOND_MIN * NO_PROGRESS_MS // 1000
assert JOIN_BYTES_MAX < PEER_BODY_BYTES_MAX
assert SYNCED_A_PEER_BYTES_MAX > SYNCED_MS // DIRECTORY_WAITED_MS * (HEAD_STEP_BYTES + SYNC_BYTES)
assert SYNCED_A_PEER_BYTES_MAX > SYNCED_MS // DIRECTORY_INTERVAL_MS * DIRECTORY_HEAD_BYTES_MAX
assert (
    SYNCED_A_PEER_BYTES_MAX > CUSTODY_OBJECTS_A_PEER_MAX * SYNC_BYTES + CUSTODY_ROW_BYTES_A_PEER_MAX
)
assert PROBE_TIMEOUT_MS < PROBE_INTERVAL_MS < REQUEST_WINDOW_MS
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
assert SERVICE_UNPAID_ROWS_MAX + SERVICE_PAGE_ROWS_MAX < SERVICE_LOG_ROWS_MAX
assert SERVICE_RECORD_BYTES_MAX + SERVICE_PAGE_BYTES_MAX < FRAME_HEADER_BYTES_MAX
assert SERVICE_BODIES_AN_ADDRESS_BYTES_MAX >= STDIN_BYTES_MAX + OUTPUT_BYTES_MAX
assert SERVICE_BODIES_BYTES_MAX >= 3 * SERVICE_BODIES_AN_ADDRESS_BYTES_MAX + SMALL_BODIES_BYTES
assert SERVICE_COLLECT_TIMEOUT_MS + SERVICE_COLLECT_MS < COMPUTE_LEASE_MS
assert INPUT_BYTES_MAX + MODULE_BYTES_MAX <= INPUTS_HELD_A_PEER_BYTES_MAX
assert INPUTS_HELD_A_PEER_BYTES_MAX < INPUTS_HELD_BYTES_MAX
assert MODULE_BYTES_MAX <= MODULES_NAMED_BYTES_MAX
