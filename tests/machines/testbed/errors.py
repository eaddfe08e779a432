"""What the testbed raises when the host cannot give what a test needs."""


class TestbedError(Exception):
    """The testbed itself failed: the message says what, why, and what to do next."""

    __test__ = False
