"""Load on a running server, in a closed or an open loop: what is sent, counted and shown."""
