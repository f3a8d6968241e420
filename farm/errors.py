"""What can go wrong, and what does the reader do next?

::

    FarmError                     code                 exit  HTTP
    ├── InvalidJob                invalid_job …        2     422   a field is wrong; `errors` names each
    ├── BadRequest                bad_request …        1     400   what was sent cannot be read
    │   ├── BodyTooLarge          body_too_large       1     413
    │   ├── HeadTooLarge          head_too_large       1     431
    │   ├── BodyTooSlow           body_too_slow        1     408
    │   └── BadMediaType          bad_media_type       1     415
    ├── Unauthorized              unauthorized         1     401   no token, or one that does not hold
    ├── Forbidden                 forbidden            1     403   the token's scopes do not cover the call
    ├── NotFound                  not_found            1     404   also what belongs to somebody else
    ├── Conflict                  conflict             1     409
    ├── RateLimited               rate_limited         1     429   the caller's own limit; again after `retry_after_s`
    │   └── QuotaExceeded         quota_exceeded       1     429   the same, until some of the caller's jobs have ended
    ├── Unavailable               unavailable          4     503   try again after `retry_after_s`
    │   └── Busy                  busy                 4     503   the same; nothing was done, and no part is away
    ├── BadBlob                   bad_blob             1     500   stored bytes are gone or not what they should be
    ├── StaleToken                stale_token          1     409   a worker lost its lease
    └── StageFailed               stage_failed …       3     500   `failure` says how the ledger charges it

`code` is stable snake_case and may be narrower than the class's own: `CODES` lists all of them with their sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

CODES: dict[str, str] = {
    # submit-time refusals (InvalidJob)
    "invalid_job": "The job breaks a rule of its chain.",
    "invalid_field": "A field has the wrong type or is out of range.",
    "unknown_field": "A field is not known to this stage.",
    "unknown_kind": "No installed stage has this kind.",
    "unknown_checkpoint": "The catalog has no checkpoint of this name.",
    "unknown_preset": "There is no chain of this name, neither in the catalog nor saved.",
    "unknown_scheduler": "This scheduler is not one that the stage runs with.",
    "wrong_checkpoint": "The checkpoint is not made for this stage kind.",
    "unknown_adapter": "The catalog has no adapter of this name.",
    "wrong_adapter": "The adapter is of another type, or made for another family of checkpoints.",
    "not_pulled": "The checkpoint has not been pulled, so its hashes are not known.",
    "bad_length": "A chain has between one and eight stages.",
    "bad_size": "A width or height is not possible here.",
    "too_large": "An image of the chain would be larger than the farm allows.",
    "no_image": "The first stage redraws an image, and none was given.",
    "unused_image": "An image was given, but the first stage starts from noise.",
    "space_mismatch": "The latents of one stage mean nothing to the checkpoint of the next.",
    "medium_mismatch": "A stage does not take what the stage before it gives.",
    "schedule_mismatch": "A stage stops within its schedule, and the next one does not go on right there.",
    "no_steps": "strength × num_inference_steps is less than one step.",
    "bad_image": "The input image cannot be used.",
    "no_counterpart": "ComfyUI has no nodes for what a stage does.",
    "bad_file": "The file cannot be read as what it should be.",
    # rows of a dataset
    "bad_rows": "Rows of the file cannot be taken; each is named with what is wrong.",
    "unknown_column": "The file has no column of this name.",
    "bad_row": "A row of the file is not as its header, or its format, wants it.",
    "bad_cell": "A cell of the row is too long, or of a type that is not taken.",
    "bad_encoding": "A cell of the row is not UTF-8.",
    "bad_template": "The prompt's options or wildcards cannot be read, or mean too much.",
    # what a program sends over the network
    "bad_request": "What was sent cannot be read.",
    "invalid_json": "The body is not JSON, is nested too deep, or has an object of too many keys.",
    "duplicate_key": "An object of the body gives a key twice.",
    "invalid_unicode": "A text holds control characters or half a surrogate pair.",
    "bad_media_type": "A body of this type is not taken here.",
    "body_too_large": "The body is larger than the farm takes.",
    "head_too_large": "The headers are more, or longer, than the farm takes.",
    "body_too_slow": "The body did not come in time.",
    "method_not_allowed": "This address does not know the method.",
    "unauthorized": "The call needs a token, and the token must hold.",
    "forbidden": "The token's scopes do not cover this call.",
    "rate_limited": "The caller calls too often: again after Retry-After.",
    "too_many_streams": "So many event streams of this owner are open that it may have no more at once.",
    # the caller's world
    "not_found": "There is no such object.",
    "conflict": "The object's state does not allow this.",
    "disk_full": "The disk has no room for what is to be fetched.",
    "idempotency_conflict": "The idempotency key was used before, for another job.",
    "quota_exceeded": "So many jobs of this owner are open that it may have no more at once.",
    "unavailable": "A part of the farm cannot be reached.",
    "busy": "The farm's API has as many calls at once as it takes: again after Retry-After.",
    "farm_full": "The farm has as many unended jobs as it takes; nothing was stored.",
    "outcome_unknown": "The reply was lost: the same key, sent again, yields exactly one job.",
    "unsupported_server": "The server is of a kind that the farm does not run on.",
    # a worker's world
    "bad_blob": "Stored bytes are missing or not what they should be.",
    "stale_token": "The lease on this work is lost; its output is not taken.",
    "stage_failed": "A stage failed.",
    "nan_output": "The pipeline produced NaN or infinite values.",
    "image_lost": "An image that a stage names is gone from the store, or damaged.",
    "wrong_policy": "The job was submitted without the safety policy that the farm's workers have.",
    "unsafe_output": "The farm's safety checker refuses the picture.",
    "bad_prompt": "The prompt cannot be read in the syntax of weights that was asked for.",
    "bad_output": "The pipeline produced something else than the chain expects.",
    "gpu_oom": "The device's memory does not suffice for this stage.",
    "input_lost": "The committed input of a stage was lost too often.",
    "crashed": "The worker process died while it ran this stage.",
    "lapsed": "The lease on this stage ran out too often.",
    "deadline": "The job's deadline passed.",
    "bad_checkpoint": "The checkpoint's files are missing or not those that were recorded.",
    "transient": "A part that the worker needs could not be reached.",
    "internal": "An error that nobody foresaw.",
    "usage": "The command line is not understood.",
    "job_failed": "The job did not end as done.",
    "interrupted": "The command was interrupted.",
}
"""Every code with its sentence; a test holds that each is raised somewhere and that nothing else is."""


@dataclass(frozen=True)
class FieldError:
    """One wrong field: `loc` is its dotted path in what was sent, `msg` says what would be right."""

    loc: str
    msg: str
    code: str = "invalid_field"


class FarmError(Exception):
    """Something went wrong; see `code`."""

    code: str = "internal"
    http: ClassVar[int] = 500
    """The status that an HTTP answer has."""

    def __init__(self, message: str | None = None, *, code: str | None = None, hint: str = "") -> None:
        self.code = code or type(self).code
        self.message = message or CODES[self.code]
        self.hint = hint
        super().__init__(self.message)


class InvalidJob(FarmError):
    """Mend the fields named in `errors` and submit again; nothing was stored."""

    code = "invalid_job"
    http = 422

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        hint: str = "",
        errors: tuple[FieldError, ...] = (),
    ) -> None:
        if message is None and errors:
            message = "; ".join(f"{e.loc}: {e.msg}" for e in errors)
        super().__init__(message, code=code or (errors[0].code if errors else None), hint=hint)
        self.errors = errors


class BadRequest(FarmError):
    """Send a body that can be read; nothing was stored."""

    code = "bad_request"
    http = 400


class BodyTooLarge(BadRequest):
    """Send less at once; nothing was stored."""

    code = "body_too_large"
    http = 413


class HeadTooLarge(BadRequest):
    """Send fewer and shorter headers; nothing was done."""

    code = "head_too_large"
    http = 431


class BodyTooSlow(BadRequest):
    """Send the body faster, or in smaller parts; nothing was stored."""

    code = "body_too_slow"
    http = 408


class BadMediaType(BadRequest):
    """Send what the call takes, and name its type in Content-Type; nothing was stored."""

    code = "bad_media_type"
    http = 415


class Unauthorized(FarmError):
    """Send `Authorization: Bearer TOKEN`; `farm token create` makes a token."""

    code = "unauthorized"
    http = 401


class Forbidden(FarmError):
    """Use a token with the scope that the call needs."""

    code = "forbidden"
    http = 403


class NotFound(FarmError):
    """Check the id; the object may have passed its retention."""

    code = "not_found"
    http = 404


class Conflict(FarmError):
    """Look at the object's state first; this call is not possible in it."""

    code = "conflict"
    http = 409


class RateLimited(FarmError):
    """Wait `retry_after_s`, then call again; nothing was done."""

    code = "rate_limited"
    http = 429
    later_s: ClassVar[float] = 1.0

    def __init__(
        self, message: str | None = None, *, code: str | None = None, hint: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.retry_after_s = type(self).later_s if retry_after_s is None else retry_after_s


class QuotaExceeded(RateLimited):
    """Wait until some of your jobs have ended, or cancel some, then try again; nothing was stored."""

    code = "quota_exceeded"
    later_s = 30.0
    """When a job will end nobody knows; so often it is worth a look."""


class Unavailable(FarmError):
    """Try again after `retry_after_s`; the ledger, broker or store does not answer. `part`: which, where it is told."""

    code = "unavailable"
    http = 503
    part: str | None = None

    def __init__(
        self, message: str | None = None, *, code: str | None = None, hint: str = "", retry_after_s: float = 2.0
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.retry_after_s = retry_after_s


class Busy(Unavailable):
    """Try again after `retry_after_s`; nothing was done, for too much was asked of the API at once."""

    code = "busy"


class BadBlob(FarmError):
    """Make the artifact again: its bytes are missing, or are not those that were committed."""

    code = "bad_blob"


class StaleToken(FarmError):
    """Drop the work: another worker holds the stage now, or the stage has ended."""

    code = "stale_token"
    http = 409


class Failure(StrEnum):
    """How the ledger charges a failed stage (design: attempts)."""

    CRASH = "crash"
    """The process died, or an error nobody foresaw: 3 charges, then quarantined."""
    OOM = "oom"
    """Out of device memory: 2 charges, then failed."""
    TRANSIENT = "transient"
    """S3, Redis or the network: again with back-off until the deadline."""
    DETERMINISTIC = "deterministic"
    """It would fail the same way again: failed at once."""


class StageFailed(FarmError):
    """Read `code` and `message`; `failure` tells whether the farm tries again by itself."""

    code = "stage_failed"

    def __init__(
        self,
        message: str | None = None,
        *,
        failure: Failure = Failure.DETERMINISTIC,
        code: str | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.failure = failure
