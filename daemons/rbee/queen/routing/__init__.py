"""Which of the ready workers takes a request."""
