"""One request on its way through the queen: read, sent to a worker, passed on, and told about."""
