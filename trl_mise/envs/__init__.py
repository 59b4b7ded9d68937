"""Text environments: the contract, its checker, and two embedded environments without dependencies."""
