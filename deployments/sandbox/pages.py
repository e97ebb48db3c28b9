"""The front page: describes the sandbox and lists its tasks."""

import time
from html import escape

from deployments.sandbox.landscapes import SAMPLES
from deployments.sandbox.settings import SandboxSettings
from deployments.sandbox.tasks import Task, TaskBoard

#: How many of the newest tasks the page lists; /sandbox/tasks has all of them.
MOST_ROWS = 200

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>APIXO sandbox</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem; color: #221c2c }}
h1 {{ font-weight: 600; margin-bottom: .2rem }} code {{ background: #f4efe9; padding: .1rem .3rem; border-radius: 3px }}
.samples {{ display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0 }}
.samples img {{ width: 9rem; border-radius: 6px; display: block }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #e6ded6; vertical-align: top }}
a {{ color: #a4462c }} .success {{ color: #2b7a4b }} .failed {{ color: #b3261e }}
</style>
</head>
<body>
<h1>APIXO sandbox</h1>
<p>A local fake of the APIXO video API. It behaves as documented, costs nothing, and draws its videos
locally. It runs {speed:g} times faster than real time.</p>
<p>Base URL <code>{base_url}</code>, sample images for image-to-video below, requests and tasks as JSON at
<a href="sandbox/requests">sandbox/requests</a> and <a href="sandbox/tasks">sandbox/tasks</a>.</p>
<div class="samples">{samples}</div>
<h2>Tasks: {count}</h2>
<table><tr><th>Task</th><th>State</th><th>Age</th><th>Prompt</th><th>Video</th></tr>{rows}</table>
</body>
</html>
"""


def front_page(settings: SandboxSettings, board: TaskBoard, base_url: str) -> str:
    """The page as HTML, newest task first. `base_url` is the URL at which the reader reached the sandbox."""
    tasks = board.all()
    samples = "".join(
        f'<a href="samples/{name}.jpg"><img src="samples/{name}.jpg" alt="{name}">{name}</a>' for name in SAMPLES
    )
    return _PAGE.format(
        speed=settings.speed,
        base_url=escape(base_url.rstrip("/")),
        samples=samples,
        count=len(tasks),
        rows="".join(_row(task, board, base_url) for task in reversed(tasks[-MOST_ROWS:])),
    )


def _row(task: Task, board: TaskBoard, base_url: str) -> str:
    video = escape(task.fail_code or "")
    if task.state == "success" and task.expires_at is not None:
        url = escape(board.links.make(base_url, task.task_id, task.expires_at), quote=True)
        video = "expired" if task.expired else f'<a href="{url}">{task.request.input.seconds} s</a>'
    prompt = escape(task.request.input.prompt[:160])
    age = f"{time.time() - task.created_at:.0f} s"
    state = f'<span class="{task.state}">{task.state}</span>'
    return (
        f"<tr><td><code>{task.task_id}</code></td><td>{state}</td><td>{age}</td><td>{prompt}</td><td>{video}</td></tr>"
    )
