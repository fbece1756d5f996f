"""Where the weights of the Inception network are published, without the libraries that run it."""

from __future__ import annotations

from pathlib import Path

from common.download import Download, download, torch_cache

FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION = Download(
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}",  # as pytorch-fid has it
    "sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95_628_359,
)


def inception_path() -> Path:
    """Where the weights are, or will be: torch.hub's cache, as pytorch-fid has them."""
    return torch_cache("checkpoints", FILE)


def inception_weights(*, quiet: bool = False) -> Path:
    """The file of the weights, downloaded if necessary. Raises RunError if that fails."""
    path = inception_path()
    if not path.is_file():
        download(INCEPTION, path, quiet=quiet, remedy=f"put the file at {path} or pass --weights FILE")
    return path
