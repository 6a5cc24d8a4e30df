"""What the application runs (from Serve's `args`) and its secrets (from the environment)."""

import contextlib
import os
import secrets
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, IPvAnyNetwork, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from deployments.config import GraphConfig, Settings
from deployments.model_source import default_home

BODY_TURN_S = 60.0
"""How many seconds a large body waits for its turn."""

BODY_ARRIVAL_S = 120.0
"""Within how many seconds a large body must have arrived; nobody else has its turn before that."""

READING_TURN_S = 60.0
"""How many seconds a new job waits for the turn at which its files are read."""

GRACE_S = 60.0
"""How many seconds longer than its time an answer may take, where the database is slow."""


class HttpConfig(Settings):
    """Bounds of the HTTP side. request_deadline_s: the longest that one answer may take that waits for no training.
    stream_keep_alive_s: how long a stream may be silent before it says that it lives; less than proxies wait.
    max_kept_answer_bytes: an answer that is longer is not kept for its Idempotency-Key."""

    max_body_bytes: PositiveInt = 1024 * 1024
    max_json_depth: PositiveInt = 32
    request_deadline_s: PositiveFloat = 600.0
    stream_keep_alive_s: PositiveFloat = 10.0
    max_kept_answer_bytes: PositiveInt = 4 * 1024 * 1024


class InferKitConfig(Settings):
    """envelope: where InferKit's response fields stand: at the top level, under `data`, or both.

    InferKit's documentation shows the first, every known client of it reads the second.
    """

    envelope: Literal["both", "bare", "data"] = "both"


class TotalGPTConfig(Settings):
    """overflow: what happens when prompt and max_tokens together exceed the context: `clamp` answers with what fits,
    `reject` is 400. max_prompts, max_n, max_logprobs bound one request. model_prefix stands before the model id in the
    token counter's `model_used`."""

    overflow: Literal["clamp", "reject"] = "clamp"
    max_prompts: PositiveInt = 128
    max_n: PositiveInt = 128
    max_logprobs: PositiveInt = 20
    model_prefix: str = "Tritext/"


Credits = Annotated[Decimal, Field(ge=0, le=1000, decimal_places=6)]


class TokenPrices(Settings):
    """Credits for each token."""

    prompt_token: Credits = Decimal(1)
    completion_token: Credits = Decimal(4)


class CharacterPrices(Settings):
    """Credits for each generated code point; an answer counts as `minimum_characters` at least."""

    character: Credits = Decimal(1)
    minimum_characters: NonNegativeInt = 100


class BillingConfig(Settings):
    """What answers cost in each API."""

    aitextgen: TokenPrices = TokenPrices()
    inferkit: CharacterPrices = CharacterPrices()
    totalgpt: TokenPrices = TokenPrices()


class WindowConfig(Settings):
    """At most `quota` requests or tokens in `period_s` seconds from the first one on. Tokens are those of prompts and
    answers. The name is shown to clients."""

    name: str = Field(pattern="^[a-z][a-z0-9_-]{0,49}$")
    quota: PositiveInt
    period_s: Annotated[float, Field(gt=0, le=366 * 86400)]
    counts: Literal["requests", "tokens"] = "requests"


class DialectLimits(Settings):
    """How often one key may call one API. max_concurrent: its answers that are being made at the same time."""

    windows: tuple[WindowConfig, ...] = Field((), max_length=8)
    max_concurrent: PositiveInt | None = None

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        if len({window.name for window in self.windows}) != len(self.windows):
            raise ValueError("two windows have the same name")
        return self


class LimitsConfig(Settings):
    """The limits of every key that has none of its own."""

    aitextgen: DialectLimits = DialectLimits(
        windows=(
            WindowConfig(name="minute", quota=100, period_s=60),
            WindowConfig(name="day", quota=5000, period_s=86400),
        )
    )
    inferkit: DialectLimits = DialectLimits()
    totalgpt: DialectLimits = DialectLimits()


class FineTuningConfig(Settings):
    """Fine-tuning jobs: what may be asked for, and how they are run.

    hold_s: how long `POST /v1/aitextgen/finetune` waits for the end of the training before it answers 202.
    max_data_bytes, max_documents: of one training file. min_generator_bytes: the least for an InferKit generator.
    max_epochs, max_rank, max_workers, max_tokens: of one job; tokens are those of the file times the epochs.
    max_jobs: that run at the same time in the whole service; max_jobs_per_account: of one account; others wait.
    max_queued_jobs_per_account: that wait, or are paused; more are refused with 429.
    lease_s: how long a job stays with a dispatcher that is not heard of. hang_s: how long a worker may be silent.
    max_attempts: workers that may be lost in a row without a new checkpoint before the job fails; retry_s: the pause
    before the next, doubled each time. keep_checkpoints_s: how long checkpoints and metrics of a job that has ended
    are kept.
    """

    hold_s: PositiveFloat = 600.0
    max_data_bytes: PositiveInt = 20 * 1024 * 1024
    max_documents: PositiveInt = 20_000
    min_generator_bytes: NonNegativeInt = 50_000
    max_epochs: PositiveInt = 100
    max_rank: PositiveInt = 256
    max_workers: PositiveInt = 1
    max_tokens: PositiveInt = 200_000_000
    max_jobs: PositiveInt = 1
    max_jobs_per_account: PositiveInt = 1
    max_queued_jobs_per_account: PositiveInt = 100
    lease_s: PositiveFloat = 30.0
    hang_s: PositiveFloat = 300.0
    max_attempts: PositiveInt = 12
    retry_s: PositiveFloat = 2.0
    keep_checkpoints_s: PositiveFloat = 7 * 86400.0


class WebhooksConfig(Settings):
    """Deliveries of webhooks.

    allowed_networks: addresses in these networks are connected to although they are not public, such as 10.0.0.0/8;
    hosts of theirs may also be called by plain http. ports: that URLs may name, beside 443. timeout_s: for one attempt.
    retry_s: the pauses after each failed attempt; after the last the delivery has failed. disable_after_s: an endpoint
    that has failed for so long without a success is disabled when a delivery has failed, after its last attempt.
    """

    allowed_networks: tuple[IPvAnyNetwork, ...] = ()
    ports: tuple[PositiveInt, ...] = (443, 8443)
    timeout_s: PositiveFloat = 15.0
    retry_s: tuple[PositiveFloat, ...] = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
    disable_after_s: PositiveFloat = 5 * 86400.0
    max_endpoints: PositiveInt = 50


class AppConfig(Settings):
    """Everything that `serve_app.app:build` takes.

    database_url: `sqlite:///path/to/file.db` or `postgresql://user:password@host/name`; None means an SQLite file under
    home (see `Home`).
    """

    graph: GraphConfig
    database_url: str | None = None
    http: HttpConfig = HttpConfig()
    inferkit: InferKitConfig = InferKitConfig()
    totalgpt: TotalGPTConfig = TotalGPTConfig()
    billing: BillingConfig = BillingConfig()
    limits: LimitsConfig = LimitsConfig()
    fine_tuning: FineTuningConfig = FineTuningConfig()
    webhooks: WebhooksConfig = WebhooksConfig()

    @property
    def longest_answer_s(self) -> float:
        """How many seconds the longest answer may take: who stops giving or passing on answers must wait so long.

        It is generation up to its deadline, or `POST /v1/aitextgen/finetune`: its body waits for its turn and arrives,
        its file waits to be read, and then its training is waited for. Either may take the grace besides, which is
        there for the rest, too: to check and store texts, and to settle.
        """
        training_s = BODY_TURN_S + BODY_ARRIVAL_S + READING_TURN_S + self.fine_tuning.hold_s
        return max(self.http.request_deadline_s, training_s) + GRACE_S


class Home(BaseSettings):
    """Where local state lies (database, prepared models, logs): TRITEXT_HOME, by default ~/.tritext.

    secret_database_url: from TRITEXT_DATABASE_URL; it goes before the configured one, and may hold a password.
    """

    model_config = SettingsConfigDict(
        env_prefix="TRITEXT_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    home: Path = Field(default_factory=default_home)
    secret_database_url: SecretStr | None = Field(default=None, validation_alias="TRITEXT_DATABASE_URL")

    def database_url(self, config: AppConfig) -> str:
        """The database of TRITEXT_DATABASE_URL, else the configured one, else an SQLite file under home."""
        if self.secret_database_url is not None:
            return self.secret_database_url.get_secret_value()
        return config.database_url or f"sqlite:///{self.home / 'tritext.db'}"


class SetupError(Exception):
    """What keeps the service from starting; the message tells in a sentence how to mend it."""


class Secrets(Home):
    """What must not stand in a configuration file. Take it by `Secrets.load()`.

    key_pepper: the secret under which API keys are hashed; without it no key can be checked.
    """

    key_pepper: SecretStr = Field(min_length=32)

    @classmethod
    def load(cls, *, create: bool = False) -> Self:
        """The pepper from TRITEXT_KEY_PEPPER or, where that is not set, from the file `key_pepper` under home.

        `create` makes the file, readable by its owner only, where it is missing. Raises SetupError.
        """
        if os.environ.get("TRITEXT_KEY_PEPPER"):
            return cls()
        path = Home().home / "key_pepper"
        if create:
            _create_secret_file(path)
        try:
            return cls(key_pepper=SecretStr(path.read_text("ascii").strip()))
        except FileNotFoundError:
            raise SetupError(
                f"there is no key pepper: set TRITEXT_KEY_PEPPER to 32 or more random characters, "
                f"or start the service once, which makes {path}"
            ) from None

    def pepper(self) -> bytes:
        return self.key_pepper.get_secret_value().encode()


def _create_secret_file(path: Path) -> None:
    """Writes a new secret to `path` unless it exists; whole or not at all, and only once among racing processes."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".key_pepper-") as file:  # made with mode 0600
        file.write(secrets.token_hex(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)
