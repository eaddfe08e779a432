"""What the queen asks of hives and workers, and how she keeps in touch with them."""
