"""Bounds of programs. Sizes are bytes, times milliseconds."""

from __future__ import annotations

from xsc.base.limits import KIB, MIB

DOCUMENT_DEPTH_MAX = 8
LINE_DOTS_MAX = 200
"""Dots in one line of TOML: a key of many parts takes quadratic time to parse."""
VARIABLES_MAX = 1_024
COMPUTATIONS_MAX = 1_024
OUTPUTS_MAX = 1_024
INPUTS_MAX = 64
"""Of one computation."""
NAME_CHARS_MAX = 64
"""Of an identifier; it is a part of a path in the space."""
DESCRIPTION_CHARS_MAX = 1_024
RING_MAX = 1_024
"""Values that a local variable may keep."""
STATE_CELLS_MAX = 65_536
"""Values that all local variables of a program keep."""
VALUE_BYTES_MAX = 256 * KIB
"""Of a text, bytes, or all items of a list."""
GIVEN_BYTES_MAX = 16 * MIB
"""Of a value that the node gives to a program of its own."""
LIST_ITEMS_MAX = 4_096
PROGRAM_VALUES_BYTES_MAX = 64 * MIB
"""Of all variables and outputs of a program, if each were as large as its type allows."""
FETCH_MS_MAX = 60_000
DEBOUNCE_MS_MAX = 3_600_000
INPUT_INLINE_BYTES_MAX = 4 * KIB
"""Of an input or output that its provenance has whole; of a larger one it has the hash."""
PROVENANCE_BYTES_MAX = 512 * KIB
"""Of a signed provenance record."""
ANCESTORS_MAX = 16
"""Older records of an output that are kept beside the newest."""
PROVENANCE_RECORDS_MAX = 2_048
"""Records that all outputs of a program keep; each keeps one, whatever their number."""
PROGRAMS_MAX = 128
"""Registered at one node. Beyond it, the inactive one that was registered first goes."""
PROGRAM_MODULES_BYTES_MAX = 64 * MIB
"""Of all registered programs."""
PUBLICATIONS_AN_HOUR_MAX = 600
"""Frames of one program that write, before it backs off."""
BACK_OFF_MS = 6_000
"""The first pause of a program beyond that; each further one is twice as long."""
BACK_OFF_MS_MAX = 3_600_000
OWN_FRAMES_MAX = 64
"""Frames in a row that only a program's own outputs caused, beside those that fill its rings."""
WHY_LINKS_MAX = 4_096
"""Records that one explanation follows."""
WHY_LARGE_BYTES_MAX = 4 * MIB
"""Of inputs too large for their records that it reads; what is left cannot be replayed."""
WHY_PARTS_MAX = 4_096
"""Values of spaces behind gathered inputs that it checks; what is left is not verified."""
WHY_NODES_MAX = 4_096
"""Steps that it shows."""
WHY_DEPTH_MAX = 128
"""How deep it shows them; it follows them deeper."""
WHY_READS_MAX = 65_536
"""Reads of the space for one explanation; what is left counts as gone."""
