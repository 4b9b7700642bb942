"""One call: who makes it, what it may cost, what it is told, and what is written down about it."""
