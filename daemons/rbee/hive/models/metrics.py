"""What the hive counts of its models; the names are an interface (docs, dashboards)."""

from prometheus_client import CollectorRegistry, Counter, Gauge

OUTCOMES = ("complete", "failed", "cancelled")


class ModelMetrics:
    """Metrics of downloads and of the catalogue; a model's label is its id, of which a machine has few."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.received = Counter(
            "rbee_hive_model_download_bytes",
            "Bytes of a model that came over the network, tries that failed included",
            ("model",),
            registry=registry,
        )
        self.expected = Gauge(
            "rbee_hive_model_download_expected_bytes", "Bytes of a model at its source", ("model",), registry=registry
        )
        self.downloads = Counter(
            "rbee_hive_model_downloads", "Downloads that ended, by outcome", ("outcome",), registry=registry
        )
        self.retries = Counter(
            "rbee_hive_model_download_retries", "Tries of downloads that failed and were repeated", registry=registry
        )
        self.collected = Counter(
            "rbee_hive_models_collected", "Models removed to keep the disk budget", registry=registry
        )
        self.models = Gauge("rbee_hive_models", "Models in the catalogue", registry=registry)
        self.bytes = Gauge("rbee_hive_models_bytes", "Bytes of the models in the catalogue", registry=registry)
        for outcome in OUTCOMES:
            self.downloads.labels(outcome)
