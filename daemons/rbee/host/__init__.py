"""What the machine gives: sd_notify, units over D-Bus, credentials, journal, configuration."""
