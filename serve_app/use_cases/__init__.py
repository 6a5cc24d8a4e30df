"""What the service can do, in canonical terms: no HTTP, no dialect."""
