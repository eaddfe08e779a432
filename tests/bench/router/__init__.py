"""The bench `router`: what the queen costs between a client and a worker, beside other routers."""
