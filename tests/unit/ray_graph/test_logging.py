"""Lines of this code go where those of Ray Serve go, with the id of their request."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.context import _RequestContext, _serve_request_context
from ray.serve.schema import LoggingConfig

from deployments.ray_logging import log_as_serve

NAMES = ("ray.serve", "deployments", "serve_app")


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    before = [
        (logger, logger.level, list(logger.handlers), logger.propagate) for logger in map(logging.getLogger, NAMES)
    ]
    yield
    for logger, level, handlers, propagate in before:
        for handler in logger.handlers:
            getattr(handler, "target", handler).close()
        logger.setLevel(level)
        logger.handlers = handlers
        logger.propagate = propagate


def configure(directory: Path, encoding: str) -> None:
    configure_component_logger(
        component_name="Ingress",
        component_id="replica",
        logging_config=LoggingConfig(encoding=encoding, logs_dir=str(directory)),
        max_bytes=1_000_000,
        backup_count=1,
    )


def test_a_line_is_json_with_the_id_of_its_request(tmp_path: Path) -> None:
    configure(tmp_path, "JSON")
    log_as_serve()
    log_as_serve()
    token = _serve_request_context.set(_RequestContext(request_id="id-of-the-request", route="/", app_name="tritext"))
    try:
        logging.getLogger("deployments.continuing").warning("goes on at %s", "another replica")
    finally:
        _serve_request_context.reset(token)
    logging.getLogger("serve_app.use_cases.chores").info("outside of a request")
    logging.getLogger("serve_app.use_cases.chores").debug("not asked for")
    [file] = tmp_path.iterdir()
    within, outside = [json.loads(line) for line in file.read_text().splitlines()]
    assert (within["levelname"], within["message"]) == ("WARNING", "goes on at another replica")
    assert within["request_id"] == "id-of-the-request"
    assert (outside["levelname"], outside["message"]) == ("INFO", "outside of a request")


def test_lines_are_text_where_serve_s_are(tmp_path: Path) -> None:
    configure(tmp_path, "TEXT")
    log_as_serve()
    logging.getLogger("deployments.generator").info("said")
    [file] = tmp_path.iterdir()
    assert file.read_text().startswith("INFO ")
