"""The inference engine: what a model folder holds, sessions, and the three tasks."""
