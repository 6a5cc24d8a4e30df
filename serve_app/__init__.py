"""The Serve application: HTTP dialects, keys and composition on top of the shared graph."""
