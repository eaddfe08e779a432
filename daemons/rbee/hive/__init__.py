"""The hive: watches and controls the worker units of one machine and reports to the queen."""
