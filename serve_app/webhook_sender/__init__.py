"""Sends webhooks over the network, to checked addresses only."""

from serve_app.webhook_sender.sender import HttpSender, system_resolver

__all__ = ["HttpSender", "system_resolver"]
