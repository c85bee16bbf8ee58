"""Help for testing jobs, and the contract that every store passes."""
