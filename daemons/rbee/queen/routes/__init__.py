"""The queen's routes, by whom and what they are for."""
