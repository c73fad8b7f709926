"""What can go wrong with a row, by who can heal it.

Permanent failures are properties of the data: they become ledger rows and the row commits without the clip. The
user's mistakes are `shards.errors.UserError` (exit 2). What is left is transient.
"""

import errno


class Transient(Exception):
    """A read that fails, a full disk, a dead server: nothing is wrong with the data, the row stays pending."""


# Errors of a file system that is in trouble or out of something, not of the file that was read.
TRANSIENT_ERRNOS = frozenset(
    {
        errno.EIO, errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT, errno.EDQUOT, errno.EROFS, errno.ENOMEM,
        errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTUNREACH,
        errno.ENOTCONN, errno.EPIPE, errno.EREMOTEIO, errno.ENETDOWN, errno.ENETUNREACH, errno.EBUSY,
    }
)  # fmt: skip
