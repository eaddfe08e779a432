"""`rbee dev`: queen, hive and workers in one terminal, without systemd or root."""
