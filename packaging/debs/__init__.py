"""Builds the Debian packages in a clean root of their release, and the signed repository that apt installs from."""
