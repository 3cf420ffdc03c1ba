"""Every error a user can meet, with the exit code of the process it ends.

A message names the value, the place and the way out. The command line prints it and exits with
`exit_code`.
"""

from __future__ import annotations


class ZfscaleError(Exception):
    """Base of all errors that are reported without a traceback."""

    exit_code = 1


class UsageError(ZfscaleError):
    """A job file, option or argument that cannot be carried out as written."""

    exit_code = 2


class UnsupportedOperation(ZfscaleError):
    """A network holds an operation that deconvolution or receptive fields do not support."""


class TaskFailed(ZfscaleError):
    """A task used up its attempts or its time; the others went on."""

    exit_code = 4


class OverBudget(ZfscaleError):
    """More images were quarantined than `max_quarantined` allows."""

    exit_code = 3


class NonFiniteActivations(ZfscaleError):
    """More than 1% of the images gave NaN or Inf: the weights are to blame, not the images."""


class IntegrityError(ZfscaleError):
    """Stored bytes do not match their checksum, or a task gave two different results."""

    exit_code = 5


class FingerprintMismatch(IntegrityError):
    """A run was begun under another model, spec, input list or library version."""

    exit_code = 2
