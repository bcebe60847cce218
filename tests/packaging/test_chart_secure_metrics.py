"""The chart's `metrics.secure`: TLS and authentication for /metrics, and the rights for it where it is on alone."""

import pytest
from tests.packaging.helm import Body, Refused, container, only, pod, render

from compression_operator.cluster.health import METRICS_PATH
from compression_operator.cluster.options import parse
from compression_operator.cluster.secure_metrics import REVIEWS

ON: Body = {
    "metrics": {
        "secure": {"enabled": True, "certificateSecret": "operator-tls"},
        "serviceMonitor": {"enabled": True},
    },
    "networkPolicy": {"enabled": True},
}
NAME = "compression-operator.compression-system"


def names(bodies: list[Body]) -> set[str]:
    return {body["metadata"]["name"] for body in bodies}


def test_off_by_default_it_gives_no_rights() -> None:
    bodies = render({})
    assert not {name for name in names(bodies) if "metrics" in name}
    assert parse(container(bodies)["args"]).secure_metrics_port is None
    assert "volumes" not in pod(bodies)["spec"]


def test_the_operator_may_review_and_readers_may_get() -> None:
    bodies = render(ON)
    rules = only(bodies, "ClusterRole", f"{NAME}.metrics-auth")["rules"]
    given = {
        (group, resource, verb)
        for r in rules
        for group in r["apiGroups"]
        for resource in r["resources"]
        for verb in r["verbs"]
    }
    assert given == {(asked.group, asked.resource, verb) for asked in REVIEWS for verb in asked.verbs}
    bound = only(bodies, "ClusterRoleBinding", f"{NAME}.metrics-auth")
    assert bound["roleRef"]["name"] == f"{NAME}.metrics-auth"
    assert bound["subjects"][0]["name"] == pod(bodies)["spec"]["serviceAccountName"]
    reader = only(bodies, "ClusterRole", f"{NAME}.metrics-reader")["rules"]
    assert reader == [{"nonResourceURLs": [METRICS_PATH], "verbs": ["get"]}]


def test_probes_stay_plain_and_scrapes_find_the_other_port() -> None:
    bodies = render(ON)
    found = container(bodies)
    options = parse(found["args"])
    ports = {port["name"]: port["containerPort"] for port in found["ports"]}
    assert ports == {"http": options.port, "metrics": options.secure_metrics_port}
    assert {found[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe", "startupProbe")} == {
        "http"
    }
    (mount,), (volume,) = found["volumeMounts"], pod(bodies)["spec"]["volumes"]
    assert mount["mountPath"] == str(options.metrics_certificate) and mount["readOnly"]
    assert mount["name"] == volume["name"] and volume["secret"]["secretName"] == "operator-tls"
    service = {port["name"]: port for port in only(bodies, "Service")["spec"]["ports"]}
    (endpoint,) = only(bodies, "ServiceMonitor")["spec"]["endpoints"]
    assert service[endpoint["port"]]["targetPort"] == "metrics" and service["metrics"]["port"] == 8443
    assert (endpoint["scheme"], endpoint["path"]) == ("https", METRICS_PATH)
    assert endpoint["bearerTokenFile"] == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert endpoint["tlsConfig"] == {
        "serverName": "compression-operator.compression-system.svc",
        "ca": {"secret": {"name": "operator-tls", "key": "ca.crt"}},
    }
    (ingress,) = only(bodies, "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in ingress["ports"]] == ["metrics"]


def test_prometheus_may_say_otherwise_who_it_is() -> None:
    said = {"credentials": {"name": "token", "key": "token"}}
    given = {**ON, "metrics": {**ON["metrics"], "serviceMonitor": {"enabled": True, "authorization": said}}}
    (endpoint,) = only(render(given), "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["authorization"] == said and "bearerTokenFile" not in endpoint


def test_without_a_certificate_it_is_refused() -> None:
    with pytest.raises(Refused, match=r"metrics\.secure\.certificateSecret is not set: name the Secret"):
        render({"metrics": {"secure": {"enabled": True}}})


def test_a_port_that_the_service_has_already_is_refused() -> None:
    """A Service has each port once."""
    given: Body = {"metrics": {"secure": {"enabled": True, "certificateSecret": "tls", "port": 9000}}}
    with pytest.raises(
        Refused, match=r"metrics\.secure\.port and service\.port are both 9000: give one of them another"
    ):
        render({**given, "service": {"port": 9000}})
    render({"metrics": {"secure": {"port": 8080}}})
