"""Who may run, and who runs next: limits of clients, fair queues, and what a request without a worker is told."""
