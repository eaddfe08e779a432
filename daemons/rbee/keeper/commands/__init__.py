"""The commands of `rbee`, one module for each noun."""
