"""rbee: private inference on bare metal, run by systemd."""

__version__ = "0.1.0"
