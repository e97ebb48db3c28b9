"""An upstream flow that decides what to film. Each of its completed runs becomes a video.

The flow itself has no code for videos. The deployment `after-storyboard`, in the prefect.yaml next to this file, is
triggered by its completion, and reads the scene from its parameters.
"""

from typing import Literal

from prefect import flow
from prefect.logging import get_run_logger


@flow(name="write-storyboard")
def write_storyboard(
    scene: str = "A lighthouse above a quiet sea, aerial view, orbiting shot, soft diffused light, calm",
    aspect_ratio: Literal["landscape", "portrait"] = "landscape",
) -> str:
    """Completes if there is something to film.

    Args:
        scene: What the video shows.
        aspect_ratio: The orientation of the video.
    """
    if not scene.strip():
        raise ValueError("The scene is empty: there is nothing to film.")
    get_run_logger().info("To film, in %s: %s", aspect_ratio, scene)
    return scene


if __name__ == "__main__":
    write_storyboard()
