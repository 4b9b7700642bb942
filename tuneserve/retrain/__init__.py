"""The loop from feedback to a better model: `tuneserve retrain`.

policy     its YAML file
feedback   the rows that FeedbackService kept, and which of them are new
attempts   what was tried, kept on disk so that an interrupted run goes on
gate       old and new checkpoint on the same held-out rows: is the new one better?
canary     a share of a running server's calls, then all of them or none
run        all of it in order
"""
