"""The processes that compile and run modules, and the pool that keeps them."""
