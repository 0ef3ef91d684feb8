"""check.py SCHEMAS FOLDER...: renders every folder's kustomization and validates each object.

Kubernetes' own kinds against its schemas, others against SCHEMAS. Prints a line for every fault and
ends with 1 if there is one. What the API server computes (CEL rules, admission) is not checked.
"""

import json
import pathlib
import sys

import jsonschema
import kubernetes_validate

from render import is_core, key, objects

KUBERNETES = "1.37"


def fault(found, schemas):
    """What is wrong with an object, or None."""
    try:
        if is_core(found):
            kubernetes_validate.validate(found, KUBERNETES, strict=True)
        elif key(found) in schemas:
            jsonschema.Draft202012Validator(schemas[key(found)]).validate(found)
        else:
            return f"no schema of {key(found)}; prune.py adds it"
    except jsonschema.ValidationError as error:
        place = ".".join(str(step) for step in error.absolute_path)
        return f"{place or 'the object'}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return error.message
    return None


def main(schemas, *folders):
    schemas = json.loads(pathlib.Path(schemas).read_text())
    n_faults = 0
    for folder in folders:
        rendered = objects(folder)
        name = pathlib.Path(folder).name
        for found in rendered:
            said = fault(found, schemas)
            if said:
                n_faults += 1
                print(f"{name}: {found['kind']} {found['metadata']['name']}: {said}")
        n_core = sum(map(is_core, rendered))
        n_custom = len(rendered) - n_core
        print(f"{name}: {n_core} of Kubernetes' own objects, {n_custom} of others")
    return 1 if n_faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
