"""The three documented APIs, each translated to and from the canonical types; none goes through another."""
