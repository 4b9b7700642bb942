"""What a user could run in place of our server, each in an environment of its own, beside ours (`__main__.py`)."""
