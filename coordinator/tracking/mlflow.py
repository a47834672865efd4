# SPDX-License-Identifier: Apache-2.0
"""A run's numbers in MLflow: a server's, or a folder's that `mlflow ui` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from coordinator.tracking.sinks import Tracked
from fedcore.errors import ConfigError

__all__ = ["MLflow"]

_EXPERIMENT: Final = "fedkrso"
_TAG: Final = "fedkrso.run"
_MOST_WORDS: Final = 500


class MLflow:
    """A run of the experiment `fedkrso`, found again by the name and the start of ours.

    Args:
        target: A tracking URI: `https://host`, `sqlite:///FILE`, or a folder as MLflow takes it.
        run: Whose numbers come.

    Raises:
        ConfigError: MLflow cannot use it.
    """

    def __init__(self, target: str, run: Tracked) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._target, self._errors = target, (MlflowException, OSError)
        try:
            self._client = MlflowClient(target)
            self._id = self._found(run)
            # What an earlier time has told.
            data = self._client.get_run(self._id).data
            self._last = {key: self._last_step(key) for key in data.metrics}
        except self._errors as error:
            raise self._unusable(error) from None

    def put(self, server_round: int, at: float, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        from mlflow.entities import Metric

        new = [
            Metric(name, value, int(at * 1000), server_round)
            for name, value in values.items()
            if server_round > self._last.get(name, 0)
        ]
        if not new:
            return
        try:
            self._client.log_batch(self._id, metrics=new)
        except self._errors as error:
            raise self._unusable(error) from None
        self._last |= {metric.key: server_round for metric in new}

    def close(self, *, ended: bool) -> None:
        """See `Sink`."""
        if ended:
            self._client.set_terminated(self._id)

    def _found(self, run: Tracked) -> str:
        """The id of its run there; made if there is none."""
        from mlflow.entities import Param

        known = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment = self._client.create_experiment(_EXPERIMENT) if known is None else known.experiment_id
        ours = f"{run.run} {run.started_at:.3f}"
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{ours}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {_TAG: ours, "mlflow.runName": run.run}
        made = self._client.create_run(experiment, int(run.started_at * 1000), tags).info.run_id
        settings = [Param(key, value[:_MOST_WORDS]) for key, value in run.settings.items() if value]
        self._client.log_batch(made, params=settings)
        return str(made)

    def _last_step(self, key: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._id, key)), default=0)

    def _unusable(self, error: Exception) -> ConfigError:
        words = str(error).strip().partition("\n")[0][:300]
        return ConfigError(f"MLflow says: {words}", place=f"mlflow:{self._target}", remedy="is its address right?")
