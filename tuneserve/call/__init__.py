"""`tuneserve call`: one question to a running server, from the shell."""
