"""Fine-tuning on documents that come with the request, not as a file. Knows no HTTP and no SQL."""

from collections.abc import Sequence
from dataclasses import replace

from deployments.errors import InvalidTrainingData, StorageError
from serve_app.config import FineTuningConfig
from serve_app.jobs.job import Job
from serve_app.use_cases.fine_tuning import FineTuneCommand, FineTuning
from serve_app.use_cases.training_files import TrainingFiles

PURPOSE = "fine-tune"

AUTO_LEARNING_RATE = 2e-4
"""For who does not choose one, where the API has no default of its own."""


class DocumentTraining:
    """Keeps the documents as a file of the account, as if it had been uploaded, and asks for a job that uses it."""

    def __init__(self, files: TrainingFiles, fine_tuning: FineTuning, config: FineTuningConfig) -> None:
        self._files = files
        self._fine_tuning = fine_tuning
        self._config = config

    def check(self, documents: Sequence[str], param: str, *, min_bytes: int = 0) -> None:
        """What can be said before anything is stored; param: what the API calls the documents.

        Raises InvalidTrainingData where there are too many documents, too much or too little text.
        """
        if len(documents) > self._config.max_documents:
            raise InvalidTrainingData(f"{param} must have at most {self._config.max_documents} items", param)
        num_bytes = 0
        for index, document in enumerate(documents):
            num_bytes += len(document.encode())
            if num_bytes > self._config.max_data_bytes:
                message = f"{param} must have at most {self._config.max_data_bytes} bytes of text in all"
                raise InvalidTrainingData(message, f"{param}[{index}]")
        if num_bytes < min_bytes:
            raise InvalidTrainingData(f"{param} must have at least {min_bytes} bytes of text, not {num_bytes}", param)

    async def create(self, command: FineTuneCommand, documents: Sequence[str], *, filename: str) -> Job:
        """The job of this command, whose `training_file` is yet to be made. Raises what `FineTuning.create` raises.

        No file is left where no job was made. Where the database leaves that open the file stays; the same request,
        named by `once`, makes no second one.
        """
        if command.once is not None:
            earlier = await self._fine_tuning.earlier(command.account, command.once)
            if earlier is not None:
                return earlier
        file = await self._files.add(
            command.account,
            filename=filename,
            purpose=PURPOSE,
            original=None,
            documents=documents,
            param=command.data_param,
            once=None if command.once is None else b"file" + command.once,
        )
        try:
            return await self._fine_tuning.create(replace(command, training_file=file.id))
        except StorageError:
            raise
        except Exception:
            await self._files.delete(command.account, file.id)
            raise
