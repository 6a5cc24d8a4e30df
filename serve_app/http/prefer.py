"""The header Prefer (RFC 7240): how long a client waits for work that may take long. Knows no route."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

HEADER = "Prefer"
APPLIED_HEADER = "Preference-Applied"

_MAX_CHARACTERS = 1024
"""What is longer is nobody's preference, and not read."""

# A name, perhaps a value, perhaps parameters, which no preference here has; values may be quoted. No space is given
# back once it was passed (`*+`): a header full of spaces would be tried in every division.
_PREFERENCE = re.compile(
    r'(?P<name>[\w!#$%&\'*+.^`|~-]++)\s*+(?:=\s*+(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<value>[^\s,;"]*+)))?+\s*+(?:;.*)?'
)
_SECONDS = re.compile("[0-9]{1,9}")
_PARTS = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')


@dataclass(frozen=True, slots=True)
class Preference:
    """What a client asked for. wait_s: seconds; None: it did not say."""

    respond_async: bool = False
    wait_s: int | None = None

    def hold_s(self, most: float) -> float:
        """How long the answer is held back for work that has not ended: as asked, and at most so long."""
        if self.wait_s is not None:
            return min(float(self.wait_s), most)
        return 0.0 if self.respond_async else most

    def applied(self, most: float) -> str:
        """The value of the header Preference-Applied of an answer to unfinished work; empty: none was honoured."""
        words = ["respond-async"] if self.respond_async else []
        if self.wait_s is not None and self.wait_s <= most:
            words.append(f"wait={self.wait_s}")
        return ", ".join(words)


def parse_prefer(lines: Iterable[str]) -> Preference:
    """The preferences of these header lines. Of one that stands twice the first counts; what is unknown or malformed
    is no error, as preferences never are."""
    found: dict[str, str] = {}
    header = ",".join(lines)
    if len(header) > _MAX_CHARACTERS:
        return Preference()
    for part in _PARTS.findall(header):
        match = _PREFERENCE.fullmatch(part.strip())
        if match is not None:
            found.setdefault(match["name"].lower(), match["quoted"] or match["value"] or "")
    wait = found.get("wait", "")
    return Preference("respond-async" in found, int(wait) if _SECONDS.fullmatch(wait) else None)
