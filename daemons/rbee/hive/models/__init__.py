"""The models of this machine: fetched, verified, catalogued, collected."""
