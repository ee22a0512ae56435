"""Recognition of peers, their tiers, and the division of scarce capacity."""
