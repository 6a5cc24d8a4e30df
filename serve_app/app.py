"""The Serve application, composed; the import path of Serve config files is `serve_app.app:build`."""

from typing import Any

from ray.serve import Application

from deployments.ray_graph import bind_graph
from serve_app.config import AppConfig
from serve_app.dispatcher import bind_dispatcher
from serve_app.ingress import bind_ingress
from serve_app.use_cases.models import ModelCatalog


def build(args: dict[str, Any]) -> Application:
    """The whole graph with its ingress. Raises ValueError where `args` is no `AppConfig` or two models share a name."""
    config = AppConfig.model_validate(args)
    ModelCatalog(config.graph.models)
    tokenizer, generators = bind_graph(config.graph, longest_call_s=config.http.request_deadline_s)
    return bind_ingress(config, tokenizer, generators, bind_dispatcher(config))
