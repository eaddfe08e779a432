"""Nodes over SSH: the person's own key and agent reach the machine, and the queen never holds either."""
