"""What is done with texts before an engine sees them, and with places in them after it."""
