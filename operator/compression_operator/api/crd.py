"""The CustomResourceDefinition, written from the models: `python -m compression_operator.api.crd [FILE]`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from .run import GROUP, KIND, PLURAL, VERSION, CompressionRun
from .schema import Schema, structural_schema

NAME = f"{PLURAL}.{GROUP}"
DEFAULT_FILE = Path("crds") / f"{NAME}.yaml"
WIDTH = 120
"""Columns of the file, as of all others here. Its size is no limit: `kubectl apply` keeps the JSON (see the tests)."""

HEADER = "# Written by `make crds` from the models in operator/compression_operator/api. Do not edit.\n"

_TYPE_META = {
    "apiVersion": "APIVersion defines the versioned schema of this representation of an object.",
    "kind": "Kind is a string value representing the REST resource this object represents.",
}


def custom_resource_definition() -> dict[str, Any]:
    """The CRD as apiextensions.k8s.io/v1."""
    schema = structural_schema(CompressionRun)
    properties = schema["properties"]
    # The API server checks these three by itself and takes no word on them from a CRD.
    for field, description in _TYPE_META.items():
        properties[field] = {"description": description, "type": "string"}
    properties["metadata"] = {"type": "object"}
    properties["spec"] = with_defaults_described(properties["spec"])
    schema["required"] = ["spec"]
    del properties["status"]["default"]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "compression-operator"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["crun"],
                "categories": ["compression"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _columns(),
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def with_defaults_described(node: Schema) -> Schema:
    """The schema with each field's default in its description, because `kubectl explain` shows no `default`."""
    told = {key: with_defaults_described(child) if key in _NESTED else child for key, child in node.items()}
    if "properties" in node:
        told["properties"] = {name: with_defaults_described(child) for name, child in node["properties"].items()}
    default = node.get("default")
    if default not in (None, {}, ""):
        told["description"] = f"{node.get('description', '')} Default: {_written(default)}.".lstrip()
    return told


_NESTED = ("items", "additionalProperties")


def _written(default: bool | float | str | list[Any]) -> str:
    """A default as one writes it in a manifest."""
    if isinstance(default, float) and 0 < default < 1e-3:
        mantissa, exponent = f"{default:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return json.dumps(default, separators=(",", ":")).strip('"')


def _columns() -> list[dict[str, Any]]:
    def column(name: str, path: str, kind: str, description: str, wide: bool = False) -> dict[str, Any]:
        entry = {"name": name, "type": kind, "jsonPath": path, "description": description}
        return entry | ({"priority": 1} if wide else {})

    ready = ".status.conditions[?(@.type=='Ready')]"
    return [
        column("Phase", ".status.phase", "string", "Phase of the earliest unfinished step."),
        column("Ready", f"{ready}.status", "string", "Whether every student has been exported."),
        column("Reason", f"{ready}.reason", "string", "Reason of the Ready condition."),
        column("Teacher", ".spec.teacher.model", "string", "The model to compress.", wide=True),
        column("Message", f"{ready}.message", "string", "Message of the Ready condition.", wide=True),
        column("Age", ".metadata.creationTimestamp", "date", "Time since the run was created."),
    ]


def crd_text() -> str:
    """The CRD as the YAML file that is checked in."""
    # No aliases: equal parts are written out, as other tools read only plain YAML.
    dumper = type("Plain", (yaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})  # pyright: ignore[reportUnknownLambdaType]
    return HEADER + yaml.dump(custom_resource_definition(), Dumper=dumper, sort_keys=False, width=WIDTH)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Write the CustomResourceDefinition from the models.")
    parser.add_argument("file", nargs="?", type=Path, default=DEFAULT_FILE, help="where to (default: %(default)s)")
    file = parser.parse_args(arguments).file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(crd_text())


if __name__ == "__main__":
    main(sys.argv[1:])
