"""What nodes owe each other: mutual credit in entries that both parties signed."""
