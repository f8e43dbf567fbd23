"""One answer that a worker makes: fed with its reports, read by who asked."""

from collections.abc import Sequence

from ksi_completion.providers.generation import FedGeneration
from ksi_completion.providers.interface import Answer, ProviderFailure, cancelled
from ksi_completion.providers.worker_reports import Delta, Done, Failed, Stopped


class WorkerGeneration(FedGeneration):
    """A Generation of a worker, which may make others beside it.

    A worker that does not confirm a cancel in time is killed: then its other answers fail, too.
    """

    def take(self, report: Delta | Done | Failed | Stopped) -> None:
        """Hear of the answer. Raises ProviderFailure, against its worker, where it becomes too long."""
        match report:
            case Delta():
                self.feed(report.text)
            case Done():
                self.end(_answer(report))
            case Failed():
                self.end(report.failure())
            case Stopped():
                self.end(cancelled())

    def fail(self, failure: ProviderFailure, pids_gone: Sequence[int]) -> None:
        """End it with its worker, unless it has its end."""
        is_stopped = self.is_unwanted and failure.kind != "unknown_outcome"
        self.end(cancelled() if is_stopped else failure, pids_gone)


def _answer(report: Done) -> Answer:
    response = report.model_dump(include={"model", "finish_reason"}) | {
        "result": report.text,
        "usage": report.usage.model_dump(exclude_none=True),
    }
    if report.dropped_messages:
        response["dropped_messages"] = report.dropped_messages
    if report.tool_calls:
        response["tool_calls"] = report.tool_calls
    return Answer(
        text=report.text,
        model=report.model,
        finish_reason=report.finish_reason,
        usage=report.usage,
        response=response,
    )
