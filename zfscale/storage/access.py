"""What goes wrong on the way to an address, in one line that a user can act on.

Libraries of object stores raise errors of their own, which are no OSError. Every call to such a
library stands in a block of `reaching`: this is the one place that knows their names.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from zfscale.errors import UsageError, ZfscaleError

_SETTINGS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (and AWS_ENDPOINT_URL for "
    "a store that is not Amazon's)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}

# Names of error classes, for the libraries may not be there to be imported.
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "UnauthorizedSSOTokenError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "RefreshError",
    "ClientAuthenticationError",
}
_LIBRARIES = {
    *("botocore", "aiobotocore", "boto3", "s3fs", "gcsfs", "google", "adlfs", "azure"),
    *("aiohttp", "requests", "urllib3"),
}


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """A block that talks to the storage at `url`, a URL of fsspec.

    Missing credentials and missing permission become a UsageError that names the address and
    the setting. Other errors of such a library become an OSError: they may pass.
    """
    try:
        yield
    except ZfscaleError:
        raise
    except PermissionError as error:
        if "://" not in url:  # a local path
            raise
        raise UsageError(
            f"{url}: access is denied: {_one_line(error)}. The credentials in use do not permit "
            f"this: check {_settings(url)}, and what the owner of the store grants"
        ) from error
    except OSError:
        raise
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & _NO_CREDENTIALS:
            raise UsageError(
                f"{url}: no credentials: {_one_line(error)}. Set {_settings(url)}"
            ) from error
        libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if libraries & _LIBRARIES:
            message = f"{url}: {type(error).__name__}: {_one_line(error)}"
            raise OSError(errno.EIO, message) from error
        raise


def _settings(url: str) -> str:
    scheme = url.partition("://")[0]
    known = _SETTINGS.get(_ALIASES.get(scheme, scheme))
    return known or f"the credentials that the fsspec file system {scheme!r} asks for"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
