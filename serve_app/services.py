"""What the HTTP side is composed of; made once by `serve_app.app` or by a test, and handed to `create_api`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from deployments.graph import Graph
from serve_app.config import BODY_TURN_S, AppConfig
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.admission import Admission
from serve_app.use_cases.audit import AuditLog
from serve_app.use_cases.document_training import DocumentTraining
from serve_app.use_cases.fine_tuning import FineTuning
from serve_app.use_cases.generate import TextGeneration
from serve_app.use_cases.idempotent_runs import IdempotentRuns
from serve_app.use_cases.keys import Keys
from serve_app.use_cases.models import Models
from serve_app.use_cases.training_files import TrainingFiles
from serve_app.use_cases.tuned_models import TunedModels
from serve_app.use_cases.turns import Turns
from serve_app.use_cases.usage import UsageReports
from serve_app.use_cases.webhooks import Webhooks


@dataclass(frozen=True, slots=True)
class Services:
    """`is_ready` tells whether every node that an answer needs has a replica that can answer. `large_bodies`: each is
    tens of megabytes, and several times that once it is parsed."""

    config: AppConfig
    graph: Graph
    models: Models
    tuned_models: TunedModels
    files: TrainingFiles
    fine_tuning: FineTuning
    document_training: DocumentTraining
    webhooks: Webhooks
    generation: TextGeneration
    accounts: Accounts
    keys: Keys
    admission: Admission
    usage: UsageReports
    audit: AuditLog
    idempotency: IdempotentRuns
    is_ready: Callable[[], Awaitable[bool]]
    large_bodies: Turns = field(default_factory=lambda: Turns(2, wait_s=BODY_TURN_S))
