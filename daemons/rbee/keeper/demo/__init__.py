"""Models built on the spot for the demonstration and the tests."""
