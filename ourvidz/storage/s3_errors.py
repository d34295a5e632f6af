"""What an error of the S3 library means. It has few classes; the rest is in its text.

The texts have the whole answer of the server, with the access key and what was signed: only the reason is
passed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import BaseError, InvalidPathError

from ourvidz.errors import NotFound, StorageError

LIBRARY_ERRORS = (BaseError, OSError, ValueError)
"""What the library raises."""
UNREADABLE_NAME = "unreadable_name"
"""The kind of the `StorageError` for a listing with a name that the library cannot read."""
_STATUS = re.compile(r"(?:\A|https?://\S+ in [^<]*?)status code: ([1-5][0-9]{2})")
"""Behind the URL of the request, which no key contains: before it is the key, which may be named so."""
_UNREADABLE = re.compile(r'Path "(.{0,1100}?)"(?: contained|: Encountered)', re.DOTALL)
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_NO_BUCKET = "NoSuchBucket"
_MEANINGS = {
    "InvalidAccessKeyId": "the server does not know this access key",
    "SignatureDoesNotMatch": "the secret does not belong to this access key",
    "InvalidToken": "the session token is not valid",
    "ExpiredToken": "the session token has expired",
    "AccessDenied": "this access key has no permission",
    "AllAccessDisabled": "this access key has no permission",
    _NO_BUCKET: "there is no such bucket; `ourvidz storage init` creates it",
    "InvalidBucketName": "the server does not allow this name of a bucket",
    "PermanentRedirect": "the bucket is in another region",
    "AuthorizationHeaderMalformed": "the bucket is in another region",
    "IllegalLocationConstraintException": "the bucket is in another region",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "BucketAlreadyExists": "the name belongs to another account",
    "QuotaExceeded": "the storage is full",
    "XMinioStorageFull": "the storage is full",
}
"""What an operator should know about the codes of S3."""
_STATUS_MEANINGS = {"401": "the access key is refused", "403": "the access key is refused"}
"""For answers without a body, such as those to HEAD."""
_WRONG_REGION = "the bucket is in another region"
_REDIRECT = "Received redirect without LOCATION"
"""How the library reads an answer of AWS that names another region in its body only."""
_FAILURES = (
    (_REDIRECT, _WRONG_REGION),
    ("dns error", "the host name of the server is not known"),
    ("InvalidCertificate", "the certificate of the server is not trusted"),
    ("InvalidMessage", "the server speaks no TLS, or not this"),
    ("ConnectionRefused", "nothing listens at this address"),
    ("TimedOut", "the server did not answer in time"),
    ("timed out", "the server did not answer in time"),
)
"""What the texts of errors without an answer mean; the first that is found counts."""
_KEYS = "OURVIDZ_S3_ACCESS_KEY_ID, OURVIDZ_S3_SECRET_ACCESS_KEY"
_VARIABLES = {
    _NO_BUCKET: "OURVIDZ_S3_BUCKET",
    "InvalidBucketName": "OURVIDZ_S3_BUCKET",
    "PermanentRedirect": "OURVIDZ_S3_REGION",
    "AuthorizationHeaderMalformed": "OURVIDZ_S3_REGION",
    "IllegalLocationConstraintException": "OURVIDZ_S3_REGION",
    "RequestTimeTooSkewed": "clock",
}
"""What an operator has to correct, by code; for other codes it is the key."""


def reason_of(error: object) -> str:
    """Why a request failed, in one phrase without headers, bodies and signatures."""
    text = str(error)
    if isinstance(error, InvalidPathError):
        unreadable = _UNREADABLE.search(text)
        name = ascii(unreadable[1]) if unreadable else "unknown"
        return (
            f"the S3 library cannot read the name of an object there: {name}; remove it with another program"
        )
    status, code = _STATUS.search(text), _CODE.search(text)
    if code is not None:
        meaning = _MEANINGS.get(code[1])
        return f"{meaning} ({code[1]})" if meaning else f"the server answers {code[1]}"
    if status is not None:
        return _STATUS_MEANINGS.get(status[1], f"the server answers {status[1]}")
    unknown = "the server could not be reached, or the connection broke"
    return next((meaning for part, meaning in _FAILURES if part in text), unknown)


def to_correct(error: object) -> str:
    """What an operator has to correct after a refusal: the variable, or the clock."""
    text = str(error)
    if _REDIRECT in text:
        return "OURVIDZ_S3_REGION"
    code, status = _CODE.search(text), _STATUS.search(text)
    if code is not None:
        return _VARIABLES.get(code[1], _KEYS)
    return _KEYS if status is not None and status[1] in _STATUS_MEANINGS else "OURVIDZ_S3_ENDPOINT"


def is_no_bucket(error: object) -> bool:
    """Whether the bucket does not exist."""
    # The text has the key too, which may be named like an error.
    code = _CODE.search(str(error))
    return code is not None and code[1] == _NO_BUCKET


def is_not_found(error: Exception) -> bool:
    """Whether there is no such file; a missing bucket is another error."""
    return isinstance(error, FileNotFoundError) and not is_no_bucket(error)


def is_unsatisfiable_range(error: Exception) -> bool:
    """Whether a range begins behind the end of a file."""
    status = _STATUS.search(str(error))
    return status is not None and status[1] == "416"


def is_refusal(error: Exception) -> bool:
    """Whether the server has answered that it will not do this, so that a repetition does not help."""
    text = str(error)
    status = _STATUS.search(text)
    if status is None:
        return _REDIRECT in text
    return status[1][0] in "34" and status[1] not in ("408", "429")


@contextmanager
def request(verb: str, key: str) -> Iterator[None]:
    """Raise `StorageError` for the errors of a request."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        kind = UNREADABLE_NAME if isinstance(error, InvalidPathError) else None
        raise StorageError(f"{key} could not be {verb}: {reason_of(error)}.", kind=kind) from None


@contextmanager
def reading(verb: str, key: str) -> Iterator[None]:
    """As `request`, but raise `NotFound` if there is no such file."""
    with request(verb, key):
        try:
            yield
        except LIBRARY_ERRORS as error:
            if is_not_found(error):
                raise NotFound(f"There is nothing under {key}.", field="key", value=key) from None
            raise


@contextmanager
def deleting(key: str) -> Iterator[None]:
    """As `request`, but pass if there is no such file: some servers say so."""
    with request("deleted", key):
        try:
            yield
        except LIBRARY_ERRORS as error:
            if not is_not_found(error):
                raise
