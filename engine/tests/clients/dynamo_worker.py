"""A Dynamo worker that stands for one HTTP engine: it registers while the engine is ready, and forwards
chats.

    python3 dynamo_worker.py http://127.0.0.1:30000 MODEL

Discovery is the folder of DYN_FILE_KV; no etcd and no NATS.
"""

import asyncio
import json
import sys

import aiohttp
from dynamo.llm import ModelInput, ModelType, WorkerType, register_model
from dynamo.runtime import DistributedRuntime

URL, MODEL = sys.argv[1:3]
# Between two looks at the engine's readiness.
INTERVAL_S = 0.2


async def is_ready(session):
    try:
        async with session.get(URL + "/readiness", timeout=aiohttp.ClientTimeout(total=2)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def follow(session, endpoint):
    """Gives the router this worker exactly while its engine is ready."""
    was_ready = True
    while True:
        await asyncio.sleep(INTERVAL_S)
        ready = await is_ready(session)
        if ready and not was_ready:
            await endpoint.register_endpoint_instance()
        elif was_ready and not ready:
            await endpoint.unregister_endpoint_instance()
        was_ready = ready


async def main():
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp", event_plane="zmq")
    endpoint = runtime.endpoint("fleet.engine.generate")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def generate(request, context=None):
            # The frontend makes one object of a stream where its client asked for one.
            body = dict(request) | {"stream": True, "stream_options": {"include_usage": True}}
            async with session.post(URL + "/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status} {await answer.text()}")
                async for line in answer.content:
                    event = line.decode().removeprefix("data:").strip()
                    if event and event != "[DONE]":
                        yield json.loads(event)

        await register_model(
            ModelInput.Text,
            ModelType.Chat,
            endpoint,
            MODEL,
            MODEL,
            worker_type=WorkerType.Aggregated,
            skip_model_assets=True,
        )
        following = asyncio.create_task(follow(session, endpoint))
        await endpoint.serve_endpoint(generate, graceful_shutdown=True)
        following.cancel()


asyncio.run(main())
