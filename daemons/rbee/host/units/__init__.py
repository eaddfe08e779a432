"""systemd units: watched and controlled over D-Bus."""
