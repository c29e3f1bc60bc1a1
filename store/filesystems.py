"""What file system a path lies on, as far as a database must know.

The rule: a store that is written lies on a disk of this machine. SQLite keeps writers apart by file locks and trusts
fsync; over a network neither can be relied on, and what is lost is found much later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The kernel's list, a line for each mount as proc(5) describes; macOS has none, and is not looked at.
MOUNTINFO = Path("/proc/self/mountinfo")

_KINDS = (
    "9p-drvfs acfs afs beegfs ceph cifs coda davfs drvfs glusterfs gpfs lizardfs lustre moosefs ncpfs nfs nfs4 "
    "orangefs panfs pvfs2 quobyte smb2 smb3 smbfs vboxsf vmhgfs weka wekafs"
)
# What stands after "fuse." where a program brings files from elsewhere; other programs (ntfs-3g, mergerfs) do not.
_PROGRAMS = (
    "alluxio beegfs blobfuse blobfuse2 ceph ceph-fuse cifs curlftpfs davfs davfs2 gcsfuse glusterfs goofys gvfsd-fuse "
    "hdfs juicefs lizardfs mfs moosefs mount-s3 mountpoint-s3 nfs quobyte rclone s3fs s3ql saunafs seaweedfs smbnetfs "
    "sshfs vmhgfs-fuse weed"
)
NETWORK = frozenset(_KINDS.split())
NETWORK_FUSE = frozenset(_PROGRAMS.split())


@dataclass(frozen=True)
class Mount:
    """One mounted file system; `kind` as the kernel names it (ext4, nfs4, fuse.sshfs)."""

    point: Path
    kind: str

    @property
    def is_network(self) -> bool:
        """Whether its files lie on another machine, or behind one's locks."""
        program = self.kind.removeprefix("fuse.")
        return self.kind in NETWORK or (program != self.kind and program in NETWORK_FUSE)


def _plain(text: str) -> str:
    """Return a field of mountinfo with its escapes (\\040 for a blank) made good."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def parse(table: str) -> list[Mount]:
    """Return the mounts of a mountinfo table, in its order; lines of another form are left out."""
    mounts = []
    for line in table.splitlines():
        before, separator, after = line.partition(" - ")
        fields, facts = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(facts) < 2:
            continue
        # WSL shows Windows drives as 9p, which elsewhere is how a virtual machine gets its own disk.
        windows = facts[0] == "9p" and "drvfs" in after
        mounts.append(Mount(Path(_plain(fields[4])), "9p-drvfs" if windows else facts[0]))
    return mounts


def mount_of(path: Path) -> Mount | None:
    """Return the mount that `path`, which need not exist, lies on; None where that cannot be known."""
    try:
        table = MOUNTINFO.read_text(errors="surrogateescape")
    except OSError:
        return None
    real = path.resolve()
    around = [mount for mount in parse(table) if real.is_relative_to(mount.point)]
    # Of two at one point the later hides the earlier; max() would keep the first.
    return max(reversed(around), key=lambda mount: len(mount.point.parts), default=None)
