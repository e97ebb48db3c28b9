"""The records: generations and their states, the ledger, keys, object names, errors, advice."""
