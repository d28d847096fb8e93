"""Makes tests/launch/schemas from the custom resource definitions of JobSet and Kueue.

    python scripts/crd_schemas.py CRD.yaml ... --out=tests/launch/schemas

A schema is that of the newest served version, without its texts, and refuses unknown fields, which an API server would
drop or refuse: every object with named properties gets `additionalProperties: false`.
"""

import argparse
import json
import pathlib

import yaml


def strict(schema):
    """Returns an OpenAPI schema of Kubernetes as JSON schema that refuses unknown fields."""
    kept = {name: value for name, value in schema.items() if name not in ("description", "default")}
    kept = {name: value for name, value in kept.items() if not name.startswith("x-kubernetes")}
    if "properties" in kept:
        kept["properties"] = {name: strict(one) for name, one in kept["properties"].items()}
        kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields", False))
    for name in ("items", "additionalProperties", "not"):
        if isinstance(kept.get(name), dict):
            kept[name] = strict(kept[name])
    if schema.get("x-kubernetes-int-or-string"):
        kept["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return kept


def main():
    """Writes KIND.json for every file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    for file in arguments.files:
        spec = yaml.safe_load(file.read_text())["spec"]
        version = next(one for one in spec["versions"] if one["storage"])
        schema = strict(version["schema"]["openAPIV3Schema"])
        # The API server checks metadata by itself, and what it writes is not given.
        schema["properties"].pop("status", None)
        schema["properties"]["apiVersion"] = {"const": f"{spec['group']}/{version['name']}"}
        schema["properties"]["kind"] = {"const": spec["names"]["kind"]}
        schema["required"] = sorted({*schema.get("required", []), "apiVersion", "kind", "metadata"})
        text = json.dumps(schema, separators=(",", ":"), sort_keys=True)
        (arguments.out / f"{spec['names']['kind']}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
