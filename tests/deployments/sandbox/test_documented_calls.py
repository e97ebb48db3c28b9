"""Sends the calls in the provider's documentation and in its public MCP client, verbatim, to the sandbox."""

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest

from deployments.sandbox import SandboxServer
from tests.deployments.sandbox.caller import KEY, Caller, urls

API: Final = "https://api.apixo.ai"
TEXT: Final = """curl -X POST https://api.apixo.ai/api/v1/generateTask/sora-2 \\
  -H "Authorization: Bearer YOUR_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{
    "request_type": "async",
    "provider": "official",
    "input": {
      "mode": "text-to-video",
      "prompt": "A red kite over dunes, slow dolly in, golden hour",
      "duration": 4,
      "aspect_ratio": "landscape",
      "remove_watermark": true
    }
  }'"""
IMAGE: Final = """curl -X POST https://api.apixo.ai/api/v1/generateTask/sora-2 \\
  -H "Authorization: Bearer YOUR_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{
    "request_type": "callback",
    "callback_url": "https://api.apixo.ai/your-callback",
    "provider": "official",
    "input": {
      "mode": "image-to-video",
      "prompt": "The harbor wakes up",
      "duration": 8,
      "aspect_ratio": "portrait",
      "image_urls": ["https://api.apixo.ai/samples/harbor.jpg"]
    }
  }'"""
OTHER_MODEL: Final = """curl -X POST https://api.apixo.ai/api/v1/generateTask/kling-2-6 \\
  -H "Authorization: Bearer YOUR_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{
    "request_type": "async",
    "provider": "auto",
    "input": {
      "mode": "text-to-video",
      "prompt": "Dunes at dusk",
      "duration": 5,
      "aspect_ratio": "16:9",
      "sound": true
    }
  }'"""
STATUS: Final = """curl -X GET "https://api.apixo.ai/api/v1/statusTask/MODEL?taskId=TASK_ID" \\
  -H "Authorization: Bearer YOUR_API_KEY\""""
BALANCE: Final = """curl -X GET "https://api.apixo.ai/api/v1/apikeys/current-balance" \\
  -H "Authorization: Bearer YOUR_API_KEY\""""

Run = Callable[..., dict[str, Any]]


def by_httpx(line: str) -> dict[str, Any]:
    """Sends exactly what a curl command would send (method, URL, headers and body), without curl."""
    words = iter(shlex.split(line.replace("\\\n", " "))[1:])
    method, url, headers, body = "GET", "", {}, None
    for word in words:
        match word:
            case "-X":
                method = next(words)
            case "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            case "-d":
                body = next(words).encode()
            case _:
                url = word
    with httpx.Client(trust_env=False) as client:
        return dict(client.request(method, url, headers=headers, content=body).json())


def by_curl(line: str) -> dict[str, Any]:
    done = subprocess.run(
        ["sh", "-c", line.replace("curl", "curl --silent --show-error --noproxy '*'", 1)],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


RUNS: Final = [by_httpx, *([by_curl] if shutil.which("curl") else [])]


@pytest.fixture(params=RUNS, ids=lambda run: run.__name__)
def run(request: pytest.FixtureRequest, sandbox: SandboxServer) -> Run:
    """Runs a curl command verbatim, except for the host and the key."""

    def run_line(line: str, key: str = KEY) -> dict[str, Any]:
        return dict(request.param(line.replace(API, sandbox.base_url).replace("YOUR_API_KEY", key)))

    return run_line


@pytest.mark.parametrize(("line", "model"), [(TEXT, "sora-2"), (IMAGE, "sora-2"), (OTHER_MODEL, "kling-2-6")])
def test_documented_call_is_accepted_polled_and_fetched(
    line: str, model: str, run: Run, sandbox: SandboxServer, call: Caller
) -> None:
    before = run(BALANCE)
    submitted = run(line)
    assert (submitted["code"], submitted["message"], list(submitted["data"])) == (200, "success", ["taskId"])
    task_id = submitted["data"]["taskId"]
    status = STATUS.replace("MODEL", model).replace("TASK_ID", task_id)
    polled = run(status)
    assert (polled["code"], polled["data"]["taskId"]) == (200, task_id)
    while polled["data"]["state"] not in ("success", "failed"):
        assert polled["data"]["state"] in ("pending", "processing")
        time.sleep(0.02)
        polled = run(status)
    assert set(polled["data"]) == {"taskId", "state", "createTime", "resultJson", "completeTime", "costTime"}
    (url,) = urls(polled["data"])
    assert call.http.get(url).content[4:8] == b"ftyp"
    (posted,) = sandbox.record.submits()
    assert (posted.model, posted.charged) == (model, True)
    after = run(BALANCE)
    assert (before["code"], after["code"]) == (200, 200)
    assert before["data"] - after["data"] == sandbox.settings.task_price


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (TEXT.replace('"prompt": "A red kite over dunes, slow dolly in, golden hour",', ""), 400),
        (TEXT.replace('"duration": 4', '"duration": 5'), 400),
        (TEXT.replace("sora-2", "sora-9"), 404),
        (STATUS.replace("MODEL", "sora-2").replace("TASK_ID", "task_12345678"), 400),
    ],
)
def test_invalid_call_gets_the_documented_error_envelope(
    line: str, code: int, run: Run, sandbox: SandboxServer
) -> None:
    rejected = run(line)
    assert set(rejected) == {"code", "message", "data"}
    assert (rejected["code"], rejected["data"]) == (code, None)
    assert sandbox.record.charged() == []


@pytest.mark.parametrize("line", [TEXT, STATUS, BALANCE], ids=["submit", "status", "balance"])
def test_wrong_key_is_401(line: str, run: Run, sandbox: SandboxServer) -> None:
    assert run(line, "somebody")["code"] == 401
    assert sandbox.record.charged() == []


async def test_calls_of_public_mcp_client_succeed(sandbox: SandboxServer) -> None:
    """Its three calls as it makes them: without `provider`, with a `source` tag, with a content type even on GET."""
    headers = {
        "Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "User-Agent": "apixo-mcp-server/0.2.1",
    }  # fmt: skip
    payload = {
        "request_type": "async",
        "input": {"mode": "text-to-video", "prompt": "Dunes at dusk", "duration": 4, "aspect_ratio": "landscape"},
        "source": "mcp",
    }
    async with httpx.AsyncClient(base_url=sandbox.base_url, headers=headers, trust_env=False) as client:
        submitted = await client.post("/api/v1/generateTask/sora-2", content=json.dumps(payload))
        assert submitted.status_code == 200
        task_id = submitted.json()["data"]["taskId"]
        polled = await client.get("/api/v1/statusTask/sora-2", params={"taskId": task_id})
        assert (polled.status_code, polled.json()["data"]["taskId"]) == (200, task_id)
        balance = await client.get("/api/v1/apikeys/current-balance")
        assert set(balance.json()) == {"code", "message", "data"}
        assert balance.json()["data"] == 10_000 - sandbox.settings.task_price * len(sandbox.tasks)
    assert len(sandbox.record.charged()) == 1
