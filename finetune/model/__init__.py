"""Base models with a task's head, and which of their weights are trained."""
