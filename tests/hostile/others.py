"""Files that are no weights at all."""

import gzip
import pickle
import tarfile
from functools import partial


def written(path, data):
    """A file of these bytes."""
    path.write_bytes(data)


def tar(path):
    """A tar archive, as torch wrote before version 0.1.10."""
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))


OTHERS = {
    "empty file": partial(written, data=b""),
    "seven bytes": partial(written, data=b"weights"),
    "page of the web": partial(written, data=b"<!DOCTYPE html><html>404</html>"),
    "pointer of git lfs": partial(written, data=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "compressed file": partial(written, data=gzip.compress(bytes(100), mtime=0)),
    "plain pickle": partial(written, data=pickle.dumps({"state_dict": {"weight": 1}})),
    "tar archive": tar,
    "zeros": partial(written, data=bytes(4096)),
    "random bytes": partial(written, data=bytes(n * n * 7 % 251 for n in range(5000))),
    "text": partial(written, data=b"These are not the weights you are looking for.\n" * 20),
}
