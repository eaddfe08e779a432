"""Nodes in the queen: which machines are enrolled, what each may say, and what she presents to it."""
