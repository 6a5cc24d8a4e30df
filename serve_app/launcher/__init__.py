"""Starts the whole service on this machine with one command, and stops all that it started."""

from serve_app.launcher.launch import main

__all__ = ["main"]
