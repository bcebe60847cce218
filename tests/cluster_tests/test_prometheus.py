"""Metrics: clean by promtool, and scraped by a real Prometheus while a run goes on."""

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import urllib3
from kubelets import NOWHERE, end, kubelet
from operators import FINAL, Namespace
from tests.cluster import apt
from tests.support.waiting import until

LISTED = (
    "compression_runs",
    "compression_runs_unreadable",
    "compression_runs_managed_elsewhere",
    "compression_steps",
    "compression_step_duration_seconds_bucket",
    "compression_step_retries_total",
    "compression_reconcile_duration_seconds_bucket",
    "compression_reconcile_errors_total",
    "compression_queue_depth",
    "compression_api_requests_total",
    "compression_api_request_duration_seconds_bucket",
    "compression_leader",
    "process_resident_memory_bytes",
)


@pytest.fixture(scope="module")
def prometheus() -> str:
    """Debian's Prometheus, installed where it is missing and may be."""
    if shutil.which("prometheus") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        apt.install(["prometheus"], {"RUNLEVEL": "1"})
    if shutil.which("prometheus") is None:
        pytest.skip(
            "no Prometheus here, and it cannot be installed: metrics are not scraped (apt-get install prometheus)"
        )
    return "prometheus"


def listening_on(log: Path) -> int | None:
    """The port that it has chosen itself: one that was free before may be somebody else's by now."""
    found = re.search(r"address=127\.0\.0\.1:([1-9]\d*)\n", log.read_text())
    return int(found[1]) if found else None


def test_a_real_prometheus_scrapes_the_operator(namespace: Namespace, prometheus: str, tmp_path: Path) -> None:
    with namespace.operator() as operator, kubelet(namespace, 1.0):
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                {"job_name": "operator", "static_configs": [{"targets": [f"127.0.0.1:{operator.port}"]}]}
            ],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))
        arguments = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]
        with (tmp_path / "log").open("w") as log:
            server = subprocess.Popen(
                [prometheus, *arguments, "--web.listen-address=127.0.0.1:0"], stdout=log, stderr=log
            )
        try:
            port = until(lambda: listening_on(tmp_path / "log"), "Prometheus to say where it listens")

            def query(expression: str) -> dict[str, float]:
                answer = urllib3.request(
                    "GET", f"http://127.0.0.1:{port}/api/v1/query", fields={"query": expression}, retries=False
                )
                assert answer.status == 200, answer.data
                found = answer.json()["data"]["result"]
                return {json.dumps(series["metric"], sort_keys=True): float(series["value"][1]) for series in found}

            def ready() -> bool:
                """Prometheus listens before it answers: until it is ready every query is a 503."""
                try:
                    return urllib3.request("GET", f"http://127.0.0.1:{port}/-/ready", retries=False).status == 200
                except urllib3.exceptions.HTTPError:
                    return False

            until(ready, "Prometheus to be ready")
            until(lambda: 1.0 in query("up").values(), "Prometheus to scrape")
            namespace.submit(jobTemplate=NOWHERE)
            assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
            for told in (
                'compression_runs{phase="Succeeded"} == 1',
                'sum(compression_steps{state="Succeeded"}) == 8',
                'sum(compression_step_duration_seconds_count{outcome="Succeeded"}) >= 7',
                'sum(compression_api_requests_total{verb="create",code="201"}) >= 8',
                "histogram_quantile(0.5, sum by (le) (compression_reconcile_duration_seconds_bucket)) > 0",
            ):
                # Each is waited for: a scrape may come before what follows a status is counted, and after one that was
                # late Prometheus knows of nothing until the next.
                until(functools.partial(query, told), told)
        finally:
            server.terminate()
            server.wait(120)


def test_promtool_finds_nothing_to_mend(namespace: Namespace, prometheus: str) -> None:
    with namespace.operator() as operator:
        namespace.submit(jobTemplate=NOWHERE)
        (pod,) = until(namespace.pods, "the pod")
        end(namespace.api, pod, "Transient", "the link broke")
        until(lambda: "compression_step_retries_total{" in operator.ask("/metrics")[1], "the retry to be counted")
        with kubelet(namespace):
            assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
        text = operator.ask("/metrics")[1]
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    names = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert set(LISTED) <= names, set(LISTED) - names
