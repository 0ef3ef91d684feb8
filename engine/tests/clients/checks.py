"""What the checks of OpenAI's Python client share: the client, and one line a check."""

import os
import sys

import openai

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000/v1"

client = openai.OpenAI(
    base_url=BASE_URL, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=0, timeout=300
)
MODEL = client.models.list().data[0].id


def expect_error(status, call, *, param=None):
    try:
        call()
    except openai.APIStatusError as error:
        assert error.status_code == status, (error.status_code, error.body)
        # The client unwraps {"error": {...}}.
        assert isinstance(error.body, dict) and error.body.get("message"), error.body
        assert error.body.get("type"), error.body
        if param:
            # "stop[0]" names the field "stop" and the item.
            assert error.body["param"].split("[")[0] == param, error.body
        return error.body["message"]
    raise AssertionError("the request was accepted")


def run(checks):
    """Prints one PASS line a check; the first failure ends it with exit code 1."""
    for check in checks:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            check()
        except Exception as error:
            print(f"FAIL {name}: {type(error).__name__}: {error}", flush=True)
            sys.exit(1)
        print(f"PASS {name}", flush=True)
    print(f"all {len(checks)} checks passed with model {MODEL}")
