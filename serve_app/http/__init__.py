"""What every HTTP route shares: bodies in, errors and streams out, keys, middleware. Knows no dialect's fields."""
