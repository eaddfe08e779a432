"""The command line `rbee`."""
