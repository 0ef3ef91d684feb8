"""What the checks of all clients in Python share: the server, and one line a check."""

import faulthandler
import json
import os
import sys
import traceback
import urllib.request

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000/v1"
API_KEY = os.environ.get("OPENAI_API_KEY", "none")
# Of all checks together; a client that waits forever ends with a traceback instead.
LIMIT_S = 600
# Of one request.
TIMEOUT_S = 120


def fetch(path, body=None):
    """The server's JSON at a path, without any client in between."""
    headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE_URL.removesuffix("/v1") + path, data, headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return json.load(answer)


MODEL = fetch("/v1/models")["data"][0]["id"]


def token_of(text):
    """The one token that this text is."""
    (token,) = fetch("/tokenize", {"prompt": text})["tokens"]
    return str(token)


def stop_in(text):
    """A few characters from the middle of a text, none of which stands for broken ones."""
    return next(piece for piece in text[len(text) // 2 :].split("\ufffd") if piece)[:4]


def expect(kind, call):
    """Calls what has to raise this exception, and gives it back."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("the request was accepted")


def run(checks):
    """Prints one PASS or FAIL line a check; the exit code is 1 if any failed."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    n_failed = 0
    for check in checks:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            check()
        except Exception as error:
            n_failed += 1
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if frame.filename == check.__code__.co_filename]
            said = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"FAIL {name}: line {own[-1].lineno}: {said}", flush=True)
        else:
            print(f"PASS {name}", flush=True)
    if n_failed:
        print(f"{n_failed} of {len(checks)} checks failed with model {MODEL}")
        sys.exit(1)
    print(f"all {len(checks)} checks passed with model {MODEL}")
