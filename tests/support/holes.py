"""Files with pages that the kernel charged to a tenant: it mapped a hole and wrote there."""

import os
from pathlib import Path

from tests.support.tenants import Tenant

PAGE = 4096
MIB = 1 << 20


def sparse(path: Path | str, size: int) -> str:
    """Statements that make a file of a hole and one byte at its end, and open it as `fd`.

    Whoever writes the byte cannot map the file, or the pool would fill the hole.
    """
    return (
        f"fd = os.open('{path}', os.O_WRONLY | os.O_CREAT, 0o666); os.pwrite(fd, b'x', {size - 1}); os.close(fd)\n"
        f"fd = os.open('{path}', os.O_RDWR)"
    )


def fault_holes(tenant: Tenant, path: Path, pages: range, size: int = 64 * MIB) -> None:
    """Have the kernel charge the tenant for pages of a sparse file, as a mapping of a hole does."""
    tenant.do(
        f"{sparse(path, size)}\n"
        f"m = mmap.mmap(fd, {size})\n"
        f"for page in range({pages.start}, {pages.stop}, {pages.step}): m[page * {PAGE}] = 1 + page % 251"
    )


def content_is_there(path: Path, pages: range) -> bool:
    with path.open("rb") as file:
        return all(
            os.pread(file.fileno(), PAGE, page * PAGE) == bytes([1 + page % 251]) + bytes(PAGE - 1) for page in pages
        )
