"""The text that quantisation is calibrated on, as a model's token ids. It is our own and no benchmark's."""

from pathlib import Path

from tokenizers import Tokenizer

_TEXT = Path(__file__).with_name("calibration.txt")


def calibration_documents(directory: Path) -> list[list[int]]:
    """Paragraph by paragraph, as whole and as the model would meet them. Raises ValueError without a tokenizer.json."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{directory} holds no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    paragraphs = _TEXT.read_text(encoding="utf-8").split("\n\n")
    # Some alone and some behind one another: positions beyond the first hundred count too.
    texts = [*paragraphs, "\n\n".join(paragraphs)]
    return [tokenizer.encode(text).ids for text in texts]
