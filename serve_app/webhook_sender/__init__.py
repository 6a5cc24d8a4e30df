"""Sends webhooks over the network, to checked addresses only."""

from serve_app.webhook_sender.sender import HttpSender

__all__ = ["HttpSender"]
