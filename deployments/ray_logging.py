"""What a replica's own code logs goes where Serve's own lines of the replica go, in the same shape.

There every line has the id of the request that it was written for, in the configured encoding (text or JSON).
"""

import logging

_PACKAGES = ("deployments", "serve_app")
_SERVE = "ray.serve"


def log_as_serve() -> None:
    """To be called in the constructor of a replica, after Serve has set up its logger. May be called again."""
    serve = logging.getLogger(_SERVE)
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(serve.level)
        logger.handlers = list(serve.handlers)
        logger.propagate = False
