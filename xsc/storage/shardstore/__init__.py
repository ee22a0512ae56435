"""What a host keeps for its customers: bodies, index, tombstones, receipts."""
