"""The Grafana dashboard as code: ``python deploy/monitoring/dashboard.py`` writes `grafana/cutaway.json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef

FILE = Path(__file__).resolve().parent / "grafana" / "cutaway.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")  # grafana/provisioning/datasources
RATE = "$__rate_interval"

NETWORKS = 'model=~"yolov8_seg.*|birefnet_trt|u2netp"'
HEIGHT = 8

Queries = Sequence[tuple[str, str]]
"""Expression and legend of each."""


def quantile(share: float, buckets: str, *by: str) -> str:
    labels = ", ".join((*by, "le"))
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({buckets}[{RATE}])))"


def _filled(panel: Any, title: str, queries: Queries, unit: str, about: str, empty: str) -> Any:
    panel = panel.title(title).description(about).datasource(SOURCE).unit(unit).height(HEIGHT)
    if empty:
        panel = panel.no_value(empty)
    for number, (expression, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).datasource(SOURCE)
        panel = panel.with_target(query.ref_id(chr(ord("A") + number)))
    return panel


def number(title: str, expression: str, unit: str = "short", about: str = "", empty: str = "") -> Any:
    """A panel of one figure, six in a row."""
    return _filled(stat.Panel(), title, [(expression, "")], unit, about, empty).span(4).height(4)


def lines(
    title: str, queries: Queries, unit: str = "short", about: str = "", empty: str = "", *, stacked: bool = False
) -> Any:
    """A panel of lines over time, three in a row."""
    legend = common.VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM)
    panel = _filled(timeseries.Panel(), title, queries, unit, about, empty).span(8).min(0)
    panel = panel.legend(legend.display_mode(LegendDisplayMode.LIST).calcs([]))
    panel = panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    return panel


ROWS: dict[str, list[Any]] = {
    "Now": [
        number("Alerts firing", 'count(ALERTS{alertstate="firing"}) or vector(0)', about="Prometheus's page has them."),
        number("Servers", 'sum(up{job="cutaway"})'),
        number("Pictures cut out", f'sum(rate(cutaway_requests_total{{code="OK"}}[{RATE}]))', "reqps"),
        number("Failed, of all requests", "max(cutaway:errors:ratio_rate5m)", "percentunit", "Codes of the 500s."),
        number("A picture, p95", 'max(cutaway:stage_seconds:p95_5m{stage="total"})', "s"),
        number("GPU memory free", "min(nv_gpu_memory_total_bytes - nv_gpu_memory_used_bytes)", "bytes", empty="no GPU"),
    ],
    "Pictures": [
        *(
            lines(
                f"Latency by stage, p{100 * share:g}",
                [(quantile(share, "cutaway_stage_seconds_bucket", "stage"), "{{stage}}")],
                "s",
                "In the pipeline, without the queue before it. Health checks are not counted.",
            )
            for share in (0.5, 0.95, 0.99)
        ),
        lines(
            "Throughput",
            [
                (f'sum by (instance) (rate(cutaway_requests_total{{code="OK"}}[{RATE}]))', "pictures {{instance}}"),
                (
                    f'sum by (instance) (rate(nv_inference_request_success{{model="stream_pipeline"}}[{RATE}]))',
                    "frames {{instance}}",
                ),
            ],
            "reqps",
            "Frames are counted by Triton, those of health checks with them.",
            stacked=True,
        ),
        lines(
            "Outcomes in the pipeline",
            [(f"sum by (code) (rate(cutaway_requests_total[{RATE}]))", "{{code}}")],
            "reqps",
            stacked=True,
        ),
        lines(
            "People per picture",
            [
                (f"sum(rate(cutaway_people_sum[{RATE}])) / sum(rate(cutaway_people_count[{RATE}]))", "mean"),
                (f"ceil({quantile(0.95, 'cutaway_people_bucket')})", "p95"),
            ],
        ),
    ],
    "Networks and GPU": [
        lines(
            "Queue against compute",
            [("max by (model) (cutaway:queue_compute:ratio_rate5m)", "{{model}}")],
            about="Seconds in the queue per second of work; above 1, more comes than goes.",
        ),
        lines("Waiting requests", [("sum by (model) (nv_inference_pending_request_count)", "{{model}}")], stacked=True),
        lines(
            "Batch sizes",
            [
                (
                    f"sum by (model) (rate(nv_inference_count{{{NETWORKS}}}[{RATE}]))"
                    f" / sum by (model) (rate(nv_inference_exec_count{{{NETWORKS}}}[{RATE}]))",
                    "{{model}}",
                )
            ],
            about="The mean of what a network was given at once.",
        ),
        lines("GPU utilisation", [("gpu_utilization_percent", "{{gpu_uuid}}")], "percent", empty="no GPU"),
        lines(
            "GPU memory",
            [("nv_gpu_memory_used_bytes", "used {{gpu_uuid}}"), ("nv_gpu_memory_total_bytes", "all {{gpu_uuid}}")],
            "bytes",
            empty="no GPU",
        ),
        lines(
            "Active tasks",
            [("sum(active_yolo_tasks)", "yolo"), ("sum(active_birefnet_tasks)", "birefnet")],
            about="Requests in a network, waiting or being computed, by Little's law.",
        ),
    ],
    "By the specification's names": [
        lines(
            "Requests",
            [
                (f"sum(rate(pipeline_requests_total[{RATE}]))", "pipeline"),
                (f"sum(rate(birefnet_requests_total[{RATE}]))", "birefnet"),
            ],
            "reqps",
            "Health checks go through birefnet, too.",
        ),
        lines(
            "Latency, p95",
            [
                (quantile(0.95, "pipeline_total_latency_seconds_bucket"), "pipeline"),
                (quantile(0.95, "birefnet_latency_seconds_bucket"), "birefnet"),
            ],
            "s",
        ),
        lines(
            "Errors of birefnet",
            [(f"sum by (error_type) (rate(birefnet_errors_total[{RATE}]))", "{{error_type}}")],
            "reqps",
        ),
    ],
    "Gateway": [
        lines(
            "Gateway requests",
            [
                (
                    f"sum by (protocol, model) (rate(cutaway_gateway_requests_total[{RATE}]))",
                    "{{protocol}} {{model}}",
                )
            ],
            "reqps",
            stacked=True,
        ),
        lines(
            "Outcomes at the gate",
            [(f"sum by (code) (rate(cutaway_gateway_requests_total[{RATE}]))", "{{code}}")],
            "reqps",
            stacked=True,
        ),
        lines(
            "Requests at the gate, p95",
            [(quantile(0.95, "cutaway_gateway_request_seconds_bucket", "protocol"), "{{protocol}}")],
            "s",
            "With upload, queue and answer.",
        ),
        lines(
            "Limits hit",
            [
                (f"sum by (bound) (increase(cutaway_gateway_shed_total[{RATE}]))", "{{bound}}"),
                (f"sum by (bound) (increase(cutaway_gateway_connections_closed_total[{RATE}]))", "closed: {{bound}}"),
            ],
            about="Requests refused and connections closed, by the bound that was met.",
        ),
        lines(
            "Hosted tiers used",
            [("sum by (provider, code) (cutaway_calls_total)", "{{provider}} {{code}}")],
            about="Calls since the gate's start. Only enlarging asks hosted models, never cutting out.",
            empty="no hosted model",
        ),
        lines(
            "Jobs",
            [
                ("sum by (status) (cutaway_jobs)", "{{status}}"),
                (f"sum by (status) (increase(cutaway_jobs_finished_total[{RATE}]))", "{{status}}"),
            ],
            about="Queued and in work now; completed and failed since the point before.",
        ),
        lines(
            "Canaries",
            [(f"sum by (part, outcome) (increase(cutaway_canaries_total[{RATE}])) > 0", "{{part}} {{outcome}}")],
            about="Rounds of health checks by outcome.",
        ),
        lines(
            "Restarts",
            [(f"sum by (instance, part) (increase(cutaway_restarts_total[{RATE}]))", "{{part}} {{instance}}")],
        ),
        lines(
            "In flight",
            [
                ("sum(cutaway_gateway_requests_in_flight)", "requests at the gate"),
                ("sum(cutaway_pictures_in_flight)", "pictures in work"),
                ("sum(cutaway_gateway_connections)", "HTTP connections"),
            ],
        ),
    ],
}


def build() -> str:
    """The dashboard as JSON, in the form of Grafana 11 and later."""
    made = dashboard.Dashboard("Cutaway").uid("cutaway").tags(["cutaway"]).refresh("15s").time("now-1h", "now")
    made = made.readonly()
    ids = count(1)
    for title, panels in ROWS.items():
        made = made.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            made = made.with_panel(panel.id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(build())
    sys.exit(0)
