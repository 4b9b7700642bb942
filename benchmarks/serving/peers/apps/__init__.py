"""Programs that run in a peer's environment, as files: they import nothing of ours."""
