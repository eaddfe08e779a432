"""HTTP server and client plumbing that every daemon shares."""
