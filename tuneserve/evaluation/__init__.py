"""How good and how fast a checkpoint is: measured through the server, with intervals, and compared."""
