"""prune.py CRDS FOLDER...: schemas.json of the kinds that the manifests use.

CRDS has files of CustomResourceDefinitions as their projects publish them: KEDA and Prometheus's
operator (config/crd/bases, example/prometheus-operator-crd), the Gateway API (config/crd/standard)
and its Inference Extension. Of each schema remain the fields that some manifest has and those that
are required. All others are refused as unknown, so run this again when a manifest uses another one.
"""

import json
import pathlib
import sys

import yaml

from render import is_core, key, objects

KEPT = {
    "type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems",
    "maxItems", "minProperties", "maxProperties", "required", "anyOf", "oneOf",
}
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def definitions(folder):
    """Schemas by version and kind."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.yaml")):
        for crd in yaml.safe_load_all(path.read_text()):
            spec = crd["spec"]
            for version in spec["versions"]:
                name = f"{spec['group']}/{version['name']} {spec['names']['kind']}"
                found[name] = version["schema"]["openAPIV3Schema"]
    return found


def pruned(schema, values):
    """The schema of what these values have; `values` are all that manifests have in this place."""
    kept = {name: value for name, value in schema.items() if name in KEPT}
    if schema.get("x-kubernetes-int-or-string"):
        kept["type"] = ["integer", "string"]
        kept.pop("anyOf", None)
    if "items" in schema:
        elements = [element for value in values if isinstance(value, list) for element in value]
        kept["items"] = pruned(schema["items"], elements)
    held = [value for value in values if isinstance(value, dict)]
    if "properties" in schema:
        used = {name for value in held for name in value} | set(schema.get("required", []))
        kept["properties"] = {
            name: pruned(of_name, [value[name] for value in held if name in value])
            for name, of_name in schema["properties"].items()
            if name in used
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        elements = [element for value in held for element in value.values()]
        kept["additionalProperties"] = pruned(schema["additionalProperties"], elements)
    return kept


def main(crds, *folders):
    upstream = definitions(crds)
    by_kind = {}
    for folder in folders:
        for found in objects(folder):
            if not is_core(found):
                by_kind.setdefault(key(found), []).append(found)
    schemas = {}
    for name, values in sorted(by_kind.items()):
        if name not in upstream:
            sys.exit(f"{crds} has no {name}")
        schema = pruned(upstream[name], values)
        schema["properties"]["metadata"] = METADATA
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        schemas[name] = schema
    path = pathlib.Path(__file__).with_name("schemas.json")
    lines = (f"{json.dumps(name)}: {json.dumps(schema)}" for name, schema in schemas.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
