"""The errors of the service, one tree; every class pickles, so an error crosses processes unchanged.

ServiceError
├── InvalidRequest        400
│   ├── InvalidParameter        a field of the request, named by `param`
│   ├── ContextLengthExceeded   the prompt does not fit the model
│   ├── InvalidAdapter          an adapter's files are broken, unsupported, or not made for the model
│   ├── InvalidTrainingData     training data that cannot be trained on; `param` names the field
│   ├── GeneratorNotDeployed    the fine-tuned model exists, and is out of service
│   ├── OutOfCredits            the account or the key has nothing left to spend
│   ├── PayloadTooLarge   413   the body is longer than the limit
│   └── IdempotencyMismatch 422 the idempotency key was used for another request
├── Unauthenticated       401
├── PermissionDenied      403
├── NotFound              404
│   ├── ModelNotFound
│   ├── JobNotFound
│   └── ObjectNotFound          the object store has no such object
├── MethodNotAllowed      405
├── Conflict              409   another request is doing this at this moment
├── RateLimited           429   a window of the key is full; come back after `retry_after_s`
├── Overloaded            503   come back after `retry_after_s`
│   ├── ReplicaLost             the replica that worked on the call is gone, or its engine is
│   ├── StorageError            the database does not answer
│   └── ObjectStoreError        the object store does not answer
├── AdapterNotLoaded      503   whoever sends requests for an adapter loads it first
├── DeadlineExceeded      504   the answer did not come within the service's own limit
├── CorruptObject         502   an object is not what its name says: its digest differs
└── EngineError           500
    ├── GenerationFailed        this request; the next may succeed
    ├── TrainingFailed          this fine-tuning run, for good: to try again would fail again
    ├── WorkerLost              the worker of a fine-tuning run is gone; another goes on from the last checkpoint
    └── EngineDead              this replica; its health check fails and it is replaced. Its callers on Ray get
        │                       ReplicaLost
        └── EngineStuck         its step never ends, nor would those who wait for it
"""


class ServiceError(Exception):
    """Root of the tree. `status` is the HTTP status, `code` a stable word for programs, `param` the field at fault."""

    status = 500
    code = "internal_error"
    param: str | None = None

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else self.code


class InvalidRequest(ServiceError):
    status = 400
    code = "invalid_request"


class InvalidParameter(InvalidRequest):
    """InvalidParameter(message, param)"""

    code = "invalid_parameter"

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message, param)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """ContextLengthExceeded(num_prompt_tokens, context_length)"""

    code = "context_length_exceeded"
    param = "prompt"

    def __init__(self, num_prompt_tokens: int, context_length: int) -> None:
        super().__init__(num_prompt_tokens, context_length)

    @property
    def message(self) -> str:
        num_prompt_tokens, context_length = self.args
        return (
            f"the prompt has {num_prompt_tokens} tokens; the model's context holds {context_length}, "
            "and at least one must be left for the output"
        )


class GeneratorNotDeployed(InvalidRequest):
    """GeneratorNotDeployed(model)"""

    code = "generator_not_deployed"
    param = "model"

    @property
    def message(self) -> str:
        return f"the model {self.args[0]!r} is not deployed; POST /v1/models/{self.args[0]}/deploy puts it into service"


class OutOfCredits(InvalidRequest):
    """The words and the code are InferKit's, on which its clients rely."""

    code = "out_of_credits"

    @property
    def message(self) -> str:
        return "Out of generation credits"


class InvalidAdapter(InvalidRequest):
    code = "invalid_adapter"


class InvalidTrainingData(InvalidRequest):
    """InvalidTrainingData(message, param)"""

    code = "invalid_training_data"

    def __init__(self, message: str, param: str = "training_data") -> None:
        super().__init__(message, param)
        self.param = param


class PayloadTooLarge(InvalidRequest):
    status = 413
    code = "payload_too_large"


class IdempotencyMismatch(InvalidRequest):
    status = 422
    code = "idempotency_mismatch"


class Unauthenticated(ServiceError):
    status = 401
    code = "unauthenticated"


class PermissionDenied(ServiceError):
    status = 403
    code = "permission_denied"


class NotFound(ServiceError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """ModelNotFound(model)"""

    code = "model_not_found"
    param = "model"

    @property
    def message(self) -> str:
        return f"the model {self.args[0]!r} does not exist; GET /v1/models lists those that do"


class JobNotFound(NotFound):
    """JobNotFound(job_id)"""

    code = "job_not_found"

    @property
    def message(self) -> str:
        return f"there is no fine-tuning job {self.args[0]!r}"


class ObjectNotFound(NotFound):
    code = "object_not_found"


class MethodNotAllowed(ServiceError):
    """MethodNotAllowed(message, allow): `allow` names the methods that the path does have, as in the Allow header."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message, allow)
        self.allow = allow


class Conflict(ServiceError):
    status = 409
    code = "conflict"


class RateLimited(ServiceError):
    """RateLimited(message, retry_after_s)"""

    status = 429
    code = "rate_limited"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class Overloaded(ServiceError):
    """Overloaded(message, retry_after_s)"""

    status = 503
    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class ReplicaLost(Overloaded):
    code = "replica_lost"


class StorageError(Overloaded):
    """is_without_effect: it is certain that nothing was written by the work that met this error."""

    code = "storage_unavailable"

    def __init__(self, message: str, retry_after_s: float = 1.0, *, is_without_effect: bool = False) -> None:
        super().__init__(message, retry_after_s)
        self.is_without_effect = is_without_effect


class ObjectStoreError(Overloaded):
    code = "object_store_unavailable"


class CorruptObject(ServiceError):
    status = 502
    code = "corrupt_object"


class AdapterNotLoaded(ServiceError):
    """AdapterNotLoaded(adapter_id)"""

    status = 503
    code = "adapter_not_loaded"

    @property
    def message(self) -> str:
        return f"the adapter {self.args[0]!r} is not loaded at the moment; try again"


class DeadlineExceeded(ServiceError):
    status = 504
    code = "deadline_exceeded"


class EngineError(ServiceError):
    status = 500
    code = "engine_error"


class GenerationFailed(EngineError):
    code = "generation_failed"


class TrainingFailed(EngineError):
    code = "training_failed"


class WorkerLost(EngineError):
    code = "worker_lost"


class EngineDead(EngineError):
    code = "engine_dead"


class EngineStuck(EngineDead):
    pass
