"""The flows, their steps as tasks, the ledger that they keep, and the checks of media."""
