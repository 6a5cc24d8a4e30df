"""Text to token ids and back for one model. Knows no event loop and no other model."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import Tokenizer

from deployments.chat_template import ChatTemplate
from deployments.errors import InvalidParameter
from deployments.model_files import ModelFiles, ModelSourceError
from deployments.token_bytes import TokenBytes
from deployments.types import ChatPrompt, Prompt, PromptStart, TextPrompt, TokenPrompt

TRUNCATE_TO_CONTEXT = -1
_LINE_BREAK = "\n"


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in the directory; one that has no tokenizer.json is converted by transformers.

    Raises ModelSourceError.
    """
    file = directory / "tokenizer.json"
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer  # a slow import that few models need

            tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True).backend_tokenizer
    except Exception as error:  # tokenizers raises bare Exception, transformers several kinds
        raise ModelSourceError(f"the tokenizer in {directory} cannot be loaded: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class ModelTokenizer:
    """The tokenizer, the chat template and the limits of one model. Safe to use from several threads."""

    def __init__(self, files: ModelFiles, tokenizer: Tokenizer, *, context_length: int | None = None) -> None:
        """`context_length` lowers that of the model. Raises ModelSourceError: the chat template has a syntax error."""
        self.context_length = min(context_length or files.context_length, files.context_length)
        self.vocab_size = files.vocab_size
        self._document_start_id = files.document_start_id
        self._tokenizer = tokenizer
        self._token_bytes = TokenBytes(tokenizer)
        self._chat_template: ChatTemplate | None = None
        if files.chat_template is not None:
            try:
                self._chat_template = ChatTemplate(files.chat_template, files.special_tokens)
            except TemplateError as error:
                raise ModelSourceError(f"the chat template in {files.directory} is malformed: {error}") from error

    def encode(self, prompt: Prompt, *, truncate_to: int | None = None) -> tuple[int, ...]:
        """The prompt's token ids, at least one; of them the last `truncate_to`.

        TRUNCATE_TO_CONTEXT keeps what leaves room for one token of output. Raises InvalidParameter.
        """
        match prompt:
            case TextPrompt():
                token_ids = self._encode_text_prompt(prompt)
            case TokenPrompt():
                token_ids = self._checked(prompt.token_ids, "prompt")
            case ChatPrompt():
                token_ids = self._encode_chat(prompt)
        if not token_ids:
            raise InvalidParameter("the prompt is empty", "messages" if isinstance(prompt, ChatPrompt) else "prompt")
        if truncate_to is None:
            return token_ids
        num_kept = max(self.context_length - 1, 1) if truncate_to == TRUNCATE_TO_CONTEXT else truncate_to
        if num_kept < 1:
            raise InvalidParameter("must be at least 1, or -1 for the model's context", "truncate_prompt_tokens")
        return token_ids[-num_kept:]

    def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        """How many tokens each text has, without special tokens. Raises InvalidParameter."""
        return tuple(len(self._encode_text(text, f"texts[{index}]")) for index, text in enumerate(texts))

    def spell(self, word: str) -> list[tuple[int, ...]]:
        """The token sequences of a bad word: at the beginning of a line, of a text, and after a space.

        Raises InvalidParameter.
        """
        if not word:
            raise InvalidParameter("a bad word cannot be empty", "bad_words")
        bare = word.lstrip(" ") or word
        spellings = [self._encode_text(text, "bad_words") for text in (bare, f" {bare}")]
        # A tokenizer that begins every text with a space spells the word alone like the word after a space.
        line_break = self._encode_text(_LINE_BREAK, "bad_words")
        after_line_break = self._encode_text(_LINE_BREAK + bare, "bad_words")
        if line_break and after_line_break[: len(line_break)] == line_break:
            spellings.append(after_line_break[len(line_break) :])
        return [spelling for spelling in dict.fromkeys(spellings) if spelling]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of the ids. Raises InvalidParameter."""
        # The call for a single text keeps the interpreter lock, that for several lets go of it.
        (text,) = self._tokenizer.decode_batch(
            [list(self._checked(token_ids, "tokens"))], skip_special_tokens=skip_special_tokens
        )
        return text

    def token_texts(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each id on its own, as `TokenBytes.text` writes it. Raises InvalidParameter."""
        return tuple(self._token_bytes.text(token_id) for token_id in self._checked(token_ids, "tokens"))

    def _encode_text_prompt(self, prompt: TextPrompt) -> tuple[int, ...]:
        match prompt.start:
            case PromptStart.DOCUMENT:
                start = () if self._document_start_id is None else (self._document_start_id,)
                return start + self._encode_text(prompt.text, "prompt")
            case PromptStart.PLAIN:
                return self._encode_text(prompt.text, "prompt")
            case PromptStart.DEFAULT:
                if not prompt.text:
                    return ()
                return self._encode_text(prompt.text, "prompt", add_special_tokens=True)

    def _encode_chat(self, prompt: ChatPrompt) -> tuple[int, ...]:
        if self._chat_template is None:
            raise InvalidParameter("the model has no chat template, so it takes a prompt but no messages", "messages")
        return self._encode_text(self._chat_template.render(prompt), "messages")

    def _encode_text(self, text: str, param: str, *, add_special_tokens: bool = False) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidParameter("the text contains a lone surrogate, which is no character", param) from error
        # The call for a single text keeps the interpreter lock, that for several lets go of it.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(encoding.ids)

    def _checked(self, token_ids: Sequence[int], param: str) -> tuple[int, ...]:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidParameter(
                    f"the token id {token_id} is not in the model's vocabulary: 0 to {self.vocab_size - 1}", param
                )
        return tuple(token_ids)
