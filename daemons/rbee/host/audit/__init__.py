"""The audit log of a daemon: who did what, in a chain of hashes that shows whether an entry was changed."""
