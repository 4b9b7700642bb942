"""Quality and speed of checkpoints: measured through the server, with intervals, and compared."""
