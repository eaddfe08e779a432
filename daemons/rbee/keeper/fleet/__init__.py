"""The fleet as one file describes it: what is wanted, what is there, the steps between them, and who takes them."""
