"""Workers and hives as the queen sees them."""
