"""The queen: registry of workers, routing, and the public API."""
