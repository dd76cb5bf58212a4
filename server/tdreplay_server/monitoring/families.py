"""Metrics, as Prometheus' library writes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from tdreplay_server.system.counting import Counted

__all__ = ["Distributions", "Labelled", "counter", "gauge", "histogram"]

Labelled: TypeAlias = "dict[tuple[str, ...], float]"
"""The values of the labels -> the value of the metric."""
Distributions: TypeAlias = "dict[tuple[str, ...], Counted]"
"""The values of the labels -> what was counted."""


def gauge(name: str, text: str, labels: Sequence[str], values: Labelled) -> Metric:
    """What goes up and down."""
    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def counter(name: str, text: str, labels: Sequence[str], values: Labelled) -> Metric:
    """What only grows while the server runs. Its name ends with ``_total``."""
    return _filled(CounterMetricFamily(name, text, labels=labels), values)


def histogram(name: str, text: str, labels: Sequence[str], values: Distributions) -> Metric:
    """Values that were counted in ranges."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for names, counted in values.items():
        bounds = [*map(floatToGoString, counted.bounds), "+Inf"]
        family.add_metric(names, list(zip(bounds, map(float, accumulate(counted.counts)), strict=True)), counted.sum)
    return family


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Labelled) -> Metric:
    for names, value in values.items():
        family.add_metric(names, value)
    return family
