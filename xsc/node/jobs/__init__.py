"""What the API needs to run jobs: batches, inputs, modules, outputs, results."""
