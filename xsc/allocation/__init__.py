"""Who comes first: recognition, tiers and the division of what is scarce."""
