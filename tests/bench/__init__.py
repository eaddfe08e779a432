"""Benches: what the project promises in figures, measured on a real systemd beside its references."""
