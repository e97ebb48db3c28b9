"""Result addresses that carry a signature, like those of a storage service."""

import hashlib
import hmac
import secrets

#: Every task has one video; the second name serves the fault that reports two results.
VIDEO_NAMES = ("video.mp4", "video-2.mp4")


class ResultLinks:
    """Signs result addresses and checks them. The secret lives as long as the sandbox."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def make(self, base_url: str, task_id: str, expires_at: float, name: str = VIDEO_NAMES[0]) -> str:
        """The address of a video. `expires_at` in Unix seconds; `base_url` is how the caller reached the sandbox."""
        expires = str(int(expires_at))
        path_part, query_part = self._signatures(task_id, expires, name)
        return f"{base_url.rstrip('/')}/results/{task_id}/{path_part}/{name}?expires={expires}&sig={query_part}"

    def fits(self, *, task_id: str, signature: str, name: str, expires: str, sig: str) -> bool:
        """Whether an address was made here, and not changed since."""
        path_part, query_part = self._signatures(task_id, expires, name)
        given = f"{signature}/{sig}".encode()
        return hmac.compare_digest(given, f"{path_part}/{query_part}".encode())

    def _signatures(self, task_id: str, expires: str, name: str) -> tuple[str, str]:
        text = f"{task_id}\n{expires}\n{name}".encode()
        digest = hmac.new(self._secret, text, hashlib.sha256).hexdigest()
        return digest[:16], digest[16:]
