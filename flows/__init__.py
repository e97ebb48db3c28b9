"""What runs: the flows, their steps as tasks, the ledger they keep, the checks of media."""
