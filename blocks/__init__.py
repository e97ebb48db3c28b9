"""The blocks that users configure in the Prefect UI: how to reach the API, and where videos are kept."""

from blocks.apixo_api import ApixoApi
from blocks.video_archive import VideoArchive

__all__ = ["ApixoApi", "VideoArchive"]
