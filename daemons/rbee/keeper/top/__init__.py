"""The live picture of the fleet: figures, what is shown of them, and the screen."""
