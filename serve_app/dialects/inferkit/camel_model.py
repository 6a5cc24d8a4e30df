"""Bodies and answers whose fields are written in camel case."""

from pydantic import ConfigDict
from pydantic.alias_generators import to_camel

from serve_app.http.wire_model import WireModel


class CamelModel(WireModel):
    model_config = ConfigDict(alias_generator=to_camel)
