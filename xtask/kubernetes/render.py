"""Renders a folder's kustomization and reads what comes out; `render.py FOLDER` prints it as JSON."""

import json
import os
import subprocess
import sys

import yaml


def objects(folder):
    kubectl = os.environ.get("KUBECTL", "kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{folder}: kubectl kustomize: {done.stderr.strip()}")
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def key(found):
    return f"{found['apiVersion']} {found['kind']}"


def is_core(found):
    """Whether the kind is in Kubernetes' own release."""
    return found["apiVersion"].split("/")[0] in {
        "v1", "apps", "policy", "networking.k8s.io", "rbac.authorization.k8s.io",
    }


if __name__ == "__main__":
    json.dump(objects(sys.argv[1]), sys.stdout)
