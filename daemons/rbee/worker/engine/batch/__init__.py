"""Continuous batching: one thread steps every text of a model; texts join and leave between steps."""
