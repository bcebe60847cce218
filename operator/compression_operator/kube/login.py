"""Where the API server is and who we are there. kubeconfigs are read by the official client, which knows what people's
have: contexts, exec plugins of the clouds, OIDC, proxies. (kopf imports it wherever it is installed, so that costs
nothing more here; a command imports this file only where it asks a cluster.)
"""

import contextlib
import logging
import os
import threading
from collections.abc import Generator
from dataclasses import replace
from typing import Any, cast

import kopf
from kubernetes.client import Configuration
from kubernetes.client.rest import should_bypass_proxies
from kubernetes.config import ConfigException, incluster_config, kube_config

DEFAULT_KUBECONFIG = "~/.kube/config"


class NoCluster(Exception):
    """Neither a pod's service account nor a kubeconfig says where the API server is, or who we are there."""


def connect() -> kopf.ConnectionInfo:
    """Where the API server is and who we are there: by KUBECONFIG, else by the service account of the pod that this
    process runs in, else by ~/.kube/config. Waits for the exec plugin where the kubeconfig has one. Raises NoCluster.
    """
    if not os.environ.get("KUBECONFIG"):
        try:
            found = kopf.login_with_service_account(settings=kopf.OperatorSettings())
        except OSError as error:
            raise NoCluster(f"the pod's service account cannot be read: {error}") from error
        if found:
            host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
            # By its address: its name would make us depend on the cluster's DNS.
            host = f"[{host}]" if host and ":" in host else host
            return replace(found, server=f"https://{host}:{port}") if host else found
    return _connection(read_kubeconfig())


def client_configuration(context: str = "") -> Configuration:
    """The same for the official client; `context` names one of the kubeconfig. Raises NoCluster."""
    if not context and not os.environ.get("KUBECONFIG"):
        found = Configuration()
        with contextlib.suppress(ConfigException):
            cast(Any, incluster_config).load_incluster_config(client_configuration=found)
            return found
    return read_kubeconfig(context)


def read_kubeconfig(context: str = "") -> Configuration:
    """What a context of KUBECONFIG, else of ~/.kube/config, says: the current one where none is named. Waits for the
    exec plugin. Raises NoCluster.
    """
    place = os.environ.get("KUBECONFIG") or DEFAULT_KUBECONFIG
    found, untyped = Configuration(), cast(Any, kube_config)
    try:
        merged = untyped.KubeConfigMerger(place)
        if merged.config is None:
            raise NoCluster(f"no cluster to talk to: there is no kubeconfig {place}. Set KUBECONFIG, or run in a pod.")
        context = _chosen(merged, context, place)
        user = _user_of(merged, context)
        with _root_errors() as errors:
            untyped.KubeConfigLoader(
                merged.config, active_context=context, config_base_path=None, config_persister=merged.save_changes
            ).load_and_set(found)
    except NoCluster:
        raise
    except (TypeError, AttributeError, KeyError) as error:  # the client takes for granted what the file is made of
        raise NoCluster(f"{place} is no kubeconfig; write one as `kubectl config view` prints it") from error
    except Exception as error:  # of the client's, or of any library under it
        why = " ".join(str(error).split()) or type(error).__name__
        raise NoCluster(f"the kubeconfig {place} cannot be used: {why}") from error
    if errors:
        raise NoCluster(_plugin_failed(user, errors[-1]))
    return found


def _chosen(merged: Any, context: str, place: str) -> str:
    """The context's name. Of several files the first one's current context counts, as for kubectl; the client would
    take the last one's.
    """
    named = [str(config.get("current-context") or "") for config in merged.config_files.values()]
    context = context or next((name for name in named if name), "")
    if not context:
        raise NoCluster(f"the kubeconfig {place} has no current context; choose one with kubectl config use-context")
    names = sorted(str(one["name"]) for one in merged.config.value["contexts"])
    if context not in names:
        raise NoCluster(f"the kubeconfig {place} has no context {context}; it has {', '.join(names) or 'none'}")
    return context


def _user_of(merged: Any, context: str) -> dict[str, Any]:
    """The entry of the context's user; empty where it has none."""
    [chosen] = [one["context"] for one in merged.config.value["contexts"] if one["name"] == context]
    name = chosen.safe_get("user")
    users = [one.value for one in merged.config.value["users"] if one["name"] == name]
    return users[0] if users else {}


def _plugin_failed(user: dict[str, Any], error: str) -> str:
    """Says why an exec plugin gave no credentials."""
    plugin: dict[str, Any] = user["user"]["exec"]
    command = plugin.get("command")
    why = error.removeprefix("exec: ")
    if error.startswith("[Errno 2]"):
        hint = " ".join(str(plugin.get("installHint") or "").split())
        why = f"it is not installed. {hint or 'Install it, or correct its command.'}"
    elif "'NoneType'" in error:  # the client fails where the plugin has written to the terminal itself
        why = "it failed, and says why above"
    return f"the exec plugin {command} of the kubeconfig's user {user.get('name')} gives no credentials: {why}"


@contextlib.contextmanager
def _root_errors() -> Generator[list[str], None, None]:
    """What this thread writes to the root logger meanwhile, which is kept out of the log: the client logs there that
    an exec plugin has failed, and goes on as nobody.
    """
    found: list[str] = []
    thread, root, handler = threading.get_ident(), logging.getLogger(), logging.NullHandler()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        found.append(record.getMessage())
        return False

    root.addFilter(keep)
    root.addHandler(handler)  # where there is none, the client's call would set up logging for the whole process
    try:
        yield found
    finally:
        root.removeHandler(handler)
        root.removeFilter(keep)


def _connection(found: Configuration) -> kopf.ConnectionInfo:
    """The same for aiohttp. Raises NoCluster where that cannot do what is asked."""
    told = cast(Any, found)
    proxy = cast("str | None", told.proxy)
    if proxy and should_bypass_proxies(told.host, told.no_proxy or ""):
        proxy = None
    if proxy and not proxy.startswith(("http:", "https:")):
        raise NoCluster(f"the operator cannot use the proxy {proxy}; give it one that speaks HTTP")
    scheme, _, token = (told.get_api_key_with_prefix("BearerToken") or "").partition(" ")
    return kopf.ConnectionInfo(
        server=told.host,
        ca_path=told.ssl_ca_cert,
        insecure=not told.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=told.cert_file,
        private_key_path=told.key_file,
        proxy_url=proxy,
    )
