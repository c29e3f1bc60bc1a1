"""Which file system a path lies on, and that a store is not written over a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from store import NetworkFilesystem, Store, filesystems

# Lines as kernels write them: device numbers, root, mount point, options, optional fields, then kind and source.
ROOT = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"
TABLE = f"""{ROOT}
30 22 0:26 / /home rw,relatime shared:2 - nfs4 server:/export/home rw,vers=4.2,addr=10.0.0.1
31 30 254:1 / /home/ada/scratch rw - xfs /dev/nvme0n1 rw
32 22 0:30 / /mnt/my\\040share rw - cifs //server/share rw,username=ada
33 22 0:31 / /mnt/c rw,noatime - 9p C:\\134 rw,dirsync,aname=drvfs;path=C:\\;uid=1000,trans=fd
34 22 0:32 / /virtual rw - 9p hostshare rw,trans=virtio
35 22 0:33 / /media/far rw - fuse.sshfs ada@host: rw,user_id=0
36 22 0:34 / /media/near rw - fuseblk /dev/sdb1 rw
37 22 0:35 / /media/pool rw - fuse.mergerfs a:b rw
a line of another form
38 22 0:36 / /over rw - nfs server:/a rw
39 22 254:2 / /over rw - ext4 /dev/sdc rw
"""

KINDS = {
    "lustre": True,
    "gpfs": True,
    "beegfs": True,
    "fuse.glusterfs": True,
    "ceph": True,
    "fuse.ceph-fuse": True,
    "afs": True,
    "nfs": True,
    "smb3": True,
    "fuse.rclone": True,
    "ext4": False,
    "btrfs": False,
    "zfs": False,
    "tmpfs": False,
    "overlay": False,
    "apfs": False,
    "fuse.gocryptfs": False,
}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of mounts that the code reads in place of the kernel's."""
    path = tmp_path / "mountinfo"
    path.write_text(TABLE)
    monkeypatch.setattr(filesystems, "MOUNTINFO", path)
    return path


@pytest.mark.parametrize(
    ("path", "point", "kind", "network"),
    [
        ("/srv/store.db", "/", "ext4", False),
        ("/home/ada/.local/share/store.db", "/home", "nfs4", True),
        ("/home/ada/scratch/store.db", "/home/ada/scratch", "xfs", False),
        ("/home/ada/scratch2/store.db", "/home", "nfs4", True),
        ("/mnt/my share/x/store.db", "/mnt/my share", "cifs", True),
        ("/mnt/c/Users/ada/store.db", "/mnt/c", "9p-drvfs", True),
        ("/virtual/store.db", "/virtual", "9p", False),
        ("/media/far/store.db", "/media/far", "fuse.sshfs", True),
        ("/media/near/store.db", "/media/near", "fuseblk", False),
        ("/media/pool/store.db", "/media/pool", "fuse.mergerfs", False),
        ("/over/store.db", "/over", "ext4", False),
    ],
)
def test_a_path_lies_on_the_mount_that_is_nearest_above_it(
    table: Path, path: str, point: str, kind: str, network: bool
) -> None:
    mount = filesystems.mount_of(Path(path))
    assert mount == filesystems.Mount(Path(point), kind)
    assert mount.is_network is network


@pytest.mark.parametrize(("kind", "network"), KINDS.items())
def test_file_systems_of_other_machines_are_told_from_those_of_this_one(kind: str, network: bool) -> None:
    assert filesystems.Mount(Path("/"), kind).is_network is network


def test_a_link_is_followed_to_where_the_file_really_lies(table: Path, tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "far").symlink_to(tmp_path / "near")
    table.write_text(f"{ROOT}\n40 22 0:40 / {tmp_path / 'near'} rw - nfs server:/x rw\n")
    mount = filesystems.mount_of(tmp_path / "far" / "store.db")
    assert mount is not None
    assert mount.kind == "nfs"


def test_where_no_table_can_be_read_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "MOUNTINFO", tmp_path / "not there")
    assert filesystems.mount_of(tmp_path) is None
    Store(tmp_path / "store.db").close()


def test_the_mounts_of_this_machine_are_read(tmp_path: Path) -> None:
    if not filesystems.MOUNTINFO.exists():
        pytest.skip("this system has no /proc/self/mountinfo")
    mount = filesystems.mount_of(tmp_path)
    assert mount is not None
    assert tmp_path.is_relative_to(mount.point)


def content(folder: Path) -> dict[Path, bytes]:
    """Return a folder's files, without those of a WAL that a reader needs where the folder lets it."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))]
    return {path: path.read_bytes() for path in files}


def test_a_store_on_a_network_is_refused_with_the_mount_and_the_remedy_and_can_be_read_if_asked(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "my home")
    table.write_text(ROOT)
    service = Service(home, config=Settings())
    names = [model.name for model in service.base_models()]
    service.close()
    table.write_text(f"{ROOT}\n40 22 0:40 / {str(home.root).replace(' ', chr(92) + '040')} rw - nfs4 server:/x rw\n")
    before = content(home.root)

    with pytest.raises(NetworkFilesystem) as refused:
        Service(home, config=Settings())
    for words in ("nfs4", f"mounted at {home.root}", "Set FUSION_HOME", "FUSION_READ_ONLY=1"):
        assert words in str(refused.value)

    monkeypatch.setenv("FUSION_READ_ONLY", "1")
    service = Service(home, config=Settings())
    assert service.read_only
    assert [model.name for model in service.base_models()] == names
    service.close()
    assert content(home.root) == before


def test_a_new_store_on_a_network_is_not_even_made(table: Path, tmp_path: Path) -> None:
    table.write_text(f"{ROOT}\n40 22 0:40 / {tmp_path} rw - lustre mgs:/fs rw\n")
    with pytest.raises(NetworkFilesystem, match="lustre"):
        Store(tmp_path / "store.db")
    assert not (tmp_path / "store.db").exists()
