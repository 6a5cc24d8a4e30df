"""An object store in memory whose clock a test sets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deployments.checkpoints.store import ObjectInfo, check_key
from deployments.errors import ObjectNotFound


@dataclass
class MemoryStore:
    """now: Unix seconds, of the store and of whoever uses it. objects: content and when it was touched last, by key.

    before: called with each method's name and key before it has its effect; may change things, or raise.
    """

    now: float = 1_000_000_000.0
    objects: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    before: Callable[[str, str], None] = lambda _name, _key: None

    def create(self, key: str, source: bytes | Path, *, sha256: str) -> bool:  # noqa: ARG002
        self.before("create", check_key(key))
        if key in self.objects:
            return False
        self.objects[key] = (source if isinstance(source, bytes) else source.read_bytes(), self.now)
        return True

    def chunks(self, key: str, *, start: int, stop: int) -> Iterator[bytes]:
        self.before("chunks", key)
        yield self._find(key)[0][start:stop]

    def head(self, key: str) -> ObjectInfo:
        self.before("head", key)
        content, modified_at = self._find(key)
        return ObjectInfo(key, len(content), modified_at)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = [ObjectInfo(key, len(content), at) for key, (content, at) in self.objects.items()]
        for each in found:
            if each.key.startswith(prefix):
                self.before("list", each.key)
                yield each

    def delete(self, key: str) -> None:
        self.before("delete", key)
        self.objects.pop(key, None)

    def touch(self, key: str) -> None:
        self.before("touch", key)
        self.objects[key] = (self._find(key)[0], self.now)

    def drop_unfinished(self, *, before: float) -> int:  # noqa: ARG002
        return 0

    def is_open_to_strangers(self, key: str) -> bool:  # noqa: ARG002
        return False

    def _find(self, key: str) -> tuple[bytes, float]:
        if key not in self.objects:
            raise ObjectNotFound(key)
        return self.objects[key]
