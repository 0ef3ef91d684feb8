"""What the checks of OpenAI's Python client share: the client and its errors."""

import openai

from checks import API_KEY, BASE_URL, TIMEOUT_S

client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=TIMEOUT_S)


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
