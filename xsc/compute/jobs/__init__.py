"""Jobs between nodes: orders, receipts, batches and replicated runs."""
