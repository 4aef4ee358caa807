"""The gateway: HTTP, admission, submit, results."""
