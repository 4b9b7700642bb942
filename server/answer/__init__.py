"""Documents in indexes, and the passages of them that fit a query."""
