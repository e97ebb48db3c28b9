"""The script of the README: `make check` type-checks it, and a test checks that the README still shows it."""

import asyncio

from apixo import VideoRequest
from flows.generate_video import generate_video

request = VideoRequest(prompt="A red kite over dunes, slow dolly in, golden hour", duration=4)
generation = asyncio.run(generate_video(request, key="kite-02"))
print(generation.state, generation.video.name if generation.video else "")
