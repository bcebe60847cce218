"""Keys and certificates of one cluster, made by the machine's `openssl`; they live and die with the state folder."""

import secrets
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .errors import ClusterError

# Longer than any cluster of ours, and than the 90 days ahead that the training operator looks.
_DAYS = "3650"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

# Token name -> (user, groups). The first three are the identities that Kubernetes' own roles are written for.
_IDENTITIES = {
    "scheduler": ("system:kube-scheduler", ""),
    "controller-manager": ("system:kube-controller-manager", ""),
    "proxy": ("system:kube-proxy", ""),
    "admin": ("admin", "system:masters"),
    "coredns": ("coredns", "system:masters"),
    "training-operator": ("training-operator", "system:masters"),
}


def create(folder: Path, *, node: str, addresses: Iterable[str]) -> dict[str, str]:
    """Write authority, server and client certificates, the service accounts' key and the tokens.

    Returns token by identity name. `addresses` are those at which the API server and the training operator are reached.
    """
    folder.mkdir(mode=0o700)
    # The training operator reads the authority's key only as RSA in its old form (PKCS #1).
    _openssl("genrsa", "-traditional", "-out", f"{folder}/ca.key", "2048")
    _openssl(
        *("req", "-x509", "-key", f"{folder}/ca.key", "-out", f"{folder}/ca.crt", "-days", _DAYS),
        # The training operator takes an authority for its own only by this name.
        *(
            "-subj",
            "/O=training-operator/CN=training-operator-ca",
            "-addext",
            "subjectAltName=DNS:training-operator-ca",
        ),
    )
    names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "training-operator.kubeflow.svc",
    ]
    alternatives = [f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses]
    _certificate(folder, "server", "/CN=localhost", ",".join(alternatives), "serverAuth")
    _certificate(folder, "kubelet-client", "/O=system:masters/CN=kube-apiserver", "DNS:kube-apiserver", "clientAuth")
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{folder}/service-accounts.key")
    identities = _IDENTITIES | {"kubelet": (f"system:node:{node}", "system:nodes")}
    tokens = {name: secrets.token_hex(16) for name in identities}
    lines = [f'{tokens[name]},{user},{name},"{groups}"\n' for name, (user, groups) in identities.items()]
    tokens_file = folder / "tokens.csv"
    tokens_file.touch(mode=0o600)
    tokens_file.write_text("".join(lines))
    return tokens


def _certificate(folder: Path, name: str, subject: str, alternatives: str, use: str) -> None:
    _openssl(
        *("req", "-x509", *_KEY, "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.crt", "-days", _DAYS),
        *("-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key", "-subj", subject),
        *("-addext", f"subjectAltName={alternatives}", "-addext", f"extendedKeyUsage={use}"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
    )


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`openssl {' '.join(arguments)}` failed: {done.stderr.strip()}")
