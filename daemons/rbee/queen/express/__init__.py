"""The straight way of plain inference requests: bytes from client to worker and back, without a task on the way.

Whatever is not plain goes the long way, through aiohttp and its handlers, which remain the reference of what is right.
"""
