"""The monitors of the server's settings, and the counters of their cells: one a pair of a topic and a sentiment."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.errors import UserError
from tuneserve.server.api.classification_messages import problem_of
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import NotFound
from tuneserve.server.config import MonitorConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.model import Model
from tuneserve.v1 import checkpoint_pb2 as pb

# Each cell is a series of a metric.
_MOST_CELLS = 10_000


class Monitors:
    """Monitors by name."""

    def __init__(self, configs: Mapping[str, MonitorConfig], models: Models, metrics: Metrics) -> None:
        """Checks that their models are classifiers. Raises UserError naming the key."""
        self._configs = configs
        self._metrics = metrics
        self._counted: set[tuple[str, str, str]] = set()  # a monitor, and versions whose cells have counters
        for name, config in configs.items():
            one, any_number = pb.PROBLEM_TYPE_SINGLE_LABEL, pb.PROBLEM_TYPE_MULTI_LABEL
            topics = _classifiers(models, f"monitors.{name}.topic", config.topic, (one, any_number))
            sentiments = _classifiers(models, f"monitors.{name}.sentiment", config.sentiment, (one,))
            for topic in topics:
                for sentiment in sentiments:
                    if (cells := len(topic.labels) * len(sentiment.labels)) > _MOST_CELLS:
                        raise UserError(
                            f"monitors.{name}: {len(topic.labels)} topics with {len(sentiment.labels)} sentiments are "
                            f"{cells} series",
                            f"allowed: {_MOST_CELLS}",
                        )
                    self._start(name, topic, sentiment)

    def get(self, name: str) -> MonitorConfig:
        """Returns a monitor's settings. Raises NotFound, also if the current caller may not use its models."""
        config = self._configs.get(name)
        if config is None or not _is_shown(config):
            raise NotFound("monitor", name, [one for one, config in self._configs.items() if _is_shown(config)])
        return config

    def count(self, name: str, topic: Model, topics: Iterable[str], sentiment: Model, found: str) -> None:
        """Counts a text by what two versions found."""
        self._start(name, topic, sentiment)
        for one in topics:
            self._metrics.observed.labels(name, one, found).inc()

    def _start(self, name: str, topic: Model, sentiment: Model) -> None:
        """Makes the counters of all cells, so that they begin at 0: a rate includes the first text then."""
        if (versions := (name, topic.id, sentiment.id)) not in self._counted:
            self._counted.add(versions)
            for one in topic.labels:
                for other in sentiment.labels:
                    self._metrics.observed.labels(name, one, other)


def _is_shown(config: MonitorConfig) -> bool:
    return all(map(current().tenant.may_use, (config.topic, config.sentiment)))


def _classifiers(models: Models, key: str, alias: str, problems: Collection[pb.ProblemType]) -> Sequence[Model]:
    """Returns the versions that an alias of the server's file stands for. Raises UserError for others than classifiers
    of these kinds.
    """
    route = models.route(alias)
    assert route is not None
    for model in route.models():
        manifest = model.manifest
        if manifest.task != pb.TASK_SEQUENCE_CLASSIFICATION:
            raise UserError(f"{key}: {alias} is a model for {TASK_NAMES[manifest.task]}", "a text classifier is needed")
        if (problem := problem_of(manifest)) not in problems:
            kind = pb.ProblemType.Name(problem).removeprefix("PROBLEM_TYPE_").lower().replace("_", "-")
            raise UserError(f"{key}: {alias} is a {kind} classifier", "one with a single label for each text is needed")
    return [model for model, _ in route.targets]
