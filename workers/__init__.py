"""The GPU plane: claims stages from the ledger and runs them. It imports `farm`; `farm` never imports it."""
