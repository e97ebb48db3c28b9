"""What is recorded: the generation and its states, the ledger, keys, object names, errors, advice."""
