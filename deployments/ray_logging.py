"""What a replica's own code logs goes where Serve's own lines of the replica go, in the same shape.

There every line has the id of the request that it was written for, in the configured encoding (text or JSON).
"""

import logging
import logging.handlers

_PACKAGES = ("deployments", "serve_app")
_SERVE = "ray.serve"


def log_as_serve() -> None:
    """To be called in the constructor of a replica, after Serve has set up its logger. May be called again."""
    serve = logging.getLogger(_SERVE)
    handlers = [_at_once(handler) for handler in serve.handlers]
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(serve.level)
        logger.handlers = handlers
        logger.propagate = False


def _at_once(handler: logging.Handler) -> logging.Handler:
    """The same without a buffer: what is logged here is seldom, and may be the last that a process says."""
    if not isinstance(handler, logging.handlers.MemoryHandler):
        return handler
    copy = logging.handlers.MemoryHandler(capacity=1, target=handler.target)
    copy.filters = handler.filters
    return copy
