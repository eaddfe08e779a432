"""What the daemons say to one another: messages, errors, auth, HTTP plumbing, deadlines."""
