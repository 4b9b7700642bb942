"""One call: its caller, its quotas and limits, its errors, and its metrics, trace and log line."""
