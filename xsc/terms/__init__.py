"""The signed values that subsystems exchange, with each other and with peers.

Three words, three things: a *storage receipt* (host: I hold it, synced), an
*execution receipt* (provider: I ran it), a *voucher* (customer: I owe, so far).
"""
