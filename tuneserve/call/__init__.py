"""`tuneserve call`: calls a running server from the shell."""
