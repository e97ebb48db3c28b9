"""Scripted faults: what goes wrong, for which call, and how often. `api_faults` and `download_faults` perform them."""

import threading
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

FaultCall = Literal["submit", "status", "result", "image", "callback"]

#: For submit and status. "Processed" means that a submit has created the task, which is charged.
ApiKind = Literal[
    "reset_before",  # connection reset, nothing done
    "reset_after",  # processed, then the connection is reset without a reply
    "hang",  # nothing done, no answer
    "hang_after",  # processed, no answer
    "slow",  # processed, the correct answer trickles in
    "http_429",
    "http_500",
    "http_500_after",  # processed, then 500
    "http_502_html",
    "http_503",
    "http_402",  # in the API's envelope, as are the next two
    "http_403",
    "http_404",
    "http_403_html",  # a gateway's page
    "http_404_html",
    "http_400",  # "Invalid parameters" for a submit
    "http_400_credits",  # "Insufficient credits"
    "http_400_html",  # a gateway's page
    "http_400_model",  # "MODEL_UNAVAILABLE"
    "http_400_error",  # {"error": "…"} as the data, as in http_401_error
    "http_401",
    "http_401_error",
    "http_402_no_data",  # an envelope without data, as in http_404_no_data
    "http_403_content",  # a 403 about the content, not about the key
    "http_404_no_data",
    "http_400_code_200",  # in these five, the HTTP status differs from the code in the body; nothing done
    "http_400_code_500",
    "http_402_code_403",
    "http_500_code_400",
    "http_503_code_200",
    "redirect",  # to the same path, nothing done
    "code_400_body",  # HTTP 200, code 400 in the body
    "code_401_body",
    "code_402_body",
    "code_403_body",
    "code_404_body",
    "code_429_body",
    "code_500_body",
    "code_503_body",
    "code_400_after",  # processed, then HTTP 200 with code 400, but with the task in the data
    "junk",  # processed, the body is not JSON
    "half_json",  # processed, the body stops in the middle
    "wrong_types",  # processed; these four have code 200 and a damaged envelope
    "missing_fields",
    "null_data",
    "no_data",
    "text_code",  # processed, the code of the correct answer is the text "200"
    "huge_body",  # processed, the correct answer after 50 MB of padding
]
#: For submit only.
SubmitKind = Literal["number_id"]  # processed, and the task id is a number
#: For status only.
StatusKind = Literal[
    "unknown_state",
    "stuck_state",  # the state is `expired`, without a failCode
    "failed",  # the task fails, with `fail_code`
    "failed_once",  # only this reply reports the task as failed
    "result_json_broken",  # from here on, all but the last two wait for a reply with state success
    "result_json_empty",
    "result_json_object",
    "result_json_two",
    "result_json_elsewhere",  # no resultJson; the URL is in `videos`
    "success_upper",  # the state is SUCCESS
    "success_completed",  # the state is completed
    "task_unknown",
    "other_task",
]
ResultKind = Literal[
    "cut",  # the correct length is declared, the connection is closed half-way
    "html_200",
    "empty",
    "truncated_mp4",  # a complete transfer of the first 60 % of the video
    "other_duration",
    "other_orientation",
    "redirect",  # to a URL that works
    "redirect_private",
    "http_403",
    "http_404",
    "http_500",
    "http_502_html",
    "http_429",
    "reset_before",  # connection reset, nothing sent
    "hang",  # no answer
    "slow",  # the whole video trickles in
    "huge_body",  # 3 GiB are declared, the video is sent, the connection is closed
    "no_range",  # answers a Range request with the whole video
    "no_length",  # chunked
    "labeled",  # the whole video, with Content-Encoding: aws-chunked
    "framed",  # the whole video, in the chunk framing of an S3 upload
    "long_length",  # the whole video, declared one byte longer
    "gif",  # the video as an animated GIF with the type video/mp4
]
ImageKind = Literal[
    "http_404",
    "http_500",
    "gif_named_jpg",
    "too_big",
    "endless",
    "redirect_private",
    "truncated",
    "html",
]
CallbackKind = Literal[
    "drop",  # never sent
    "twice",
    "early",  # sent once, as soon as the task exists, and never again
    "junk",
    "late",  # `seconds` after it was due
]
FaultKind = ApiKind | SubmitKind | StatusKind | ResultKind | ImageKind | CallbackKind

KINDS: dict[FaultCall, frozenset[str]] = {
    "submit": frozenset(get_args(ApiKind) + get_args(SubmitKind)),
    "status": frozenset(get_args(ApiKind) + get_args(StatusKind)),
    "result": frozenset(get_args(ResultKind)),
    "image": frozenset(get_args(ImageKind)),
    "callback": frozenset(get_args(CallbackKind)),
}
#: Damage that only a reply with a result can have.
NEEDS_SUCCESS = frozenset(kind for kind in get_args(StatusKind) if kind.startswith(("result_json", "success")))


class Fault(BaseModel):
    """One thing that goes wrong. Only GETs of downloads are damaged: a HEAD is unaffected, and uses up no fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    call: FaultCall = Field(description="The call that it affects; `image`: requests for sample images.")
    kind: FaultKind
    times: int = Field(1, ge=-1, description="How many matching requests get it; -1: all.")
    skip: int = Field(0, ge=0, description="How many matching requests are unaffected first.")
    model: str | None = Field(None, description="Limits it to calls for this model.")
    prompt_contains: str | None = Field(None, description="Limits it to tasks with this text in their prompt.")
    seconds: float = Field(
        0, ge=0, description="Real seconds, not scaled by `speed`. A hang of 0 lasts until the caller gives up."
    )
    fail_code: str = Field("SOMETHING_NEW", description="The failCode of a task that is reported as failed.")
    retry_after: str | None = Field(None, description="Value of the Retry-After header of any `http_…` kind.")

    @model_validator(mode="after")
    def _kind_fits_the_call(self) -> Self:
        if self.kind not in KINDS[self.call]:
            raise ValueError(f"kind {self.kind!r} is not for {self.call}; use one of {sorted(KINDS[self.call])}")
        return self


class _Entry:
    """One fault, with how often it still skips and applies."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.skip, self.left = fault, fault.skip, fault.times


class FaultScript:
    """The faults that are still pending. Safe to change from any thread while the sandbox runs.

    A request gets the first fault that matches it and is not used up. A fault counts a request toward its `skip`
    only if no fault before it applied to that request.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._entries.extend(_Entry(fault) for fault in faults)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def pending(self) -> list[Fault]:
        """The faults that may still happen. Empty: everything scripted has happened."""
        with self._lock:
            return [entry.fault for entry in self._entries if entry.left]

    def take(
        self,
        call: str,
        *,
        prompt: str | None = None,
        model: str | None = None,
        succeeded: bool = False,
        early: bool | None = None,
    ) -> Fault | None:
        """The fault for a new request, which uses it up once.

        `succeeded`: whether the requested task has a result. `early`: for a callback, whether the kind must be `early`
        or another one. That one is decided when the task begins, the others when it ends.
        """
        with self._lock:
            for entry in self._entries:
                fault = entry.fault
                matches = (
                    (fault.call == call and entry.left)
                    and (fault.prompt_contains or "") in (prompt or "")
                    and fault.model in (None, model)
                    and (fault.kind not in NEEDS_SUCCESS or succeeded)
                    and (early is None or early == (fault.kind == "early"))
                )
                if not matches:
                    continue
                if entry.skip:
                    entry.skip -= 1
                    continue
                entry.left -= entry.left > 0
                return fault
        return None
